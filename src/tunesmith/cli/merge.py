"""`tunesmith merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json, table, where
from tunesmith.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunesmith.export.merge import MergeResult

__all__ = ["merge"]

_METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "concat")


class _Listed(click.ParamType):  # type: ignore[type-arg]
    """Values with commas between them."""

    name = "list"

    def __init__(self, kind: type[str] | type[float]) -> None:
        self.kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        """The values of a list."""
        words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        if not all(words):
            self.fail(f"{value!r} holds an empty value", param, ctx)
        try:
            return tuple(self.kind(word) for word in words)
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 0.5,0.5", param, ctx)


@click.command
@click.option(
    "--models",
    required=True,
    type=_Listed(str),
    metavar="A,B,...",
    help="Training runs, exports, PEFT adapters or model folders, with commas between.",
)
@click.option(
    "--weights",
    type=_Listed(float),
    metavar="0.4,0.6",
    help="One a model, or one for all; the same for each by default.",
)
@click.option(
    "--method",
    default="linear",
    show_default=True,
    type=click.Choice(_METHODS),
    help="How; concat makes one adapter of adapters.",
)
@click.option(
    "--base",
    metavar="MODEL",
    help="What adapters are put on and differences are taken from: a folder, a .gguf file, `embedded`, or "
    "a Hub id that is in the local cache. Default: what the models name.",
)
@click.option(
    "--density",
    "densities",
    type=_Listed(float),
    metavar="0.5,0.5",
    help="Share of each model's differences that stays (ties, dare). Default: 1.",
)
@click.option(
    "--lambda", "scale", type=float, help="Multiplies the merged differences. Default: 1."
)
@click.option("--t", type=float, help="slerp: 0 is the first model, 1 the second. Default: 0.5.")
@click.option(
    "--normalize/--no-normalize",
    "normalise",
    default=None,
    help="Divide by the sum of the weights. Default: for linear and ties.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of dare's random choice.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A new folder for the result.",
)
@click.option(
    "--evaluate",
    "recipe",
    metavar="RECIPE",
    help="Then let the result and its parents answer this recipe's test rows, and compare them.",
)
@click.option(
    "--export",
    "forms",
    metavar="RECIPE",
    help="Then export the result in this recipe's forms, each checked; `tunesmith serve` takes the bundle.",
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of these recipes, by its full name, such as --set "
    "export.limits.gguf-q8_0.mean_kl=0.05. May be repeated.",
)
@json_option
def merge(
    recipe: str | None, forms: str | None, sets: tuple[str, ...], as_json: bool, **asked: Any
) -> None:
    """Merge several models, or adapters, into one.

    Every weight is merged in float32 and rounded once, into the format of the base. The result
    is a sealed folder that can be a recipe's model.base; after concat it holds an adapter.

    \b
    Examples:
      tunesmith merge --models runs/a/train-01,runs/b/train-02 --weights 0.5,0.5 --out merged
      tunesmith merge --models a,b,c --method ties --density 0.5 --base base --out merged
      tunesmith merge --models a,b --method slerp --t 0.3 --out merged --evaluate recipe.yaml
    """
    from tunesmith import pipeline
    from tunesmith.cli.options import Asked as Recipes
    from tunesmith.export.merge import Asked, run

    _refuse_idle(sets, judged=recipe is not None, exported=forms is not None)
    judging, exporting = (
        None if name is None else Recipes((name,), sets).load() for name in (recipe, forms)
    )
    for loaded in (judging, exporting):
        if loaded is not None:
            pipeline.check_rows(loaded)
    result = run(Asked(**asked), lambda plan: pipeline.check_after_merge(plan, judging, exporting))
    if not as_json:
        _print(result)
    found = _as_dict(result)
    ranking = None
    if judging is not None:
        ranking = pipeline.rank_merge(judging, result)
        found["evaluation"] = {**ranking.facts, "directory": str(ranking.dir)}
        if not as_json:
            _print_ranking(found["evaluation"])
    if exporting is not None:
        bundle = pipeline.export_merge(exporting, result, ranking)
        found["export"] = {"directory": str(bundle.dir), "facts": dict(bundle.facts)}
        if not as_json:
            click.echo(f"export: {', '.join(bundle.facts['forms'])} in {where(bundle.dir)}")
    if as_json:
        print_json(found)


def _refuse_idle(sets: tuple[str, ...], *, judged: bool, exported: bool) -> None:
    """Refuse settings of a stage that this command does not run.

    Raises:
        ConfigError: names them.
    """
    if sets and not (judged or exported):
        raise click.UsageError("--set changes the recipe of --evaluate or --export: name one")
    stages = {"evaluate": judged, "export": exported, "serve": False}
    for stage in (stage for stage, runs in stages.items() if not runs):
        idle = [one for one in sets if one.strip().startswith(f"{stage}.")]
        if idle:
            known = stage != "serve"
            raise ConfigError(
                f"--set {idle[0]} would change nothing",
                why=f"this merge runs no stage `{stage}`",
                fix=f"{f'add --{stage} RECIPE, or ' if known else ''}leave this --set away",
            )


def _as_dict(result: MergeResult) -> dict[str, Any]:
    return {
        "directory": str(result.artifact.dir),
        "model": str(result.dir),
        "sha256": result.artifact.sha256,
        "reused": result.reused,
        "facts": dict(result.artifact.facts),
    }


def _print(result: MergeResult) -> None:
    facts = result.artifact.facts
    if result.reused:
        note(f"{where(result.artifact.dir)} holds this very merge: it is used again")
    for text in result.plan.notes:
        note(f"note: {text}")
    rows = [
        (parent["path"], parent["kind"], f"{parent['weight']:g}", parent["quantised_base"] or "")
        for parent in facts["parents"]
    ]
    table(("parent", "", "weight", "trained on a base in"), rows, right=(2,))
    for given, effect in result.effects.items():
        click.echo(f"{given}: {effect.told}")
    base = f" of {facts['base']['name']}" if "base" in facts else ""
    what = (
        f"an adapter of rank {facts['rank']}"
        if "rank" in facts
        else f"{facts['weights']:,} weights"
    )
    click.echo(f"{facts['method']['kind']}: {what}{base}, sealed in {where(result.artifact.dir)}")
    click.echo(f"model: {where(result.dir)}")


def _print_ranking(ranking: Mapping[str, Any]) -> None:
    rows = []
    for found in ranking["models"]:
        low, high = found["interval"]
        gain = found["against_best"]
        rows.append(
            (
                found["name"],
                f"{found['correct']} of {ranking['n']}",
                f"{found['accuracy']:.1%}",
                f"{low:.1%} to {high:.1%}",
                ""
                if gain is None
                else f"{gain['points']:+.1f} [{gain['interval_points'][0]:+.1f}, "
                f"{gain['interval_points'][1]:+.1f}], p = {gain['p_value']:.3g}: {gain['verdict']}",
            )
        )
    level = f"{100 * ranking['confidence']:g} % interval"
    title = f"task {ranking['task']}, n = {ranking['n']} test rows, greedy decoding"
    headers = ("model", "correct", "accuracy", level, f"points against {ranking['best_parent']}")
    table(headers, rows, title=title, right=(1, 2))
    for text in ranking["warnings"]:
        note(f"note: {text}")
    click.echo(f"answers: {where(Path(ranking['directory']))}")
