"""`tunesmith data clean`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.data.growing import refuse_stdout
from tunesmith.cli.data.reading import Reading, reading_options
from tunesmith.cli.data.split import warn_of_leaks
from tunesmith.cli.options import Asked, json_option, processes_option
from tunesmith.cli.screen import console, note, print_json, table, where
from tunesmith.errors import counted

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.data.clean import CleanResult

__all__ = ["clean"]

_DROP = click.Choice(["keep", "drop"])
_MASK = click.Choice(["keep", "mask", "drop"])
_STANDARD = "-"
_SHOWN_FILES = 10
_KEYS = {"pii": "pii.action", "secrets": "secrets.action"}
"""Options whose setting has another name."""
_DEFAULTS = {"exact": "drop", "normalize": True}


def _rules(command: Any) -> Any:
    """The options that are settings of `data.clean`, each by its own name."""
    options = [
        click.option(
            "--unreadable",
            type=click.Choice(["refuse", "drop"]),
            help="Rows that cannot be read: refuse the files (the default), or drop these rows.",
        ),
        click.option("--exact", type=_DROP, help="Rows whose conversation an earlier row has."),
        click.option("--near", type=_DROP, help="Rows that say what an earlier row says."),
        click.option("--semantic", type=_DROP, help="Rows that mean what an earlier row means."),
        click.option("--pii", type=_MASK, help="Personal data: e-mail, phone, cards, ..."),
        click.option("--secrets", type=_MASK, help="Keys, tokens, passwords."),
        click.option("--normalize", is_flag=True, default=None, help="Mend characters and spaces."),
        click.option("--html", type=click.Choice(["keep", "strip"]), help="HTML tags in texts."),
        click.option("--empty", type=_DROP, help="Rows without an answer."),
        click.option("--refusals", type=_DROP, help="Rows whose answer refuses."),
        click.option("--languages", metavar="CODES", help="Drop other languages than en,de,..."),
        click.option(
            "--drop-where",
            multiple=True,
            metavar="FIELD=VALUE",
            help="Rows with this value in this field. May be repeated.",
        ),
        click.option(
            "--against",
            multiple=True,
            metavar="FILE",
            help="Rows that hold what this test or benchmark file asks. May be repeated.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--out",
    default="cleaned",
    show_default=True,
    metavar="FOLDER",
    help="Where rows.jsonl, dropped.jsonl, changed.jsonl and report.json go; - for the rows on stdout.",
)
@click.option("--sides", metavar="FOLDER", help="Where the other three go with --out -.")
@_rules
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another setting of data.clean, such as --set min_answer_characters=3. May be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@reading_options()
@processes_option
@json_option
def clean(
    files: tuple[str, ...],
    out: str,
    sides: str | None,
    sets: tuple[str, ...],
    reading: Reading,
    dry_run: bool,
    processes: int | None,
    as_json: bool,
    **rules: Any,
) -> None:
    """Drop duplicates and unwanted rows, mend texts, mask what is private.

    FILES are files or folders of any form and schema, - for stdin, or one recipe, whose data.clean and training files
    are then used. Without a rule, exact duplicates are dropped and texts are mended. Every dropped and changed row is
    in a side file with its rule and reason: rows in = rows out + rows dropped.

    \b
    Examples:
      tunesmith data clean examples.jsonl
      tunesmith data clean a.jsonl b.csv --near drop --pii mask --secrets mask --out cleaned
      tunesmith data clean train.jsonl --against test.jsonl --dry-run
      cat rows.jsonl | tunesmith data clean - --exact drop --out - > clean.jsonl
    """
    from tunesmith.config import refuse_unread
    from tunesmith.data.clean import clean_files, plan_clean
    from tunesmith.data.schemas import options_of

    if as_json and out == _STANDARD and not dry_run:
        raise click.UsageError(
            "--json and the rows would both go to stdout: name a folder by --out"
        )
    if sides and out != _STANDARD:
        raise click.UsageError("--sides goes with --out -; without it all files go to --out")
    refuse_stdout(sides=sides)
    recipe, places = _asked(files, sets, rules, reading)
    plan_clean(recipe.data.clean)
    refuse_unread(recipe, "data.clean")
    target: Any = sys.stdout.buffer if out == _STANDARD else Path(out)
    result = clean_files(
        places,
        recipe.data.clean,
        out=None if dry_run else target,
        sides=Path(sides) if sides and not dry_run else None,
        options=options_of(recipe.data),
        form=recipe.data.form,
        processes=processes,
    )
    if as_json:
        print_json({**result.as_dict(), "out": None if dry_run else out})
        return
    _tell(result)
    if dry_run:
        note("nothing was written (--dry-run)")
    elif out != _STANDARD:
        note(
            f"written to {where(Path(out))}: rows.jsonl, dropped.jsonl, changed.jsonl, report.json"
        )
    elif not sides and (result.rows_changed or result.rows_in > result.rows_out):
        note("dropped and changed rows were not kept; --sides FOLDER keeps them with their reasons")
    if not dry_run and (out != _STANDARD or sides):
        _warn_of_originals(recipe, result)


def _warn_of_originals(recipe: Recipe, result: CleanResult) -> None:
    """Side files hold rows as they came, what was masked included."""
    actions = {recipe.data.clean.pii.action, recipe.data.clean.secrets.action}
    if actions != {"keep"} and (result.dropped or result.changed):
        note(
            "dropped.jsonl and changed.jsonl hold rows as they were, with all that was masked: "
            "do not pass them on"
        )


def _asked(
    files: Sequence[str], sets: tuple[str, ...], rules: Mapping[str, Any], reading: Reading
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with all rules, and the files."""
    recipes = [file for file in files if file.endswith((".yaml", ".yml"))]
    if recipes and len(recipes) < len(files):
        raise click.UsageError("name either files or a recipe")
    given = {name: value for name, value in rules.items() if value not in (None, ())}
    if not (recipes or given.keys() - {"unreadable"} or sets):
        given |= _DEFAULTS
    recipe = Asked(tuple(recipes), (*_as_sets(given), *map(_full, sets), *reading.sets)).load()
    if not recipes:
        return recipe, tuple(files)
    return recipe, _training_files(recipe)


def _as_sets(given: Mapping[str, Any]) -> list[str]:
    import json

    made = []
    for name, value in given.items():
        if name == "drop_where":
            made += [f"data.clean.drop_where.{pair}" for pair in map(_pair, value)]
        elif name == "languages":
            made.append(f"data.clean.languages={json.dumps(value.split(','))}")
        else:
            shown = value if isinstance(value, str) else json.dumps(value)
            made.append(f"data.clean.{_KEYS.get(name, name)}={shown}")
    return made


def _pair(pair: str) -> str:
    if "=" not in pair:
        raise click.BadParameter(f"{pair!r} is not FIELD=VALUE", param_hint="--drop-where")
    return pair


def _full(pair: str) -> str:
    """A setting of `data.clean` by its full name; `clean.` may stand before it, as in a recipe's `data`."""
    key = pair.partition("=")[0]
    return pair if key.startswith("data.") else f"data.clean.{pair.removeprefix('clean.')}"


def _training_files(recipe: Recipe) -> tuple[str, ...]:
    from tunesmith.config import FilesSource, MixSource
    from tunesmith.errors import ConfigError

    source = recipe.data.source
    if isinstance(source, FilesSource):
        return tuple(source.train)
    if isinstance(source, MixSource):
        return tuple(path for paths in source.parts.values() for path in paths)
    raise ConfigError(
        "the recipe names no files to clean",
        why=f"its data.source is the sample {source.name!r}",
        fix="set data.source.kind to files, or name the files on the command line",
    )


def _tell(result: CleanResult) -> None:
    """How files were read, and counts by rule with an example each, on stderr: stdout may carry the rows."""
    for file in result.files[:_SHOWN_FILES]:
        read = counted(file["rows"], f"{file['schema']} row")
        note(f"{file['path']}: {read} ({file['why']})")
    if len(result.files) > _SHOWN_FILES:
        note(f"... and {counted(len(result.files) - _SHOWN_FILES, 'more file')}")
    rows = [
        (action, rule, count, "; ".join(f"{at}: {why}" for at, why in result.examples[rule][:1]))
        for action, counts in (("dropped", result.dropped), ("changed", result.changed))
        for rule, count in counts.items()
    ]
    if rows:
        table(("what", "rule", "rows", "for example"), rows, right=(2,), to=console(stderr=True))
    warn_of_leaks(result.dropped.get("contamination", 0), result.rows_in)
    note(
        f"{counted(result.rows_in, 'row')} in = {result.rows_out:,} out + {sum(result.dropped.values()):,} dropped; "
        f"{result.rows_changed} of those out were changed"
    )
