"""What the argument PLACE of several commands names, and the option that changes its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.data.reading import Reading
from tunesmith.cli.options import Asked
from tunesmith.errors import MissingError

if TYPE_CHECKING:
    from tunesmith.config import Recipe

__all__ = ["resolve", "sets_option"]

sets_option = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, such as --set model.base=./my-model. May be repeated.",
)


def resolve(
    place: str, sets: tuple[str, ...], reading: Reading | None = None
) -> tuple[Recipe, Path]:
    """The recipe, and the folder or file with the rows.

    A name that ends as recipes do, or that is no file or folder but a recipe that ships with
    tunesmith, is a recipe; its dataset must be built.

    Raises:
        MissingError: no such recipe, or its dataset is not built yet.
        ConfigError: the recipe or a setting is wrong.
    """
    from tunesmith import pipeline

    path = Path(place)
    is_bare = path.name == place and not path.suffix and place != "-" and not path.exists()
    is_recipe = path.suffix in (".yaml", ".yml") or is_bare
    more = () if reading is None else reading.sets
    asked = Asked((place,) if is_recipe else (), (*sets, *more))
    try:
        recipe = asked.load("data")
    except MissingError as error:
        if not is_bare:
            raise
        raise MissingError(
            f"there is nothing at {place!r}",
            why="it is no file, no folder, and no recipe that ships with tunesmith",
            fix="name a file with rows, the folder of a sealed dataset, or a recipe's file",
        ) from error
    if is_recipe:
        return recipe, pipeline.find(recipe, "data", spelled=asked.spelled("data")).dir
    return recipe, path
