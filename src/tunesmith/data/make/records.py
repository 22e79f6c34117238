"""Records of a user's table or JSON lines, as builders read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.make.rows import existing
from tunesmith.data.problems import Problems
from tunesmith.errors import DataError, listed
from tunesmith.registry import nearest

__all__ = ["fields_or_refuse", "records"]


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row's place ("file:line") and its fields.

    Raises:
        MissingError: nothing is there.
        DataError: names every row that cannot be read.
    """
    from tunesmith.data.read import open_source

    existing(path, folder=False)
    problems = Problems()
    for raw in open_source(path).rows(problems):
        yield f"{path.name}:{raw.line}", {name: found.value for name, found in raw.fields.items()}
    problems.raise_any("mend the lines named, or take them out")


def fields_or_refuse(path: Path, wanted: dict[str, str], has: dict[str, Any]) -> None:
    """Check that the first record has the fields that an option names.

    Args:
        wanted: option -> field.

    Raises:
        DataError: names every field that is not there, and what is.
    """
    missing = [
        f"{option} {name}: no such field{nearest(name, has)}"
        for option, name in wanted.items()
        if name not in has
    ]
    if missing:
        raise DataError(
            f"{path}:\n{listed(missing)}",
            why=f"its fields are {', '.join(has) or 'none'}",
            fix="name them with the options",
        )
