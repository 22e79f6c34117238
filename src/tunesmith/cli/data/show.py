"""`tunesmith data show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.data.places import resolve, sets_option
from tunesmith.cli.data.reading import Reading, reading_options
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import print_json, print_rich

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.data import ShownRow

__all__ = ["show", "show_row"]

_SPLIT = click.Choice(["train", "validation", "test"])


@click.command
@click.argument("place")
@sets_option
@click.option("--split", type=_SPLIT, default="train", help="Which rows of a dataset.")
@click.option(
    "--row",
    "rows",
    type=click.IntRange(min=1),
    multiple=True,
    help="Which row, counted from 1; the first by default. May be repeated.",
)
@click.option(
    "--random", "count", type=click.IntRange(min=1), help="So many rows, drawn by the seed."
)
@reading_options()
@json_option
def show(
    place: str,
    sets: tuple[str, ...],
    split: str,
    rows: tuple[int, ...],
    count: int | None,
    reading: Reading,
    as_json: bool,
) -> None:
    """A row as the model sees it: each token by its role, trained tokens marked.

    PLACE is a recipe whose dataset is built, a dataset's folder, a file with rows, or - for stdin.
    The template is that of model.base.

    \b
    Examples:
      tunesmith data show recipe.yaml
      tunesmith data show examples.jsonl --row 17 --row 18
      tunesmith data show runs/demo/data-0123456789ab --split test --random 3
      tunesmith data show examples.jsonl --set model.base=./my-model
    """
    if rows and count:
        raise click.UsageError("--row and --random exclude each other")
    reading.refuse_sealed(place)
    recipe, found = resolve(place, sets, reading)
    shown = _shown(recipe, found, split, rows or (1,), count)
    if as_json:
        dicts = [one.as_dict() for one in shown]
        print_json(dicts[0] if len(dicts) == 1 and not count else dicts)
        return
    for place_of, one in enumerate(shown):
        if place_of:
            click.echo("")
        _print_row(one)


def _shown(
    recipe: Recipe, place: Path, split: str, numbers: tuple[int, ...], count: int | None
) -> list[ShownRow]:
    """Rows with their tokens, as the recipe's base model reads them."""
    from tunesmith.data import draw_rows, find_rows, show
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_tokenizer, resolve_base

    read = None if place.is_dir() else recipe
    if count:
        rows = draw_rows(place, read, split=split, count=count, seed=recipe.seed)
    else:
        rows = find_rows(place, read, split=split, numbers=numbers)
    renderer = ChatRenderer(load_tokenizer(resolve_base(recipe.model)))
    return [show(row, renderer) for row in rows]


def show_row(recipe: Recipe, place: Path, *, split: str, row: int) -> Any:
    """A row with its tokens, as the recipe's base model reads it."""
    return _shown(recipe, place, split, (row,), None)[0]


def _print_row(shown: ShownRow) -> None:
    """With colours in a terminal, with marks elsewhere."""
    if sys.stdout.isatty():
        print_rich(shown.rich())
    else:
        click.echo(shown.plain())
