"""`tunesmith data check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.data.growing import refuse_overwriting, refuse_stdout
from tunesmith.cli.data.reading import Reading, reading_options
from tunesmith.cli.options import Asked, json_option
from tunesmith.cli.screen import note, print_json, print_rich, table, where
from tunesmith.errors import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunesmith.config import Recipe
    from tunesmith.data.check import CheckOptions, Finding
    from tunesmith.data.check.files import CheckResult, Wanted

__all__ = ["check"]

_COLOURS = {"green": "bold green", "yellow": "bold yellow", "red": "bold red"}
_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}
_LONG_BYTES = 4_000_000


@click.command
@click.argument("places", nargs=-1, required=True)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, such as --set check.domain=sql. May be repeated.",
)
@click.option(
    "--database",
    "databases",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Run SQL answers on this SQLite file, or on the tables of this .sql script. May be repeated: "
    "rows then name one by their field `database`; unless NAME is given it is called as its file.",
)
@click.option(
    "--model/--no-model",
    "with_model",
    default=None,
    help="Check lengths, truncation, learned tokens and the stop token with the tokenizer of "
    "model.base. Done when transformers is installed, unless said otherwise.",
)
@click.option("--all", "every", is_flag=True, help="Print every finding, not the first of a check.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write all findings there, as JSON lines."
)
@click.option("--strict", is_flag=True, help="Exit with 3 when there is an error.")
@click.option("--strict-warnings", is_flag=True, help="Exit with 3 when there is a warning.")
@click.option("--processes", type=click.IntRange(min=1), help="Worker processes; one a core.")
@reading_options()
@json_option
def check(places: tuple[str, ...], **asked: Any) -> None:
    """Everything that is wrong with rows, all at once, and a score with its reasons.

    PLACES are files, folders, `-` for stdin, one recipe, or one sealed dataset's folder.

    \b
    Examples:
      tunesmith data check examples.jsonl --no-model
      tunesmith data check questions.csv --field prompt=text --field completion=category
      tunesmith data check train.jsonl --database shop.sqlite --strict --out findings.jsonl
      cat rows.jsonl | tunesmith data check - --json
    """
    from tunesmith.data.check.files import check_files

    refuse_stdout(out=asked["out"])
    refuse_overwriting(places, str(asked["out"]) if asked["out"] else None)
    wanted, options = _asked(places, asked)
    kept: list[Finding] = []
    with _written(asked["out"]) as write, _bar(wanted) as advance:

        def each(found: Finding) -> None:
            if asked["every"]:
                kept.append(found)
            write(found)

        result = check_files(
            wanted, options, each=each, advance=advance, processes=asked["processes"]
        )
    if asked["as_json"]:
        found = {"findings": [one.as_dict() for one in kept]} if asked["every"] else {}
        print_json({**result.as_dict(), **found})
    else:
        _print(result, kept if asked["every"] else None)
        note(
            "private data and secrets are not looked for here: "
            "`tunesmith data clean FILE --pii mask --secrets mask --dry-run` does"
        )
        if asked["out"]:
            note(f"all findings are in {where(asked['out'])}")
    _fail_if_strict(result, errors=asked["strict"], warnings=asked["strict_warnings"])


def _asked(places: tuple[str, ...], asked: Mapping[str, Any]) -> tuple[Wanted, CheckOptions]:
    """What to read and what to look for, of a recipe, a sealed dataset, or files."""
    from dataclasses import replace

    from tunesmith.data.check.places import resolve
    from tunesmith.errors import ConfigError

    recipes = tuple(place for place in places if place.endswith((".yaml", ".yml")))
    others = tuple(place for place in places if place not in recipes)
    if recipes and others:
        raise ConfigError(
            "a recipe is checked alone",
            why=f"other places were named beside it: {', '.join(others)}",
            fix="run the command once for each",
        )
    reading: Reading = asked["reading"]
    reading.refuse_sealed(*others)
    recipe = Asked(recipes, (*asked["sets"], *reading.sets)).load("data")
    wanted, options = resolve(recipe, others, " ".join(recipes))
    named = _databases(asked["databases"])
    return replace(wanted, model=_model(recipe, asked["with_model"])), options.on(named)


def _model(recipe: Recipe, with_model: bool | None) -> Any:
    """The model whose tokenizer is used; None when it is not wanted, or cannot be had unasked."""
    from importlib.util import find_spec

    from tunesmith.data.check.files import meter
    from tunesmith.errors import EnvironmentProblem, MissingError, ModelError

    if with_model is not None:
        return recipe.model if with_model else None
    if find_spec("transformers") is None or find_spec("torch") is None:
        return None
    try:
        meter(recipe.model)
    except (EnvironmentProblem, MissingError, ModelError) as error:
        note(f"checks in tokens are left out: {error.what}")
        return None
    return recipe.model


@contextmanager
def _written(out: Path | None) -> Iterator[Callable[[Finding], None]]:
    """Writes findings to a file that is moved into place when all are there."""
    import json

    from tunesmith.store import writing

    if out is None:
        yield lambda _found: None
        return
    with (
        writing(out) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream,
    ):

        def write(found: Finding) -> None:
            stream.write(f"{json.dumps(found.as_dict(), ensure_ascii=False)}\n")

        yield write


@contextmanager
def _bar(wanted: Wanted) -> Iterator[Callable[[int], None]]:
    """A bar on stderr when there is much to read."""
    from tunesmith.telemetry import progress

    paths = [Path(file) for file in wanted.files if file != "-"]
    n_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    if n_bytes < _LONG_BYTES and not (wanted.model and n_bytes > _LONG_BYTES // 10):
        yield lambda _n_bytes: None
        return
    with progress("checking", n_bytes // 1_000, unit="kB") as bar:
        yield lambda n_bytes: bar.advance(n_bytes // 1_000)


def _databases(asked: tuple[str, ...]) -> dict[str, Path]:
    """The databases of FILE, which is called as its file, or NAME=FILE."""
    found: dict[str, Path] = {}
    for text in asked:
        name, equals, file = text.partition("=")
        if not equals or Path(text).exists():
            name, file = Path(text).stem, text
        if name in found:
            raise click.UsageError(
                f"--database: two are called {name!r}: name each by NAME=FILE, as the rows do"
            )
        found[name] = Path(file)
    return found


def _print(result: CheckResult, every: list[Finding] | None) -> None:
    from rich.text import Text

    from tunesmith.telemetry import visible

    score = result.score
    for file, schema in result.schemas.items():
        # Why no schema fits is a finding, below.
        why = "" if schema == "unknown" else f" ({result.told_by[file]})"
        click.echo(visible(f"{file}: {schema} rows{why}"))
    told = ", ".join(sorted({d for d in result.domains.values() if d not in ("none", "auto")}))
    head = counted(result.n_rows, "row") + (f", answers in {told}" if told else "")
    if result.n_unusable:
        head += f", {result.n_unusable:,} of them unusable"
    if result.n_left_out:
        head += f"; {result.n_left_out:,} more are left out by data.require"
    click.echo(head)
    line = Text.assemble(
        "score ", (f"{score.points} of 100, {score.colour}", _COLOURS[score.colour]), "\n"
    )
    print_rich(line)
    if every is not None:
        for one in every:
            _print_finding(one)
    rows = [
        (
            Text(reason.check),
            Text(reason.severity, style=_STYLES[reason.severity]),
            f"{reason.findings:,}",
            f"{reason.share:.2%}" if reason.rows else "whole",
            f"{reason.points:g}",
        )
        for reason in score.reasons
    ]
    if rows:
        heads = ("check", "severity", "findings", "rows", "points lost")
        table(heads, rows, right=(2, 3, 4))
    if every is None:
        _print_first(result)


def _print_first(result: CheckResult) -> None:
    """The first findings of each check, the checks that cost most first."""
    tally = result.tally
    for reason in result.score.reasons:
        key = (reason.check, reason.severity)
        for one in tally.first[key]:
            _print_finding(one)
        if more := tally.findings[key] - len(tally.first[key]):
            click.echo(f"  … and {more:,} more of {reason.check}: --all prints them")


def _print_finding(found: Finding) -> None:
    from rich.text import Text

    from tunesmith.cli.screen import console
    from tunesmith.telemetry import visible

    text = Text.assemble(
        (found.severity, _STYLES[found.severity]),
        f" {visible(found.check)} {visible(found.line)}",
    )
    if found.fix:
        text.append(f"\n  fix: {visible(found.fix)}", "dim")
    console().print(text, soft_wrap=True)


def _fail_if_strict(result: CheckResult, *, errors: bool, warnings: bool) -> None:
    """End with the exit code of wrong data."""
    from tunesmith.errors import DataError

    n_errors, n_warnings = result.tally.count("error"), result.tally.count("warning")
    n_found = (n_errors if errors or warnings else 0) + (n_warnings if warnings else 0)
    if n_found:
        note(f"strict: {counted(n_errors, 'error')}, {counted(n_warnings, 'warning')}")
        click.get_current_context().exit(DataError.exit_code)
