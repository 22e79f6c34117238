"""Places to files: folders, patterns and datasets of the hub become the files that hold their rows."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.data.read import hub
from tunesmith.data.read.layout import chosen, is_about, is_layout, split_of
from tunesmith.data.read.limits import DEFAULTS
from tunesmith.data.read.source import AUTO
from tunesmith.data.read.stream import STDIN
from tunesmith.data.read.told import HEAD_BYTES, SUFFIXES, promised, tell
from tunesmith.errors import MissingError, listed
from tunesmith.store import MANIFEST

__all__ = ["Places", "expand", "survey"]

_SEALED = ("train.jsonl", "validation.jsonl", "test.jsonl")
_PATTERN = re.compile(r"[*?\[]")


@dataclass
class Places:
    """The files that places stand for.

    Attributes:
        files: in the order of the places; those of a folder by name.
        skipped: a folder's other files -> why they are not read.
    """

    files: list[Path] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


def expand(places: Iterable[Path | str] | Path | str, *, split: str = "") -> list[Path]:
    """The files that places stand for; see `survey`.

    Raises:
        As `survey`.
    """
    return survey(places, split=split).files


def survey(places: Iterable[Path | str] | Path | str, *, split: str = "") -> Places:
    """The files that places stand for, and what was passed over.

    A place is a file (there or not: opening it says so), `-`, a folder, a pattern such as
    `data/*.jsonl`, or `hf://datasets/OWNER/NAME[@REVISION][/PATTERN]`. Of a folder all files are
    taken that are named as rows are, or whose content is told to be rows, sorted by name; hidden
    ones are passed over.

    Args:
        split: "train", "validation" or "test": of folders whose files are named or listed by
            split, and of the hub's datasets, only these files. Empty: all of them.

    Raises:
        MissingError: a folder or pattern without files that can be read, a split that is not
            there, or a dataset that the hub does not give.
        DataError: the `configs` in a folder's README.md cannot be read.
        EnvironmentProblem: a dataset of the hub needs a package that is not installed.
    """
    found = Places()
    for place in [places] if isinstance(places, (str, Path)) else places:
        text = str(place)
        if hub.is_reference(text):
            found.files += hub.fetch(text, split)
        elif Path(text).is_dir():
            _survey_folder(Path(text), split, found)
        elif text != STDIN and _PATTERN.search(text) and not Path(text).exists():
            found.files += _matches(text)
        else:
            found.files.append(Path(text))
    return found


def _matches(pattern: str) -> list[Path]:
    paths = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [path for path in paths if path.is_file()]
    if not files:
        raise MissingError(f"no file matches {pattern}", fix="correct the pattern")
    return files


def _survey_folder(folder: Path, split: str, found: Places) -> None:
    """The folder's files, in the layout of the hub or as they are."""
    try:
        names = [path.relative_to(folder).as_posix() for path in _visible(folder)]
    except OSError as error:
        raise MissingError(
            f"{error.filename} cannot be read: {error.strerror}", fix="correct its rights"
        ) from error
    if MANIFEST in names and (sealed := [name for name in _SEALED if name in names]):
        # Of a sealed dataset the rows, not what is written about them.
        found.files += [folder / name for name in _of_split(sealed, split)]
        return
    readme = folder / "README.md"
    card = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    if is_layout(names, card):
        names = chosen(names, card, split, str(folder))
        found.files += [folder / name for name in names]
        return
    files = [folder / name for name in names]
    # A file that is named as rows are is taken, whatever is in it: opening it says what is wrong.
    others = [path for path in files if not promised(path.name) or is_about(path.name)]
    skipped = {path: what for path in others if (what := _unfit(path))}
    files = [path for path in files if path not in skipped]
    if any(promised(path.name) not in ("txt", "markdown") for path in files):
        # Beside tables of rows a README is about them; among pages it is one of them.
        about = {path: "it tells of the data" for path in files if is_about(path.name)}
        files = [path for path in files if path not in about]
        skipped |= about
    if not files:
        reasons = [f"{path}: {what}" for path, what in skipped.items()]
        raise MissingError(
            f"{folder} holds no file that can be read"
            + (f":\n{listed(reasons)}" if reasons else ""),
            fix="name a folder with JSONL, JSON, CSV, TSV, Parquet, TXT or Markdown files",
        )
    by_name = [path.relative_to(folder).as_posix() for path in files]
    found.files += [folder / name for name in _of_split(by_name, split)]
    found.skipped.update(skipped)


def _visible(folder: Path) -> Iterator[Path]:
    """Files below a folder, by name, without hidden ones."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if not path.is_symlink():  # a link may lead back up
                yield from _visible(path)
        elif path.is_file() or (path.is_symlink() and not path.exists()):
            yield path  # a link to nothing is a lost file, not none


def _unfit(path: Path) -> str:
    """Why a folder's file is not read; "" for one that is."""
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    told = tell(head, path.name, form=AUTO, limits=DEFAULTS)
    if told.refused:
        return told.refused
    if not promised(path.name) and told.form not in ("jsonl", "json", "parquet"):
        return f"its name says none of {', '.join(SUFFIXES)}"
    return ""


def _of_split(names: Sequence[str], split: str) -> list[str]:
    """Files that are named after the split; all of them where none is named after any split."""
    if not split or not any(split_of(name) for name in names):
        return list(names)
    found = [name for name in names if split_of(name) == split]
    if not found:
        have = sorted({split_of(name) for name in names} - {""})
        raise MissingError(
            f"no file of the folder is named after the split {split!r}",
            why=f"others are, after {', '.join(have)}",
            fix="name the files themselves",
        )
    return found
