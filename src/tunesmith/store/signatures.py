"""Signatures of sealed directories: who sealed it, beside the hashes that say what was sealed.

Format: OpenSSF Model Signing (https://github.com/sigstore/model-transparency), a Sigstore bundle with the SHA-256 of
every file, signed with an elliptic key of the user's own; nothing is sent anywhere. `model_signing verify key` of that
project reads it as well.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunesmith.errors import (
    ArtifactError,
    ConfigError,
    EnvironmentProblem,
    MissingError,
    reason_of,
)
from tunesmith.store.files import storage_errors, write_atomically
from tunesmith.store.run import SCRATCH

__all__ = ["SIGNATURE", "check_key", "is_signed", "is_signed_by", "new_key", "sign", "verify"]

SIGNATURE = "model.sig"
_REFUSALS = (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError)
"""What a signature that does not fit, or is none, makes the library raise."""
MOST_SIGNATURE_BYTES = 1 << 26
"""A signature names each file in about 200 bytes."""
_MOST_NAMED = 5
"""Files that an error names; the rest is counted."""
_NOT_SIGNED = (SIGNATURE, ".lock", SCRATCH)
"""Of no meaning to a reader, or written later than the signature; relative to the folder, as the library wants it."""


def is_signed(folder: Path) -> bool:
    """Whether a signature lies there; whether it is right is another question."""
    return (folder / SIGNATURE).is_file()


def is_signed_by(folder: Path, private: Path) -> bool:
    """Whether the signature that lies there names this key; whether it is right is another question.

    Raises:
        MissingError, ConfigError, EnvironmentProblem: as `check_key`.
    """
    if not is_signed(folder):
        return False
    check_key(private)
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(private.read_bytes(), None)
    shown = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    try:
        found = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
        hint = found["verificationMaterial"]["publicKey"]["hint"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(hint == hashlib.sha256(shown).hexdigest())


def new_key(private: Path) -> Path:
    """Make a key pair (NIST P-256): `private`, readable by its owner alone, and `private` + ".pub".

    Returns:
        The public key's path.

    Raises:
        ConfigError: a key is there already.
        StorageError: the disk refuses.
        EnvironmentProblem: the packages for signing are not installed.
    """
    with _installed():
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    public = private.with_name(private.name + ".pub")
    for path in (private, public):
        if path.exists():
            raise ConfigError(
                f"{path} is there already",
                why="a key that is overwritten cannot be brought back, and nothing more could be signed with it",
                fix="choose another name, or use the key that is there",
            )
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    shown = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with storage_errors(private):
        private.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with storage_errors(private), open(descriptor, "wb") as stream:
            stream.write(secret)
        write_atomically(public, shown)
    except BaseException:
        # Half a pair would be refused by the next call as a key that is there.
        private.unlink(missing_ok=True)
        raise
    return public


def check_key(private: Path) -> Any:
    """Refuse a key that cannot sign; returns the library's signer.

    Raises:
        MissingError: no such key.
        ConfigError: the file holds no private elliptic key without a password.
        EnvironmentProblem: the packages for signing are not installed.
    """
    _require(private, "signing key")
    with _installed():
        from model_signing import signing
    try:
        return signing.Config().use_elliptic_key_signer(private_key=private)
    except (ValueError, TypeError, OSError, AttributeError) as error:
        raise ConfigError(
            f"{private} cannot be used as a signing key",
            why=_unfit(error),
            fix="make one: tunesmith sign --new-key FILE",
        ) from error


def _unfit(error: Exception) -> str:
    """Why the library does not take a key; of one that is not elliptic it asks for a curve."""
    is_other = isinstance(error, AttributeError)
    return "it is no elliptic key (RSA, Ed25519, ...)" if is_other else reason_of(error)


def sign(folder: Path, private: Path) -> Path:
    """Sign every file of a sealed directory, its manifest included; an older signature is replaced.

    Raises:
        MissingError, ConfigError, EnvironmentProblem: as `check_key`.
        ArtifactError: the folder holds a link or another thing that is no file.
        StorageError: the disk refuses.
    """
    signer = check_key(private)
    from model_signing import hashing

    target = folder / SIGNATURE
    with TemporaryDirectory() as elsewhere, storage_errors(target), _quiet():
        made = Path(elsewhere) / SIGNATURE
        config = hashing.Config().set_ignored_paths(paths=_NOT_SIGNED)
        try:
            signer.set_hashing_config(config).sign(folder, made)
        except ValueError as error:  # a link, a pipe: what has no content of its own
            raise ArtifactError(
                f"{folder} cannot be signed",
                why=reason_of(error).partition(" This behavior")[0],
                fix="put the file that it should be in its place, or delete it",
            ) from error
        content = made.read_bytes()
    write_atomically(target, content)
    return target


def verify(folder: Path, public: Path) -> None:
    """Refuse a directory that is not signed with this key, or not as it was signed.

    Raises:
        MissingError: no such key.
        ConfigError: the file holds no public elliptic key.
        ArtifactError: no signature, another signer, or files that were changed, added or removed.
        EnvironmentProblem: the packages for signing are not installed.
    """
    checker = check_public_key(public)
    if not is_signed(folder):
        raise ArtifactError(
            f"{folder} is not signed",
            why=f"it holds no {SIGNATURE}",
            fix=f"tunesmith sign {folder} --key PRIVATE_KEY, or do without the public key",
        )
    from cryptography.exceptions import InvalidSignature

    try:
        _refuse_endless(folder / SIGNATURE)
        with _quiet():
            checker.verify(folder, folder / SIGNATURE)
    except (*_REFUSALS, InvalidSignature) as error:
        why, fix = _told(error, folder)
        raise ArtifactError(
            f"{folder} is not what the owner of {public.name} signed", why=why, fix=fix
        ) from error


def _told(error: Exception, folder: Path) -> tuple[str, str]:
    """Why a signature does not hold, and what mends it; the library shows digests as raw bytes."""
    again = "fetch it again from where it was sealed; if it was changed on purpose, sign it again"
    said = reason_of(error)
    if said.startswith("Key mismatch"):
        return (
            f"{SIGNATURE} names another key",
            "name the public key of whoever signed it, if you trust them; else get the folder again from its owner",
        )
    if said.startswith("Signature mismatch"):
        return _difference(folder) or "files were changed, added or removed since", again
    if type(error) is ValueError or isinstance(error, OSError):
        return said, again
    if type(error).__name__ == "InvalidSignature":
        return f"{SIGNATURE} was changed, or was not made with this key", again
    return f"{SIGNATURE} cannot be read as a signature ({type(error).__name__}: {said})", again


def _difference(folder: Path) -> str:
    """Which files are not as they were signed; empty when the signature is of another layout.

    The signature itself was found right before: what it holds may be believed.
    """
    from model_signing import hashing

    bundle = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
    predicate = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"])).get("predicate")
    if not isinstance(predicate, dict) or predicate["serialization"]["method"] != "files":
        return ""
    signed = {one["name"]: one["digest"] for one in predicate["resources"]}
    ignored = (*_NOT_SIGNED, *predicate["serialization"].get("ignore_paths", ()))
    config = hashing.Config().set_ignored_paths(paths=ignored)
    with _quiet():
        now = {
            one.identifier: one.digest.digest_hex
            for one in config.hash(folder).resource_descriptors()
        }
    lines = list(_changes(signed, now))
    more = f"; and {len(lines) - _MOST_NAMED} more" if len(lines) > _MOST_NAMED else ""
    return "; ".join(lines[:_MOST_NAMED]) + more


def _changes(signed: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*signed, *now}):
        if name not in now:
            yield f"{name} is gone"
        elif name not in signed:
            yield f"{name} was added"
        elif signed[name] != now[name]:
            yield f"{name} was changed (SHA-256 {signed[name][:16]}… was signed, it is {now[name][:16]}…)"


def check_public_key(public: Path) -> Any:
    """Refuse a key that cannot verify; returns the library's verifier with it.

    Raises:
        MissingError: no such key.
        ConfigError: the file holds no public elliptic key.
        EnvironmentProblem: the packages for signing are not installed.
    """
    _require(public, "public key")
    with _installed():
        from model_signing import verifying
    try:
        with _quiet():
            return verifying.Config().use_elliptic_key_verifier(public_key=public)
    except (ValueError, TypeError, OSError, AttributeError) as error:
        raise ConfigError(
            f"{public} cannot be used as a public key",
            why=_unfit(error),
            fix="name the .pub file that `tunesmith sign --new-key FILE` makes beside FILE",
        ) from error


def _refuse_endless(signature: Path) -> None:
    size = signature.stat().st_size
    if size > MOST_SIGNATURE_BYTES:
        raise ValueError(f"{SIGNATURE} has {size:,} bytes, {MOST_SIGNATURE_BYTES:,} is the most")


def _require(path: Path, what: str) -> None:
    if not path.is_file():
        raise MissingError(
            f"there is no {what} at {path}",
            fix="make one: tunesmith sign --new-key FILE"
            if what == "signing key"
            else "name the .pub file of whoever signed; a new key would not fit the signature",
        )


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"signatures need the package {error.name!r}, which is not installed",
            fix="pip install 'tunesmith[sign]'",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's dependencies announce their own deprecations; it prints notes of its own to stdout."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
