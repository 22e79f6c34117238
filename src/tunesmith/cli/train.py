"""`tunesmith train`."""

from __future__ import annotations

import click

from tunesmith.cli.options import Asked, fit_option, json_option, recipe_options
from tunesmith.cli.stages import one_stage

__all__ = ["train"]


@click.command
@recipe_options()
@click.option("--resume", is_flag=True, help="Go on with an unfinished run of the same inputs.")
@fit_option
@json_option
def train(asked: Asked, resume: bool, fit: bool, as_json: bool) -> None:
    """Train on the recipe's dataset.

    The dataset must be built (`tunesmith data build`). Ctrl-C saves a checkpoint; --resume goes on
    from the newest one, also after a crash.

    \b
    Examples:
      tunesmith train recipe.yaml
      tunesmith train recipe.yaml --set method.rank=32 --set epochs=1
      tunesmith train recipe.yaml --fit
      tunesmith train recipe.yaml --resume
    """
    one_stage(asked.to_fit(fit), "train", resume=resume, as_json=as_json)
