"""A sealed directory of ours: manifest, sizes, hashes, certificate, signature."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tunesmith.errors import ArtifactError
from tunesmith.export.check.report import Desk
from tunesmith.models.files import Findings, read_json_object
from tunesmith.store import MANIFEST, signatures

__all__ = ["check_sealed", "check_signature", "is_sealed"]

_AGAIN = "delete the folder and make it again, or copy it again from where it is whole"
_PRIVATE = ("run.json", ".lock", MANIFEST, signatures.SIGNATURE)
_CHUNK = 1 << 22
_LONGEST_NAME = 255
"""Bytes of a file's name that every system takes."""
_KEYS = ("kind", "key", "created", "version", "inputs", "facts", "parents", "files")


def is_sealed(folder: Path) -> bool:
    """Whether a stage of ours sealed it, or began to."""
    return (folder / MANIFEST).is_file() or (folder / "run.json").is_file()


def check_sealed(desk: Desk, folder: Path, files: Sequence[Path]) -> None:
    """Hold the manifest against what is there; its facts go on to the other parts."""
    path = folder / MANIFEST
    found = desk.about(path, _AGAIN)
    if not path.is_file():
        told = "it is not there: the run was never finished"
        found.error(
            "seal-missing", "", told, "nothing proves these files whole", "run it to its end"
        )
        return
    manifest = read_json_object(path, found)
    if manifest is None:
        found.error("seal-manifest", "", "the manifest cannot be read", "nothing can be compared")
        return
    missing = [key for key in _KEYS if key not in manifest]
    if (
        missing
        or not isinstance(manifest["files"], dict)
        or not isinstance(manifest["facts"], dict)
    ):
        told = f"it is no manifest of ours: {', '.join(missing) or 'files, facts'} missing or odd"
        found.error("seal-manifest", "", told)
        return
    desk.kinds.append(f"sealed {manifest['kind']}")
    desk.sealed = manifest["facts"]
    _check_files(desk, found, folder, manifest["files"])
    _check_others(desk, folder, files, manifest["files"])
    _check_certificate(desk, folder, manifest)


def _check_files(desk: Desk, found: Findings, folder: Path, files: Mapping[str, Any]) -> None:
    for name, entry in files.items():
        if not _is_inside(name):
            told = "the manifest names a file outside of the folder"
            found.error("seal-path", str(name)[:200], told, "a copy would write or read elsewhere")
            continue
        if not _is_entry(entry):
            found.error("seal-manifest", name, "its entry has not a size and a hash")
            continue
        _check_file(desk, folder / name, entry)


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
        and isinstance(entry["sha256"], str)
    )


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    if any(len(part.encode("utf-8", "surrogatepass")) > _LONGEST_NAME for part in path.parts):
        return False
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and name != ""


def _check_file(desk: Desk, path: Path, entry: Mapping[str, Any]) -> None:
    found = desk.about(path, _AGAIN)
    why = "it is not the file that was sealed: its figures and its certificate do not hold for it"
    if not path.is_file():
        found.error("seal-file", "", "it is gone; the manifest names it", why)
    elif path.stat().st_size != entry["bytes"]:
        size = path.stat().st_size
        found.error("seal-file", "", f"it has {size:,} bytes, {entry['bytes']:,} were sealed", why)
    elif desk.options.hashes and (sha256 := _sha256(desk, path)) != entry["sha256"]:
        told = f"its SHA-256 is {sha256[:16]}…, {str(entry['sha256'])[:16]}… was sealed"
        found.error("seal-file", "", told, why)


def _sha256(desk: Desk, path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            desk.options.advance(len(chunk))
    return digest.hexdigest()


def _check_others(
    desk: Desk, folder: Path, files: Sequence[Path], sealed: Mapping[str, Any]
) -> None:
    for path in files:
        name = path.relative_to(folder).as_posix()
        if name in sealed or name in _PRIVATE:
            continue
        desk.about(path, "delete it, or keep it elsewhere").warning(
            "seal-extra",
            "",
            "it was added after the seal: the manifest does not name it",
            "a loader may take it for a part of the model",
        )


def _check_certificate(desk: Desk, folder: Path, manifest: Mapping[str, Any]) -> None:
    """parity.json names the hash of each measured file: it must be that of the sealed one."""
    path = folder / "parity.json"
    if not path.is_file() or manifest["kind"] != "export":
        return
    found = desk.about(path, "export again")
    certificate = read_json_object(path, found)
    forms = certificate.get("forms") if certificate else None
    if not isinstance(forms, dict):
        found.error("seal-certificate", "", "it names no measured forms")
        return
    for form, figures in forms.items():
        hashes = figures.get("sha256") if isinstance(figures, dict) else None
        for name, sha256 in (hashes if isinstance(hashes, dict) else {}).items():
            entry = manifest["files"].get(name)
            if not isinstance(entry, dict) or entry.get("sha256") != sha256:
                told = f"the file {name} that was measured is not the one that was sealed"
                found.error(
                    "seal-certificate", f"form {form}", told, "its figures are of other weights"
                )


def check_signature(desk: Desk, folder: Path, n_bytes: int) -> None:
    """Who signed the folder: the owner of the key that was asked for, or somebody else.

    Args:
        n_bytes: of all files below the folder.

    Raises:
        MissingError, ConfigError: there is no such key, or it is none.
        EnvironmentProblem: the packages for signing are not installed.
    """
    public = desk.options.public_key
    if public is None:
        if signatures.is_signed(folder):
            told = "it is signed; by whom was not looked at (--public-key does)"
            desk.about(folder / signatures.SIGNATURE, "").note("signature", "", told)
            desk.tell(folder, signature="not looked at")
        return
    if folder.is_file():
        found = desk.about(folder, "name the folder that was signed")
        found.error(
            "seal-signature", "", "a single file has no signature", "a folder is signed whole"
        )
        return
    state = "right"
    try:
        signatures.verify(folder, public)
    except ArtifactError as error:
        is_signed = signatures.is_signed(folder)
        state = "wrong" if is_signed else "none"
        told = error.what.replace(str(folder), "the folder", 1)
        place = folder / signatures.SIGNATURE if is_signed else folder
        desk.about(place, error.fix).error("seal-signature", "", told, error.why)
    desk.tell(folder, signature=state, public_key=public.name)
    desk.options.advance(n_bytes)
