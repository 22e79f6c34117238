"""`tunesmith forms`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import Asked, complete_form, json_option, recipe_options
from tunesmith.cli.screen import note, print_json, table, where
from tunesmith.errors import ModelError, listed

if TYPE_CHECKING:
    from tunesmith.pipeline import FormRow, FormsTable

__all__ = ["forms"]


@click.command
@recipe_options()
@click.option(
    "--form",
    "chosen",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_form,
    help="Only this form of the bundle. May be repeated.",
)
@json_option
def forms(asked: Asked, chosen: tuple[str, ...], as_json: bool) -> None:
    """Measure every exported form side by side.

    Each form of the recipe's bundle is loaded in a process of its own on this machine: size, load time,
    time to the first token, tokens a second, memory, how close it is to the trained model, and how many
    test rows it answers right, with interval. A plot of quality against size lies beside the table.

    \b
    Examples:
      tunesmith forms recipe.yaml
      tunesmith forms recipe.yaml --form gguf-q8_0 --form gguf-q4_k_m
      tunesmith forms recipe.yaml --json
    """
    from tunesmith import pipeline

    recipe = asked.load("export")
    found = pipeline.measure_forms(recipe, chosen, spelled=asked.spelled("export"))
    if as_json:
        print_json(
            {
                **found.artifact.facts,
                "directory": str(found.artifact.dir),
                "failed": {form: error.as_dict() for form, error in found.failed.items()},
            }
        )
        if found.failed:
            raise click.exceptions.Exit(ModelError.exit_code)
    else:
        _print(found)
        _refuse_failed(found)


def _refuse_failed(found: FormsTable) -> None:
    if found.failed:
        first = next(iter(found.failed.values()))
        raise ModelError(
            f"{len(found.failed)} of {len(found.rows)} forms could not be measured:\n"
            + listed(error.what for error in found.failed.values()),
            why=f"the figures of the others are sealed; of the first, {first.why}",
            fix=first.fix,
        )


def _print(found: FormsTable) -> None:
    from tunesmith.export.quality_plot import draw_terminal

    headers = (
        "form",
        "MB",
        "load s",
        "first token ms",
        "tokens/s",
        "memory MB",
        "same tokens",
        "perplexity",
        f"right ({100 * found.confidence:g} %)",
        "against the report",
    )
    table(headers, [_cells(row) for row in found.rows], right=range(1, 8))
    points = [
        (row.form, row.bytes, row.accuracy, row.interval)
        for row in found.rows
        if row.accuracy is not None and row.interval is not None
    ]
    if len(points) > 1:
        click.echo(draw_terminal(points))
    for row in found.rows:
        if row.on_base and not row.not_timed:
            note(
                f"note: {row.form} was put on {row.on_base}, a GGUF file made for this measurement; "
                "its MB are the adapter's alone"
            )
    for text in found.notes:
        note(f"note: {text}")
    note(f"kept in {where(found.artifact.dir)} (forms.json, quality.png)")


def _cells(row: FormRow) -> tuple[str, ...]:
    size, agreement = f"{row.bytes / 1e6:.1f}", f"{100 * row.parity['greedy_agreement']:.1f} %"
    if row.accuracy is None or row.interval is None:
        return (row.form, size, "", "", "", "", agreement, _ratio(row), row.not_timed, "")
    low, high = row.interval
    return (
        f"{row.form} on F32 base" if row.on_base else row.form,
        size,
        _number(row.load_seconds, 2),
        _number(1000 * (row.first_token_seconds or 0), 0),
        _number(row.tokens_per_second, 0),
        _number((row.peak_rss_bytes or 0) / 1e6, 0),
        agreement,
        _ratio(row),
        f"{100 * row.accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}] n={row.n}",
        _against(row),
    )


def _ratio(row: FormRow) -> str:
    ratio = row.parity.get("perplexity_ratio")
    return "" if ratio is None else f"{100 * (ratio - 1):+.1f} %"


def _against(row: FormRow) -> str:
    if row.points is None or row.points_interval is None:
        return ""
    low, high = row.points_interval
    return f"{row.points:+.1f} points [{low:+.1f}, {high:+.1f}]: {row.verdict}"


def _number(value: Any, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
