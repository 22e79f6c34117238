"""`tunesmith data build`."""

from __future__ import annotations

import click

from tunesmith.cli.options import Asked, json_option, processes_option, recipe_options
from tunesmith.cli.stages import one_stage

__all__ = ["build"]


@click.command
@recipe_options()
@click.option("--resume", is_flag=True, help="Go on with an unfinished build of the same inputs.")
@processes_option
@json_option
def build(asked: Asked, resume: bool, processes: int | None, as_json: bool) -> None:
    """Read, check, split and seal the recipe's examples.

    Everything that is wrong is reported at once, with file and line; nothing is sealed then.

    \b
    Examples:
      tunesmith data build recipe.yaml
      tunesmith data build recipe.yaml --set test_ratio=0.2
      tunesmith data build recipe.yaml --set split.stratify=label --processes 4
    """
    one_stage(asked, "data", resume=resume, as_json=as_json, processes=processes)
