"""`tunesmith config explain | schema`."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from tunesmith.cli.options import Asked, json_option, recipe_options
from tunesmith.cli.screen import print_json, where

__all__ = ["config"]


@click.group
def config() -> None:
    """Every setting: its value, origin and meaning.

    \b
    Examples:
      tunesmith config explain recipe.yaml
      tunesmith config schema > recipe.schema.json
    """


@config.command
@recipe_options(required=False)
@json_option
def explain(asked: Asked, as_json: bool) -> None:
    """Each setting of a recipe with its value, where that comes from, and what it does.

    Without a RECIPE: the defaults.

    \b
    Examples:
      tunesmith config explain
      tunesmith config explain recipe.yaml --set train.epochs=1
    """
    from tunesmith.config import explain as explain_recipe

    values = explain_recipe(asked.load())
    if as_json:
        print_json([vars(value) for value in values])
        return
    for value in values:
        click.secho(f"{value.key} = {_short(value.value)}", bold=True, nl=False)
        click.echo(f"   ({_origin(value.origin)})")
        click.echo(textwrap.indent(textwrap.fill(" ".join(value.doc.split()), 96), "    "))


@config.command
def schema() -> None:
    """JSON Schema of a recipe, for editors that complete and check YAML.

    \b
    Examples:
      tunesmith config schema > recipe.schema.json
    """
    from tunesmith.config import Recipe

    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema"} | _schema(Recipe))


def _schema(recipe: type) -> dict[str, object]:
    found: dict[str, object] = recipe.model_json_schema()  # type: ignore[attr-defined]
    return found


def _origin(origin: str) -> str:
    file, colon, line = origin.rpartition(":")
    return f"{where(Path(file))}:{line}" if colon and line.isdigit() else origin


def _short(value: object) -> str:
    if value is None:
        return "not set"
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)
