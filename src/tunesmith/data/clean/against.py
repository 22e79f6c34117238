"""Rows of test and benchmark files that training rows are held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tunesmith.data.problems import Problems
from tunesmith.data.read import expand, open_source
from tunesmith.data.rows import Row
from tunesmith.data.schemas import HEAD_ROWS, Options, tell, to_row
from tunesmith.errors import ConfigError, DataError

__all__ = ["FIX", "benchmark_rows", "refuse_itself"]

FIX = (
    "mend the lines named, or say what fields are by data.fields "
    "(`--field prompt=NAME --field completion=NAME` of data clean and data split)"
)


def refuse_itself(files: Iterable[Path | str], against: Sequence[Path]) -> None:
    """Stop before a file is held against itself, which would drop every row of it.

    Raises:
        ConfigError: names the files.
    """
    if not against:
        return
    own = {path.resolve() for path in expand(files)}
    both = [str(path) for path in expand(against) if path.resolve() in own]
    if both:
        raise ConfigError(
            f"{', '.join(both)} is to be cleaned, and data.clean.against (--against) names it too",
            why="each of its rows stands in it, so all of them would be dropped",
            fix="name other files there: those of the test or of a benchmark",
        )


def benchmark_rows(files: Sequence[Path], options: Options) -> list[Row]:
    """All rows of some files, whatever their schema; fields are mapped where they have these names.

    Raises:
        DataError: they cannot be read, or hold no row.
        MissingError: a file is not there.
    """
    if not files:
        return []
    problems = Problems()
    rows: list[Row] = []
    for path in expand(files):
        raws = list(open_source(path).rows(problems))
        named = raws and all(name in raws[0].fields for name in options.mapping.values())
        own = options if named else Options()
        told = tell(raws[:HEAD_ROWS], own)
        if raws and not told.schema:
            problems.add(str(path), told.why)
            continue
        rows += [row for raw in raws if (row := to_row(raw, told, own, problems))]
    problems.raise_any(FIX)
    if not rows:
        names = ", ".join(map(str, files))
        raise DataError(f"no rows in {names}", fix="name files with rows as data.clean.against")
    return rows
