"""Atomic files, hashes, and what the operating system says when a disk is full."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import StorageError
from tunesmith.store.failpoints import reach

__all__ = [
    "canonical_json",
    "flush_to_disk",
    "put_back",
    "sha256_of_file",
    "sha256_of_json",
    "storage_errors",
    "write_atomically",
    "writing",
    "writing_folder",
]

_CAUSES = {
    errno.ENOSPC: (
        "the disk is full",
        "free some space, or name another place (--out, or `workspace` in a recipe)",
    ),
    errno.EDQUOT: (
        "your quota on this disk is used up",
        "free some space, or name another place (--out, or `workspace` in a recipe)",
    ),
    errno.EROFS: (
        "the file system is read-only",
        "name another place (--out, or `workspace` in a recipe)",
    ),
    errno.EACCES: (
        "you have no permission to write there",
        "change its owner or name another place (--out, or `workspace` in a recipe)",
    ),
    errno.EPERM: (
        "you have no permission to write there",
        "change its owner or name another place (--out, or `workspace` in a recipe)",
    ),
    errno.ENOTDIR: (
        "a part of the path is a file",
        "name another place (--out, or `workspace` in a recipe)",
    ),
    errno.EISDIR: (
        "a folder stands where the file should be",
        "name another place (--out, or `workspace` in a recipe)",
    ),
    errno.EEXIST: (
        "a file stands where the folder should be",
        "name another place (--out, or `workspace` in a recipe)",
    ),
    errno.EFBIG: (
        "the file is larger than this system allows",
        "name another place (--out, or `workspace` in a recipe)",
    ),
    errno.EIO: ("the disk reports an input/output error", "check the disk"),
    errno.ENOENT: (
        "no such folder can be made there, or it was removed meanwhile",
        "name another place (--out, or `workspace` in a recipe)",
    ),
    errno.ENAMETOOLONG: (
        "a name in the path is longer than the file system allows",
        "use a shorter name",
    ),
    errno.ELOOP: (
        "a link in the path leads back to itself",
        "name another place (--out, or `workspace` in a recipe)",
    ),
}


ASIDE = ".old"
"""End of the name of a folder that is being replaced; it begins with a full stop."""


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a disk's refusal into a `StorageError` that names `path`.

    Raises:
        StorageError: for a full, read-only, forbidden, missing or broken place; other errors pass, and so does the
            lack of a file that lies elsewhere.
    """
    try:
        yield
    except _disk_errors() as error:
        cause = _CAUSES.get(_number_of(error))
        if cause is None or not _is_about(error, path):
            raise
        raise StorageError(f"cannot write {path}", why=cause[0], fix=cause[1]) from error


def _disk_errors() -> tuple[type[Exception], ...]:
    """safetensors reports a full disk by an error of its own; it is known once it was imported."""
    safetensors = sys.modules.get("safetensors")
    return (OSError,) if safetensors is None else (OSError, safetensors.SafetensorError)


def _is_about(error: Exception, path: Path) -> bool:
    """Whether what is missing is a part of `path`, or a folder beside or below it: a block may read other files too.

    What is written for `path` under another name is about it where no file can be made, as in `/proc`.
    """
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str):
        return True
    missing = Path(error.filename)
    is_near = path.parent in missing.parents and not missing.parent.is_dir()
    if missing.parent == path.parent and missing.name.startswith(f".{path.name}."):
        return not _can_be_made(missing)
    return is_near or missing in (path, *path.parents)


def _can_be_made(file: Path) -> bool:
    try:
        file.touch()
    except OSError:
        return False
    file.unlink()
    return True


def _number_of(error: Exception) -> int:
    """The system's number of an error; 0 when it has none."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it when the block ends, removed when it fails.

    The content is flushed to the disk before the rename, so `path` is either whole or absent,
    even after a power cut.

    Raises:
        StorageError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush_to_disk(temporary)
            os.replace(temporary, path)
            flush_to_disk(path.parent)
    finally:
        _remove(temporary)


def _remove(temporary: Path) -> None:
    """Remove a file that need not be there. Where none can be, the error of the block is the one to tell."""
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise


@contextmanager
def writing_folder(place: Path) -> Iterator[Path]:
    """A temporary folder beside `place`; it takes that name when the block ends, and is removed when it fails.

    The block flushes its files; the new name is flushed here. A folder of that name is replaced: it is
    set aside first, and `put_back` gives it its name again if the process dies before the new one has it.

    Raises:
        StorageError: the disk refuses.
    """
    half = place.with_name(f".{place.name}.part")
    with storage_errors(place):
        put_back(place.parent, place.name)
        shutil.rmtree(half, ignore_errors=True)
        try:
            # Inside: Ctrl-C may come out of the very call that made the folder.
            half.mkdir(parents=True)
            yield half
            if place.is_dir():
                os.replace(place, place.with_name(f".{place.name}{ASIDE}"))
                reach("folder-aside")
            os.replace(half, place)
            flush_to_disk(place.parent)
        finally:
            put_back(place.parent, place.name)
            shutil.rmtree(half, ignore_errors=True)


def put_back(folder: Path, begins: str) -> None:
    """Give folders their names back that `writing_folder` was killed while replacing.

    To be called before what `writing_folder` made is looked for. What was replaced by then is removed.

    Args:
        folder: holds them; it need not be there.
        begins: with what their names begin.

    Raises:
        OSError: the disk refuses.
    """
    for aside in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not (aside.name.startswith(f".{begins}") and aside.name.endswith(ASIDE)):
            continue
        place = folder / aside.name[1 : -len(ASIDE)]
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(aside, place)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing.

    Raises:
        StorageError: the disk refuses.
    """
    # Half of a surrogate pair has no UTF-8; this is its escape in JSON.
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with writing(path) as temporary:
        temporary.write_bytes(data)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def sha256_of_json(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON."""
    text = canonical_json(value).encode("utf-8", "backslashreplace")
    return hashlib.sha256(text).hexdigest()
