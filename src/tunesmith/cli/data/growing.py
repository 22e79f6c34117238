"""Options that the commands which grow and judge rows share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tunesmith.data.schemas import Options

__all__ = ["database_option", "databases_of", "field_option", "reading", "refuse_overwriting"]

database_option = click.option(
    "--database",
    "databases",
    multiple=True,
    metavar="NAME=FILE",
    help="An SQLite file that queries run on; rows name it in their field `database`. May be repeated.",
)

field_option = click.option(
    "--field",
    "mapping",
    multiple=True,
    metavar="USE=NAME",
    help="A field's name in the files, such as prompt=question. May be repeated.",
)


def databases_of(pairs: Sequence[str]) -> dict[str, Path]:
    """NAME=FILE pairs as a mapping.

    Raises:
        UsageError: one is no such pair, or its file is not there.
    """
    found: dict[str, Path] = {}
    for pair in pairs:
        name, equals, file = pair.partition("=")
        if not equals or not name or not Path(file).is_file():
            raise click.UsageError(
                f"--database {pair!r} is not NAME=FILE with a file that is there"
            )
        found[name] = Path(file)
    return found


def refuse_overwriting(files: Sequence[str], out: str | None) -> None:
    """Stop before a result takes the place of what it is made of.

    Raises:
        UsageError: `out` is one of the files.
    """
    if out is None or out == "-":
        return
    for file in files:
        if file != "-" and Path(file).resolve() == Path(out).resolve():
            raise click.UsageError(f"--out {out!r} is the file that is read: name another one")


def reading(pairs: Sequence[str]) -> Options:
    """USE=NAME pairs as options of reading.

    Raises:
        UsageError: one is no such pair.
    """
    from tunesmith.data.schemas import ALIASES, Options
    from tunesmith.registry import nearest

    found: dict[str, str] = {}
    for pair in pairs:
        use, equals, name = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--field {pair!r} is not USE=NAME, such as prompt=question")
        if use not in ALIASES:
            known = ", ".join(ALIASES)
            raise click.UsageError(f"--field {use!r}{nearest(use, ALIASES)} is not one of {known}")
        found[use] = name
    return Options(found)
