"""`tunesmith prove`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import Asked, fit_option, json_option, recipe_options
from tunesmith.cli.screen import console, note, print_json, where
from tunesmith.cli.stages import tell

if TYPE_CHECKING:
    from tunesmith.pipeline import Proved
    from tunesmith.train.prove import Proof, Report

__all__ = ["prove"]

RED = 10
"""The exit code of `TrainingError`."""
_MARKS = {"green": ("ok", "green"), "red": ("RED", "bold red"), "skipped": ("--", "yellow")}


def _known(
    context: click.Context, option: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    from tunesmith.registry import nearest
    from tunesmith.train.prove import PROOFS

    for name in names:
        if name not in PROOFS:
            hint = nearest(name, PROOFS)
            raise click.BadParameter(f"no proof {name!r}{hint}; there are {', '.join(PROOFS)}")
    return names


@click.command
@recipe_options()
@click.option("--quick", is_flag=True, help="Only what needs no model: the rows and their masks.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    callback=_known,
    help="Only this proof and what it needs. May be repeated.",
)
@fit_option
@json_option
def prove(asked: Asked, quick: bool, only: tuple[str, ...], fit: bool, as_json: bool) -> None:
    """Prove on your model and rows that training is exact.

    All rows are checked for their masks, stop tokens and whole answers. On a sample of rows, gradients,
    packing, the fast path, resuming, saving and merging are held against the plain way; then the
    longest batch, a short training, an evaluation and an export are rehearsed. Nothing but the report
    is left behind. The exit code is 10 when a proof is red.

    \b
    Examples:
      tunesmith prove recipe.yaml
      tunesmith prove recipe.yaml --quick
      tunesmith prove recipe.yaml --only fast --only resume
      tunesmith prove recipe.yaml --fit
      tunesmith prove recipe.yaml --json
    """
    from tunesmith import pipeline

    if quick and only:
        raise click.UsageError(
            "--quick takes the proofs that need no model, all of them: leave --only out"
        )
    asked = asked.to_fit(fit)
    recipe = asked.load("train")
    found = pipeline.prove(
        recipe, quick=quick, only=only, spelled=asked.spelled("train"), tell=tell
    )
    if as_json:
        print_json(_as_dict(found))
    else:
        _print(found)
    raise SystemExit(0 if found.report.ok else RED)


def _as_dict(found: Proved) -> dict[str, Any]:
    directory = None if found.artifact is None else str(found.artifact.dir)
    return {**found.report.as_dict(), "directory": directory}


def _print(found: Proved) -> None:
    from rich.text import Text

    report, out = found.report, console()
    out.print(Text(_headline(report)))
    for proof in report.proofs:
        out.print(_line(proof), soft_wrap=True)
    red = [proof for proof in report.proofs if proof.status == "red"]
    for proof in red:
        out.print()
        out.print(_explained(proof), soft_wrap=True)
    out.print()
    out.print(_verdict(report))
    if found.artifact is not None:
        note(f"kept in {where(found.artifact.dir)}")
    else:
        note(f"the report is not kept: {found.not_stored}")


def _headline(report: Report) -> str:
    facts = report.facts
    if "base" not in facts:
        return f"{facts['recipe']}, {facts['method']}"
    sample = facts["sample"]
    return (
        f"{facts['base']['name']}, {facts['method']}, {facts['precision']} on {facts['device']} with "
        f"{facts['threads']} threads; sample: {sample['rows']} of {sample['of_rows']:,} rows, "
        f"{sample['tokens']} tokens, seed {sample['seed']}"
    )


def _line(proof: Proof) -> Any:
    from rich.text import Text

    mark, style = _MARKS[proof.status]
    text = Text.assemble((f"{mark:>3}", style), f"  {proof.name:<11}{proof.title}")
    if proof.figure is not None:
        text.append(f": {_number(proof.figure)}")
        text.append(f" (limit {_number(proof.limit)} {proof.unit})", style="dim")
    if proof.status != "red" and proof.detail:
        text.append(f"\n     {' ' * 11}{proof.detail}", style="dim")
    return text


def _explained(proof: Proof) -> Any:
    from rich.text import Text

    text = Text.assemble((f"{proof.name}: ", "bold red"), proof.detail)
    if proof.why:
        text.append_text(Text.assemble(("\n  why: ", "bold"), proof.why))
    if proof.remedy:
        text.append_text(Text.assemble(("\n  fix: ", "bold green"), proof.remedy))
    return text


def _verdict(report: Report) -> Any:
    from rich.text import Text

    counts = dict.fromkeys(_MARKS, 0)
    for proof in report.proofs:
        counts[proof.status] += 1
    words = (
        f"{counts['green']} green, {counts['red']} red, {counts['skipped']} not taken, "
        f"in {report.seconds:.0f} s"
    )
    return Text(words, style="bold green" if report.ok else "bold red")


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.1e}"
