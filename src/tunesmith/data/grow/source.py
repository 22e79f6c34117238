"""The rows that are grown, and the held-out rows that nothing may repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from tunesmith.data.named import once
from tunesmith.data.problems import Problems
from tunesmith.data.rows import Row
from tunesmith.data.schemas import HEAD_ROWS, Options, tell, to_row
from tunesmith.errors import DataError
from tunesmith.store import MANIFEST, Artifact

__all__ = ["Grounds", "grounds_of", "read_rows"]

_FIX = "mend the lines named, or name the fields (--field prompt=NAME --field completion=NAME)"
HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class Grounds:
    """What is grown on.

    Attributes:
        rows: to make new ones of.
        held_out: of the sealed datasets that were named: validation and test.
        databases: name -> SQLite file of those datasets.
    """

    rows: list[Row]
    held_out: list[Row]
    databases: dict[str, Path]


def read_rows(
    files: Sequence[str | Path], options: Options | None = None, form: str = "auto"
) -> list[Row]:
    """Canonical rows of files, folders, or "-" for stdin, in their order.

    Raises:
        MissingError: a file is not there.
        DataError: rows are wrong; all are named.
    """
    from tunesmith.data.read import expand, open_source, reading

    problems = Problems()
    options = options or Options()
    found: list[Row] = []
    named = [str(file) for file in files]
    paths = [Path(p) for one in named for p in ([one] if one == "-" else expand([one]))]
    with reading(paths) as seen:
        for path in paths:
            source = open_source(path, form=form)
            raws = source.rows(problems)
            head = list(islice(raws, HEAD_ROWS))
            told = tell(head, options)
            if head and not told.schema:
                problems.add(str(path), told.why)
            for number, raw in enumerate(chain(head, raws) if told.schema else ()):
                row = to_row(raw, told, options, problems)
                if row is not None:
                    found.append(row)
                if number % HEAD_ROWS == 0:
                    seen(path, source.n_bytes)
            seen(path, source.n_bytes)
    problems.raise_any(_FIX)
    return found


def grounds_of(
    files: Sequence[str],
    options: Options | None = None,
    *,
    may_be_held_out: bool = False,
    form: str = "auto",
) -> Grounds:
    """The rows of files; of a sealed dataset's folder those for training, and beside them the others.

    Args:
        files: files, folders, sealed datasets, or "-" for stdin.
        options: fields of files that are not sealed.
        may_be_held_out: take files of a sealed dataset's validation and test, too.
        form: of files that are not sealed; told by their content when "auto".

    Raises:
        MissingError: a file is not there.
        ConfigError: a file is named twice.
        DataError: rows are wrong, or a file is held out.
        ArtifactError: a sealed dataset is damaged.
    """
    from tunesmith.data.read import expand

    found = Grounds([], [], {})
    once([path for file in files for path in ([Path(file)] if _is_one(file) else expand([file]))])
    for file in files:
        path = Path(file)
        if file != "-" and _is_one(file):
            sealed = Artifact.open(path, "data")
            found.rows.extend(read_rows([sealed.path("train.jsonl")]))
            held = [sealed.path(f"{split}.jsonl") for split in HELD_OUT]
            found.held_out.extend(read_rows([place for place in held if place.stat().st_size]))
            found.databases.update(_databases(sealed))
            continue
        if file != "-" and not may_be_held_out:
            _refuse_held_out(path)
        found.rows.extend(read_rows([file], options, form))
    return found


def _is_one(file: str) -> bool:
    """Whether it is stdin or a sealed dataset, and not files."""
    return file == "-" or (Path(file) / MANIFEST).is_file()


def _databases(sealed: Artifact) -> dict[str, Path]:
    return {
        Path(name).stem: sealed.path(name)
        for name in sealed.files
        if name.startswith("databases/") and name.endswith(".sqlite")
    }


def _refuse_held_out(path: Path) -> None:
    is_sealed = (path.parent / MANIFEST).is_file()
    if is_sealed and path.name.removesuffix(".jsonl") in HELD_OUT:
        raise DataError(
            f"{path} is held out",
            why="rows that a model is judged by must not be grown: what is made of them would be "
            "trained on",
            fix="name the dataset's folder (its training rows are taken), or say --held-out-too",
        )
