"""The files below a folder: links, odd files, code and pickles, before any of them is opened for reading."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tunesmith.export.check.report import Desk
from tunesmith.models.files import (
    MOST_CONFIG_BYTES,
    MOST_TOKENIZER_BYTES,
    PICKLE_NAMES,
    pickle_in,
    read_json_object,
)

__all__ = ["files_below", "only", "sound_texts"]

MOST_FILES = 20_000
MOST_DEPTH = 16
SKIPPED = frozenset({".git", ".cache", "__pycache__", "scratch"})
"""Folders that no loader looks into; `scratch` is what an unfinished run of ours keeps."""
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CODE = frozenset({".py", ".pyc", ".so", ".dll", ".dylib", ".pyd"})
_SAVE_AGAIN = (
    "delete it, or save its weights again with `save_pretrained(folder, safe_serialization=True)`"
)


def files_below(desk: Desk) -> list[Path]:
    """The plain files that may be opened; what is wrong with the others is in the findings."""
    files: list[Path] = []
    for path in _entries(desk, desk.root, 0):
        if len(files) >= MOST_FILES:
            desk.about(desk.root, "name the model's own folder").error(
                "tree-size", "", f"more than {MOST_FILES:,} files lie below it"
            )
            break
        if _may_be_read(desk, path):
            files.append(path)
            _check_content(desk, path)
    return files


def _entries(desk: Desk, folder: Path, depth: int) -> Iterator[Path]:
    if not folder.is_dir():
        yield folder
        return
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        desk.about(folder, "change its owner or mode").error(
            "file-unreadable", "", f"the folder cannot be read: {error.strerror}"
        )
        return
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            if name in SKIPPED:
                continue
            if depth >= MOST_DEPTH:
                desk.about(path, "name the model's own folder").error(
                    "tree-size", "", f"folders are nested more than {MOST_DEPTH} levels deep"
                )
                continue
            yield from _entries(desk, path, depth + 1)
        else:
            yield path


def _may_be_read(desk: Desk, path: Path) -> bool:
    if path.is_symlink() and not _link_is_fine(desk, path):
        return False
    try:
        mode = path.stat().st_mode
    except OSError as error:
        found = desk.about(path, "copy the file that it should be, or delete it")
        found.error("file-unreadable", "", f"it cannot be opened: {error.strerror}")
        return False
    if not stat.S_ISREG(mode):
        found = desk.about(path, "delete it")
        found.error(
            "file-kind", "", "it is no plain file", "to open a pipe or a device waits, or does harm"
        )
        return False
    if not os.access(path, os.R_OK):
        found = desk.about(path, "change its owner or mode")
        found.error("file-unreadable", "", "you have no permission to read it")
        return False
    return True


def _link_is_fine(desk: Desk, path: Path) -> bool:
    """Inside the folder, or into the Hub's cache, whose snapshots are links to `blobs/<hash>`."""
    target = Path(os.path.realpath(path))
    root = Path(os.path.realpath(desk.root))
    base = root if root.is_dir() else root.parent
    if path == desk.root or target.is_relative_to(base):
        if target.is_dir():
            desk.about(path, "replace the link by the files").error(
                "link-folder", "", f"it is a link to the folder {os.readlink(path)}"
            )
            return False
        return True
    hub = base.parent.name == "snapshots" and target.parent == base.parent.parent / "blobs"
    if hub and _BLOB.fullmatch(target.name):
        return True
    desk.about(path, "replace the link by the file that it should be").error(
        "link-outside",
        "",
        f"it is a link to {os.readlink(path)}, outside of the folder",
        "another file of this machine would be read, packed or published as part of the model",
    )
    return False


def _check_content(desk: Desk, path: Path) -> None:
    kind = pickle_in(path)
    named = path.suffix.lower() in PICKLE_NAMES
    if kind:
        told = f"it is {kind}" + ("" if named else f", whatever its name {path.name!r} says")
        desk.about(path, _SAVE_AGAIN).error(
            "pickle", "", told, "a pickle is a program: to load it is to run it"
        )
    elif named:
        desk.about(path, _SAVE_AGAIN).warning(
            "pickle-name", "", "its name is one of a pickle; its content is none"
        )
    if path.suffix.lower() in _CODE:
        desk.about(path, "read it, and delete it if the model loads without").warning(
            "code",
            "",
            "a model's folder brings code",
            "loaders with trust_remote_code run it; tunesmith never does",
        )


_TEXTS = frozenset({".txt", ".jinja", ".model"})


def sound_texts(desk: Desk, files: Sequence[Path]) -> list[Path]:
    """The JSON and text files that may be read whole; what is wrong with the others is in the findings.

    Args:
        files: of one folder, such that may be opened.
    """
    sound = []
    for path in files:
        found = desk.about(path, "restore it from where the model came from, or delete it")
        if path.suffix == ".json":
            is_words = path.name == "tokenizer.json"
            most = MOST_TOKENIZER_BYTES if is_words else MOST_CONFIG_BYTES
            read_json_object(path, found, most_bytes=most, any_value=True)
        elif path.suffix not in _TEXTS:
            continue
        elif path.stat().st_size > MOST_TOKENIZER_BYTES:
            told = f"it has {path.stat().st_size:,} bytes, {MOST_TOKENIZER_BYTES:,} is the most"
            found.error("file-size", "", told, "reading it would fill the memory")
        if found.is_sound:
            sound.append(path)
    return sound


@contextmanager
def only(files: Sequence[Path]) -> Iterator[Path]:
    """A folder with nothing but these files, as links: loaders read more than they are asked to."""
    with TemporaryDirectory(prefix="tunesmith-check-") as made:
        for path in files:
            (Path(made) / path.name).symlink_to(path.resolve())
        yield Path(made)
