"""`tunesmith data stats`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.data.growing import refuse_overwriting, refuse_stdout
from tunesmith.cli.data.places import resolve, sets_option
from tunesmith.cli.data.reading import Reading, reading_options
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json, size, table, where
from tunesmith.errors import counted

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.data.look import Stats
    from tunesmith.data.look.statistics import Lengths
    from tunesmith.data.problems import Problems
    from tunesmith.data.rows import Row

__all__ = ["stats"]

_SHOWN_PROBLEMS = 5
_FIX = "mend the lines named, or say how they are read: --form FORM, --from SCHEMA, --field prompt=NAME"


@click.command
@click.argument("place")
@sets_option
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write a page with plots; it needs no network.",
)
@click.option(
    "--tokens/--no-tokens",
    default=None,
    help="Count tokens as model.base reads them; by default only for --html.",
)
@reading_options()
@json_option
@click.pass_context
def stats(
    context: click.Context,
    /,
    place: str,
    sets: tuple[str, ...],
    html: Path | None,
    tokens: bool | None,
    reading: Reading,
    as_json: bool,
) -> None:
    """Rows by split, lengths, labels, languages and repeats, and where every row came from.

    PLACE is a recipe whose dataset is built, a dataset's folder, a file or folder with rows, or -
    for stdin. Exit code 3 when something cannot be read.

    \b
    Examples:
      tunesmith data stats recipe.yaml --html stats.html
      tunesmith data stats examples.jsonl --tokens
      tunesmith data stats questions.csv --field prompt=text --field completion=category
      tunesmith data stats runs/demo/data-0123456789ab --json
    """
    from tunesmith.data.look import open_place, page
    from tunesmith.data.look import stats as count
    from tunesmith.data.schemas import options_of
    from tunesmith.errors import DataError
    from tunesmith.store import write_atomically

    reading.refuse_sealed(place)
    refuse_stdout(html=html)
    refuse_overwriting([place], None if html is None else str(html))
    recipe, found = resolve(place, sets, reading)
    opened = open_place(found, options_of(recipe.data), recipe.data.form)
    wanted = html is not None if tokens is None else tokens
    tokens_of, why = _counter(recipe) if wanted else (None, "see --tokens")
    figures = count(opened, tokens_of, why)
    if not figures.n_rows:
        opened.problems.raise_any(_FIX)
    if html is not None:
        write_atomically(html, page(figures))
        note(f"wrote {where(html.resolve())}")
    if as_json:
        found_wrong = {"problems": opened.problems.lines} if figures.unreadable else {}
        print_json(
            {
                **(figures.report or {}),
                "stats": figures.as_dict(),
                "rows": figures.rows,
                **found_wrong,
            }
        )
    else:
        _print(figures, opened.told_by)
        _print_problems(opened.problems)
    if figures.unreadable:
        context.exit(DataError.exit_code)


def _counter(recipe: Recipe) -> tuple[Callable[[Row], tuple[int, int] | None] | None, str]:
    """Counts a row's tokens as the base model reads it, and says how; or None, and why not."""
    from tunesmith.data import show
    from tunesmith.errors import EnvironmentProblem, MissingError, ModelError
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_tokenizer, resolve_base

    try:
        base = resolve_base(recipe.model)
        renderer = ChatRenderer(load_tokenizer(base))
    except (EnvironmentProblem, MissingError, ModelError) as error:
        return None, error.what

    def tokens_of(row: Row) -> tuple[int, int] | None:
        try:
            shown = show(row, renderer)
        except ModelError:
            return None
        return len(shown.tokens), shown.n_trained

    return tokens_of, f"as {base.name} reads them"


def _print_problems(found: Problems) -> None:
    for line in found.lines[:_SHOWN_PROBLEMS]:
        note(f"problem: {line}")
    if found.n_problems > _SHOWN_PROBLEMS:
        note(f"problem: ... and {found.n_problems - _SHOWN_PROBLEMS:,} more")
    if found.n_problems:
        note("the rows with problems are not in the figures: `tunesmith data check` names all")


def _print(found: Stats, told_by: Mapping[str, str]) -> None:
    report = found.report or {}
    left_out = report.get("left_out", {}).get("by_overlap", {})
    repeated = report.get("repeated_prompts", {})
    rows = [
        (split, f"{n:,}", repeated.get(split, found.repeated_prompts), left_out.get(split, 0))
        for split, n in found.rows.items()
    ]
    table(("split", "rows", "repeated prompts", "left out as overlaps"), rows, right=(1, 2, 3))
    lengths = [(name, *cells) for name, cells in _lengths(found)]
    table(("length", "median", "95 of 100", "longest"), lengths, right=(1, 2, 3))
    facts = [(name, _listed(counts)) for name, counts in _facts(found) if counts]
    if "score" in report:
        facts.append(("checks", f"{report['score']['points']} of 100, {report['score']['colour']}"))
    table(("", ""), [*facts, ("repeated rows", found.repeats)])
    if found.tokens is None:
        note(f"tokens were not counted: {found.tokens_note}")
    elif found.tokens.n < found.n_rows:
        note(f"tokens of {found.tokens.n:,} rows drawn at random, {found.tokens_note}")
    _print_origin(found, report, told_by)


def _lengths(found: Stats) -> Iterator[tuple[str, tuple[str, str, str]]]:
    named: tuple[tuple[str, Lengths | None], ...] = (
        ("question, characters", found.question),
        ("answer, characters", found.answer),
        ("row, tokens", found.tokens),
        ("trained tokens", found.trained),
    )
    for name, lengths in named:
        if lengths is not None:
            yield name, (f"{lengths.median:,}", f"{lengths.p95:,}", f"{lengths.most:,}")


def _facts(found: Stats) -> Iterator[tuple[str, dict[Any, int]]]:
    yield "kinds", dict(found.kinds)
    yield "turns", dict(found.turns)
    if found.tools:
        yield "with tools", {"rows": found.tools}
    yield f"languages (of {found.sample_rows:,} rows)", dict(found.languages)
    for values in found.fields:
        yield f"{values.name} ({values.distinct} values)", dict(values.top[:8])


def _listed(counts: dict[Any, int]) -> str:
    return ", ".join(f"{name}: {n:,}" for name, n in list(counts.items())[:8])


def _print_origin(found: Stats, report: Any, told_by: Mapping[str, str]) -> None:
    from tunesmith.telemetry import visible

    if report.get("left_out", {}).get("by_require"):
        click.echo(f"left out by data.require: {counted(report['left_out']['by_require'], 'row')}")
    files = [
        (Path(f["path"]).name, f["split"], f["schema"], f["rows"], size(f["bytes"]))
        for f in report.get("files", ())
    ]
    if files:
        table(("file", "split", "schema", "rows", "size"), files, right=(3, 4))
    else:
        for path, name in found.schemas.items():
            click.echo(f"{visible(path)}: {name or 'no schema'} ({visible(told_by.get(path, ''))})")
