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

    Writes each form that export.forms names, a Modelfile and a model card. Every form is shown the
    trained model's prompts and answers; one that differs too much fails the export.

    Forms: adapter, merged, gguf-f16, gguf-bf16, gguf-q8_0, gguf-q6_k, gguf-q5_k_m, gguf-q4_k_m,
    gguf-q4_0, gguf-lora, onnx, torchao-int8, torchao-int4, bnb-int8, bnb-nf4, awq, gptq, pruned.

    \b
    Examples:
      tunesmith export recipe.yaml
      tunesmith export recipe.yaml --set 'forms=[adapter, gguf-q8_0, gguf-q4_k_m]'
    """
    one_stage(asked, "export", resume=resume, as_json=as_json)
