"""`tunesmith evaluate`."""

from __future__ import annotations

import click

from tunesmith.cli.options import Asked, json_option, recipe_options
from tunesmith.cli.stages import one_stage

__all__ = ["evaluate"]


@click.command
@recipe_options()
@click.option("--resume", is_flag=True, help="Go on with an unfinished run of the same inputs.")
@json_option
def evaluate(asked: Asked, resume: bool, as_json: bool) -> None:
    """Compare the base and the tuned model.

    Both answer the held-out rows by greedy decoding. The report (HTML and JSON) has the accuracy of
    both, a paired interval of the gain, and rows won and lost.

    \b
    Examples:
      tunesmith evaluate recipe.yaml
      tunesmith evaluate recipe.yaml --set max_rows=100
    """
    one_stage(asked, "evaluate", resume=resume, as_json=as_json)
