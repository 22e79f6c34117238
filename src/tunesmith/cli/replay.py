"""`tunesmith replay`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.screen import print_json, table

if TYPE_CHECKING:
    from tunesmith.train.replay import ReplayResult

__all__ = ["replay"]

NOT_REPRODUCED = 1


@click.command
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    help="Number format; that of the training run when not given.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="Folder of the base model, when it is no longer where it was.",
)
@json_option
@click.pass_context
def replay(
    ctx: click.Context, folder: Path, precision: str | None, base: Path | None, as_json: bool
) -> None:
    """Run a micro batch again whose loss or gradient was not finite.

    FOLDER is the failure record that the error of the training run named. Every layer is watched; the exit
    code is 0 when the same thing goes wrong in the same place, and 1 when it does not.

    \b
    Examples:
      tunesmith replay runs/demo/train-0123456789ab/scratch/nonfinite-step-7
      tunesmith replay runs/demo/train-0123456789ab/scratch/nonfinite-step-7 --precision fp32
    """
    from tunesmith.train.replay import replay as run_again

    result = run_again(folder, precision=precision, base_dir=base)
    if as_json:
        print_json(result.as_dict())
    else:
        _print(result)
    ctx.exit(0 if result.is_reproduced else NOT_REPRODUCED)


def _print(result: ReplayResult) -> None:
    nothing = "everything is finite"
    rows: list[tuple[str, object]] = [
        ("after step", result.step),
        (f"lines of {result.split}.jsonl", ", ".join(map(str, result.lines))),
        (f"in training ({result.trained_precision})", _words(result.expected, nothing)),
        (f"now ({result.precision})", _words(result.found, nothing)),
        ("reproduced", "yes" if result.is_reproduced else "no"),
    ]
    table(("", ""), rows)
    finding = result.found or result.expected
    if finding is not None and finding.trail:
        trail = [(name, f"{largest:.4g}") for name, largest in finding.trail]
        table(("layer", "largest magnitude of its output"), trail, right=(1,))


def _words(finding: object, nothing: str) -> str:
    from tunesmith.train.nonfinite import Finding

    return finding.sentence() if isinstance(finding, Finding) else nothing
