"""`tunesmith data convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.data.growing import refuse_overwriting, refuse_stdout
from tunesmith.cli.data.reading import Reading, complete_schema, reading_options
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json
from tunesmith.errors import counted

if TYPE_CHECKING:
    from tunesmith.data.conversion import Conversion

__all__ = ["convert"]


@click.command
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--to",
    "schema",
    required=True,
    metavar="SCHEMA",
    shell_complete=complete_schema,
    help="What to write; see above.",
)
@click.option("--out", default="-", metavar="FILE", help="Where to; stdout when not given, or -.")
@click.option(
    "--form",
    default="",
    metavar="FORM",
    help="jsonl, json, csv, tsv or parquet; by the name of --out, else jsonl. A name that ends with "
    ".gz is compressed.",
)
@reading_options("--from-form")
@click.option("--rest", default="", metavar="FILE", help="Where rows go that SCHEMA cannot hold.")
@click.option("--strict", is_flag=True, help="Refuse when anything would be lost.")
@json_option
def convert(files: tuple[str, ...], reading: Reading, as_json: bool, **target: Any) -> None:
    """Write rows in another schema or form, and say what cannot be kept.

    FILES are files, folders, or - for stdin. Values keep their exact characters. What SCHEMA has no
    place for is counted and shown with its first row; a row that it cannot hold at all stops the
    command, unless --rest names a file for such rows. Nothing is written then.

    \b
    Schemas:
      chat                     messages [{role, content}], tools
      sharegpt                 conversations [{from, value}], system, tools
      chatml                   text with <|im_start|> and <|im_end|>
      instruction              instruction, input, output, system, history
      prompt-completion        prompt, completion (texts)
      prompt-completion-turns  prompt [turns], completion [turns], tools
      preference               prompt [turns], chosen [turn], rejected [turn], tools
      preference-text          prompt, chosen, rejected (texts)
      preference-implicit      chosen [turns], rejected [turns]: whole conversations
      preference-hh            chosen, rejected (texts of Human: and Assistant:)
      feedback                 prompt [turns], completion [turn], label (true or false)
      feedback-text            prompt, completion (texts), label (true or false)
      problem                  prompt [turns], answer (any JSON)
      problem-text             prompt (text), answer (any JSON)
      text                     text

    \b
    Examples:
      tunesmith data convert sharegpt.json --to chat --out chat.jsonl
      tunesmith data convert questions.csv --field prompt=question --field completion=sql --to chat
      cat rows.jsonl | tunesmith data convert - --to instruction > alpaca.jsonl
    """
    from tunesmith.data.conversion import STANDARD, Target
    from tunesmith.data.conversion import convert as run

    asked = Target(**target)
    refuse_stdout(rest=asked.rest)
    for place in (asked.out, asked.rest or None):
        refuse_overwriting(files, place)
    if as_json and asked.out == STANDARD:
        raise click.UsageError("--json and the rows would both go to stdout: name a file by --out")
    made = run(files, asked, form=reading.form, options=reading.options)
    if as_json:
        print_json(made.as_dict())
    else:
        _tell(made, asked.out, asked.rest)


def _tell(made: Conversion, out: str, rest: str) -> None:
    for file in made.files:
        path = "stdin" if file["path"] == "-" else file["path"]
        note(f"{path}: {counted(file['rows'], 'row')}, read as {file['schema']} ({file['why']})")
        named = [f"{use} = {name}" for use, name in file["mapping"].items() if use != name]
        if named:
            note(f"      fields: {', '.join(named)}")
    for what, loss in made.lost.items():
        note(f"lost: {what}, in {counted(loss.rows, 'row')}, first {loss.first}")
        if loss.example:
            note(f"      {loss.example}")
    if made.rest:
        note(f"left out: {counted(made.rest, 'row')} that {made.schema} cannot hold, in {rest}")
    where = "stdout" if out == "-" else out
    note(
        f"written: {made.written} of {counted(made.read, 'row')} as {made.schema} ({made.form}) to {where}"
    )
