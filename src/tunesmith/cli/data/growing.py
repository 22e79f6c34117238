"""Options that the commands which grow and judge rows share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from tunesmith.cli.screen import note

__all__ = ["database_option", "databases_of", "refuse_overwriting", "refuse_stdout"]

database_option = click.option(
    "--database",
    "databases",
    multiple=True,
    metavar="NAME=FILE",
    help="An SQLite file that queries run on; rows name it in their field `database`. May be repeated.",
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


def refuse_stdout(**targets: str | Path | None) -> None:
    """Stop where stdout is named for what goes beside the rows.

    Args:
        targets: an option's name, with _ for - -> what it was given.

    Raises:
        UsageError: one is `-`.
    """
    for name, target in targets.items():
        if str(target) == "-":
            option = name.replace("_", "-")
            raise click.UsageError(
                f"--{option} - is no place: stdout takes none but rows, so name a file"
            )


def refuse_overwriting(files: Sequence[str], out: str | None) -> None:
    """Stop before a result takes the place of what it is made of; say it when another file will go.

    Raises:
        UsageError: `out` is one of the files.
    """
    if out is None or out == "-":
        return
    for file in files:
        if file != "-" and Path(file).resolve() == Path(out).resolve():
            raise click.UsageError(f"{out!r} is the file that is read: name another one")
    if os.path.isfile(out):  # A name that is too long is an error where it is written.
        note(f"{out} is there already, and is replaced once all is made")
