"""`tunesmith export`."""

from __future__ import annotations

import click

from tunesmith.cli.options import Asked, json_option, recipe_options
from tunesmith.cli.stages import one_stage

__all__ = ["export"]


@click.command
@recipe_options()
@click.option("--resume", is_flag=True, help="Go on with an unfinished run of the same inputs.")
@json_option
def export(asked: Asked, resume: bool, as_json: bool) -> None:
    """Write the model out, each form checked against it.

    Writes the adapter, merged safetensors, GGUF files, a Modelfile and a model card. Every form
    answers the same prompts as the trained model; one that differs too much fails the export.

    \b
    Examples:
      tunesmith export recipe.yaml
      tunesmith export recipe.yaml --set 'forms=[adapter, gguf-q8_0]'
    """
    one_stage(asked, "export", resume=resume, as_json=as_json)
