"""The folder that the proofs work in: removed at the end, or by the next proving when the process was killed."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tunesmith.store import storage_errors

__all__ = ["temporary"]

PREFIX, LOCK = ".prove-", ".lock"


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, there and locked while the block runs; stale ones are removed first.

    Raises:
        StorageError: the disk refuses.
    """
    place = folder / f"{PREFIX}{secrets.token_hex(4)}"
    lock = _lock_of(place)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        lock.acquire()
    try:
        with storage_errors(folder):
            place.mkdir()
        yield place
    finally:
        _remove(place, lock)


def _lock_of(place: Path) -> FileLock:
    """Beside the folder, and taken before that is made: a folder without it taken is stale."""
    return FileLock(place.with_name(place.name + LOCK))


def _remove_stale(folder: Path) -> None:
    """What killed processes left; that of a process that lives is locked."""
    names = {path.name.removesuffix(LOCK) for path in folder.glob(f"{PREFIX}*")}
    for name in sorted(names):
        lock = _lock_of(folder / name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        _remove(folder / name, lock)


def _remove(place: Path, lock: FileLock) -> None:
    """The folder and then its lock, which is held."""
    shutil.rmtree(place, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
