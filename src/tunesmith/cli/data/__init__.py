"""`tunesmith data`: a table of commands over the data room."""

from __future__ import annotations

import click

from tunesmith.cli.lazy import LazyGroup

__all__ = ["COMMANDS", "data"]

_HERE = "tunesmith.cli.data"
COMMANDS: dict[str, tuple[str, str]] = {
    "build": (f"{_HERE}.build:build", "Read, check, split and seal the recipe's examples."),
    "show": (
        f"{_HERE}.build:show",
        "A row as the model sees it: each token by its role, trained tokens marked.",
    ),
    "stats": (
        f"{_HERE}.build:stats",
        "Rows of each split, what was left out, and where every row came from.",
    ),
}
"""Name -> where it is, and its one line of help."""


@click.group(cls=LazyGroup, table=COMMANDS)
def data() -> None:
    """From any file to a sealed, clean dataset.

    Every row is accounted for: kept, changed or dropped with a reason.

    \b
    Examples:
      tunesmith data build recipe.yaml
      tunesmith data show recipe.yaml --row 3
      tunesmith data stats recipe.yaml
    """
