"""API keys: made here, shown once, stored only as SHA-256 hashes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from tunesmith.errors import ConfigError, MissingError, TunesmithError, listed
from tunesmith.store import storage_errors, writing

__all__ = ["Keys", "KeysFile", "NewKey", "create_key", "new_secret", "read", "remove_key"]

LOG = logging.getLogger("tunesmith.serve")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LINE = re.compile(rf"(?P<sha256>[0-9a-f]{{64}})  (?P<name>{NAME.pattern})")
SECRET_BYTES = 32


@dataclass(frozen=True)
class NewKey:
    """A key that was just made. `secret` is kept nowhere: show it once."""

    name: str
    secret: str = field(repr=False)


class Keys:
    """Hashes of the keys that are let in.

    Args:
        hashes: name -> SHA-256 of the key, in hex.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = {name: bytes.fromhex(digest) for name, digest in hashes.items()}

    @classmethod
    def of(cls, secret: str) -> Keys:
        """The set that holds one key, known only to this process."""
        return cls({"generated": _hash(secret)})

    @property
    def names(self) -> tuple[str, ...]:
        """What the keys are called."""
        return tuple(self._hashes)

    def admit(self, secret: str) -> bool:
        """Whether the key is one of these; the time taken says nothing about how close it was."""
        digest = bytes.fromhex(_hash(secret))
        found = [hmac.compare_digest(digest, known) for known in self._hashes.values()]
        return any(found)


class KeysFile:
    """The keys of a file, read again when it changes, so that a removed key stops working at once.

    Raises:
        MissingError, ConfigError: as `read`, when the file cannot be used at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _state(path)
        self._keys = read(path)

    def admit(self, secret: str) -> bool:
        """Whether the key is in the file now. A file that cannot be read admits nobody."""
        state = _state(self._path)
        if state != self._seen:
            self._seen = state
            try:
                self._keys = read(self._path)
            except TunesmithError as error:
                self._keys = Keys({})
                LOG.error("no key is accepted until this is mended: %s", error)
        return self._keys.admit(secret)


def new_secret() -> str:
    """A new key with 256 random bits."""
    return f"sk-{secrets.token_urlsafe(SECRET_BYTES)}"


def create_key(path: Path, name: str = "default") -> NewKey:
    """Make a key and add its hash to the file, which is made (mode 0600) when it is not there.

    Args:
        path: the keys file.
        name: what the key is called; it must be new in the file.

    Raises:
        ConfigError: a bad or used name, or a file that is no keys file.
        StorageError: the file cannot be written.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a key",
            why="a name has 1 to 64 letters, digits, dots, dashes and underscores",
            fix="choose another name",
        )
    key = NewKey(name, new_secret())
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        hashes = _parse(path) if path.exists() else {}
        if name in hashes:
            raise ConfigError(
                f"{path} has a key named {name!r} already",
                fix="choose another name, or remove that key first",
            )
        _write(path, {**hashes, name: _hash(key.secret)})
    return key


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file; a running gateway refuses it from its next request on.

    Raises:
        MissingError: no such file or key.
        ConfigError: the file is no keys file.
        StorageError: the file cannot be written.
    """
    _parse(path)  # A missing file is named as such, before its lock is made.
    with _locked(path):
        hashes = _parse(path)
        if name not in hashes:
            raise MissingError(
                f"{path} has no key named {name!r}",
                fix=f"name one of: {', '.join(hashes) or '(it is empty)'}",
            )
        del hashes[name]
        _write(path, hashes)


def read(path: Path) -> Keys:
    """The keys of a file.

    Raises:
        MissingError: there is no such file.
        ConfigError: others may read or write it, it holds no key, or its lines are damaged.
    """
    hashes = _parse(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"the keys file {path} has mode {mode:04o}",
            why="other users of this machine could read it or add a key of their own",
            fix=f"chmod 600 {path}",
        )
    if not hashes:
        raise ConfigError(
            f"the keys file {path} holds no key",
            why="nobody could use the gateway",
            fix="make one with `tunesmith serve keys new`",
        )
    return Keys(hashes)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _state(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


def _parse(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise MissingError(
            f"there is no keys file {path}",
            fix="make it with `tunesmith serve keys new`, or leave serve.keys_path out",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the keys file {path} cannot be read: {error}") from error
    found = [(number, LINE.fullmatch(line)) for number, line in enumerate(lines, 1) if line]
    # A damaged line is named, never shown: it may be a key that was pasted by mistake.
    damaged = [f"{path}:{number}" for number, match in found if match is None]
    if damaged:
        raise ConfigError(
            f"the keys file has lines that are no hash and name:\n{listed(damaged)}",
            why="a line is the key's SHA-256 in hex, two spaces, and its name",
            fix="remove these lines, and make keys with `tunesmith serve keys new`",
        )
    return {match["name"]: match["sha256"] for _, match in found if match is not None}


def _write(path: Path, hashes: Mapping[str, str]) -> None:
    text = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    with writing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with storage_errors(path):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
