"""`tunesmith data inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from tunesmith.cli.data.reading import Reading, reading_options
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json, size, table
from tunesmith.errors import counted

if TYPE_CHECKING:
    from tunesmith.data.inspection import FileFound

__all__ = ["inspect"]

_SHOWN_PROBLEMS = 5


@click.command
@click.argument("files", nargs=-1, required=True)
@reading_options()
@click.option(
    "--rows",
    "n_shown",
    type=click.IntRange(0, 100),
    default=3,
    show_default=True,
    help="How many rows to show of each file.",
)
@json_option
@click.pass_context
def inspect(
    context: click.Context,
    files: tuple[str, ...],
    reading: Reading,
    n_shown: int,
    as_json: bool,
) -> None:
    """How files would be read: form, schema, mapping of fields, first rows.

    FILES are files, folders, patterns, hf://datasets/OWNER/NAME, or - for stdin. The first 1,000
    rows of each are looked at; nothing is written. Forms are jsonl, json, csv, tsv, parquet, txt and
    markdown, also packed by gzip or zstd. Exit code 3 when something cannot be read.

    \b
    Examples:
      tunesmith data inspect examples.jsonl
      tunesmith data inspect questions.csv --field prompt=text --field completion=label
      zcat rows.jsonl.gz | tunesmith data inspect - --json
    """
    from tunesmith.data.inspection import inspect as look
    from tunesmith.errors import DataError

    found = look(files, form=reading.form, options=reading.options, n_shown=n_shown)
    if as_json:
        print_json(found.as_dict())
    else:
        for file in found.files:
            _tell(file)
        for path, why in found.skipped.items():
            note(f"not read: {path}: {why}")
    if found.n_problems:
        context.exit(DataError.exit_code)


def _tell(file: FileFound) -> None:
    """One file, for people."""
    from tunesmith.telemetry import visible

    looked_at = counted(file.looked_at, "row")
    share = f"{file.share:.0%} of {'all' if file.is_whole else 'the first'} {looked_at}"
    mapping = ", ".join(f"{use} = {name}" for use, name in file.mapping.items())
    lines = {
        "file": file.path + (f" ({size(file.bytes)})" if file.bytes is not None else ""),
        "form": _form(file),
        "encoding": file.encoding,
        "schema": f"{file.schema} ({share})" if file.schema else "none",
        "told by": file.schema_told_by,
        "mapping": mapping,
    }
    for name, text in lines.items():
        if text:
            click.echo(f"{name:<9} {visible(text)}")
    if file.fields:
        rows = [
            (found.name, _holds(found.holds), f"{found.rows:,}", found.example)
            for found in file.fields
        ]
        table(("field", "holds", "rows", "first value"), rows, right=(2,))
    for row in file.first:
        click.echo(visible(row["where"]))
        for name, raw in row["fields"].items():
            click.echo(visible(f"    {name}: {raw}"))
    for problem in file.problems[:_SHOWN_PROBLEMS]:
        note(f"problem: {problem}")
    if file.n_problems > _SHOWN_PROBLEMS:
        note(f"problem: ... and {file.n_problems - _SHOWN_PROBLEMS} more (--json names 50)")
    click.echo("")


def _form(file: FileFound) -> str:
    if not file.form:
        return "none: it cannot be read"
    packed = f", packed by {file.compression}" if file.compression else ""
    return f"{file.form}{packed} ({file.told_by})"


def _holds(kinds: Mapping[str, int]) -> str:
    """Kinds of values; with their numbers where there are several."""
    if len(kinds) == 1:
        return str(next(iter(kinds)))
    return ", ".join(f"{kind} ({n:,})" for kind, n in kinds.items())
