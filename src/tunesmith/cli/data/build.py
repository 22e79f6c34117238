"""`tunesmith data build | show | stats`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import Asked, json_option, recipe_options
from tunesmith.cli.screen import print_json, print_rich, size, table
from tunesmith.cli.stages import one_stage

if TYPE_CHECKING:
    from tunesmith.config import Recipe

__all__ = ["build", "print_row", "show", "show_row", "stats"]

_SPLIT = click.Choice(["train", "validation", "test"])
_SETS = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, such as --set model.base=./my-model. May be repeated.",
)


@click.command
@recipe_options()
@click.option("--resume", is_flag=True, help="Go on with an unfinished build of the same inputs.")
@json_option
def build(asked: Asked, resume: bool, as_json: bool) -> None:
    """Read, check, split and seal the recipe's examples.

    Everything that is wrong is reported at once, with file and line; nothing is sealed then.

    \b
    Examples:
      tunesmith data build recipe.yaml
      tunesmith data build recipe.yaml --set test_ratio=0.2
    """
    one_stage(asked, "data", resume=resume, as_json=as_json)


@click.command
@click.argument("place")
@_SETS
@click.option("--split", type=_SPLIT, default="train", help="Which rows of a dataset.")
@click.option("--row", default=1, show_default=True, help="Which row, counted from 1.")
@json_option
def show(place: str, sets: tuple[str, ...], split: str, row: int, as_json: bool) -> None:
    """A row as the model sees it: each token by its role, trained tokens marked.

    PLACE is a recipe whose dataset is built, a dataset's folder, or a JSONL file.

    \b
    Examples:
      tunesmith data show recipe.yaml
      tunesmith data show examples.jsonl --row 17
      tunesmith data show runs/demo/data-0123456789ab --split test
    """
    recipe, found = _resolve(place, sets)
    shown = show_row(recipe, found, split=split, row=row)
    if as_json:
        print_json(shown.as_dict())
    else:
        print_row(shown)


@click.command
@click.argument("place")
@_SETS
@json_option
def stats(place: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Rows of each split, what was left out, and where every row came from.

    PLACE is a recipe whose dataset is built, or a dataset's folder.

    \b
    Examples:
      tunesmith data stats recipe.yaml
      tunesmith data stats runs/demo/data-0123456789ab --json
    """
    from tunesmith.store import Artifact

    report = Artifact.open(_resolve(place, sets)[1], "data").read_json("report.json")
    if as_json:
        print_json(report)
        return
    repeated, left_out = report["repeated_prompts"], report["left_out"]
    rows = [
        (split, n, repeated[split], left_out["by_overlap"].get(split, 0))
        for split, n in report["rows"].items()
    ]
    table(("split", "rows", "repeated prompts", "left out as overlaps"), rows, right=(1, 2, 3))
    if left_out["by_require"]:
        click.echo(f"left out by data.require: {left_out['by_require']} rows")
    files = [
        (f["path"], f["split"], f["schema"], f["rows"], size(f["bytes"])) for f in report["files"]
    ]
    table(("file", "split", "schema", "rows", "size"), files, right=(3, 4))


def show_row(recipe: Recipe, place: Path, *, split: str, row: int) -> Any:
    """A row with its tokens, as the recipe's base model reads it."""
    from tunesmith.data import find_row, show
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_tokenizer, resolve_base

    is_file = place.is_file()
    found = find_row(place, recipe if is_file else None, split=split, number=row)
    return show(found, ChatRenderer(load_tokenizer(resolve_base(recipe.model))))


def print_row(shown: Any) -> None:
    """With colours in a terminal, with marks elsewhere."""
    import sys

    if sys.stdout.isatty():
        print_rich(shown.rich())
    else:
        click.echo(shown.plain())


def _resolve(place: str, sets: tuple[str, ...]) -> tuple[Recipe, Path]:
    """The recipe, and the folder or file with the rows."""
    from tunesmith import pipeline

    path = Path(place)
    is_recipe = not path.is_dir() and path.suffix not in (".jsonl", ".json")
    asked = Asked((place,) if is_recipe else (), sets)
    recipe = asked.load("data")
    if is_recipe:
        return recipe, pipeline.find(recipe, "data", spelled=asked.spelled).dir
    return recipe, path
