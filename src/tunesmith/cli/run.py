"""`tunesmith run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import Asked, fit_option, json_option, recipe_options
from tunesmith.cli.screen import print_json, table, where
from tunesmith.cli.stages import as_dict, print_done, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.pipeline import Stage, Step

__all__ = ["run"]

_STAGE = click.Choice(["data", "train", "evaluate", "export"])
_WILL = {"reuse": "use again", "resume": "resume", "run": "run"}


@click.command
@recipe_options()
@click.option(
    "--from",
    "start",
    type=_STAGE,
    help="Run this stage and all after it anew. What was sealed before stays: the new artifact "
    "lies beside it with the suffix -2, -3 and so on, and the newest counts.",
)
@click.option("--until", type=_STAGE, default="export", help="The last stage to run.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and write nothing.")
@fit_option
@json_option
def run(
    asked: Asked, start: Stage | None, until: Stage, dry_run: bool, fit: bool, as_json: bool
) -> None:
    """Run a recipe's stages; what is unchanged is used again.

    The stages are data, train, evaluate and export. An unfinished stage is resumed. RECIPE is a
    YAML file, or a recipe that ships with tunesmith (`demo`, `sft-jsonl`); of several, later
    ones win.

    \b
    Examples:
      tunesmith run recipe.yaml
      tunesmith run recipe.yaml --dry-run
      tunesmith run recipe.yaml --until train --set train.epochs=1
      tunesmith run recipe.yaml --from evaluate
    """
    from tunesmith import pipeline

    recipe = asked.to_fit(fit).load()
    if dry_run:
        _print_plan(pipeline.plan(recipe, start=start, until=until), as_json=as_json)
        return
    results = pipeline.run(recipe, start=start, until=until, tell=tell)
    if as_json:
        print_json({"stages": [as_dict(done) for done in results]})
    else:
        print_done(results)


def _print_plan(steps: Sequence[Step], *, as_json: bool) -> None:
    if as_json:
        print_json({"stages": [_plan_as_dict(step) for step in steps]})
        return
    rows = [
        (
            step.stage,
            _WILL[step.action],
            where(step.directory) if step.directory else "not known yet",
            step.why,
        )
        for step in steps
    ]
    table(("stage", "would", "directory", "why"), rows)


def _plan_as_dict(step: Step) -> dict[str, object]:
    return {
        "stage": step.stage,
        "action": step.action,
        "directory": str(step.directory) if step.directory else None,
        "why": step.why,
    }
