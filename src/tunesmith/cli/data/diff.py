"""`tunesmith data diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.data.places import resolve, sets_option
from tunesmith.cli.data.reading import reading_options
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import console, note, print_json, table
from tunesmith.errors import counted

if TYPE_CHECKING:
    from rich.text import Text

    from tunesmith.data.look import Difference
    from tunesmith.data.look.difference import Change, Found

__all__ = ["diff"]

_STYLES = {"=": "", "-": "red strike", "+": "green"}
_BY = {"prompt": "same prompt", "likeness": "nearly the same prompt"}
_MARKS = {"=": ("", ""), "-": ("[-", "-]"), "+": ("{+", "+}")}


@click.command
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@sets_option
@click.option("--limit", default=20, show_default=True, help="Rows shown of each sort; 0 for none.")
@reading_options()
@json_option
@click.pass_context
def diff(
    context: click.Context, /, old: str, new: str, limit: int, as_json: bool, **asked: Any
) -> None:
    """Rows that were added, removed, changed or moved to another split.

    OLD and NEW are recipes whose datasets are built, datasets' folders, or files with rows. Their
    order does not count. A row is matched by its content, then by its prompt, then by a nearly
    equal prompt. Like diff, the command ends with 0 when both are the same and with 1 when not.

    \b
    Examples:
      tunesmith data diff old.jsonl new.jsonl
      tunesmith data diff runs/demo/data-0123456789ab runs/demo/data-ba9876543210 --json
    """
    from tunesmith.data.look import diff as compare
    from tunesmith.data.look import open_place
    from tunesmith.data.schemas import options_of

    places = []
    asked["reading"].refuse_sealed(old, new)
    for name in (old, new):
        recipe, found = resolve(name, asked["sets"], asked["reading"])
        places.append(open_place(found, options_of(recipe.data), recipe.data.form))
    difference = compare(*places)
    if as_json:
        print_json(difference.as_dict())
    else:
        _print(difference, limit)
    context.exit(0 if difference.is_empty else 1)


def _print(found: Difference, limit: int) -> None:
    rows = [(split, f"{a:,}", f"{b:,}", f"{b - a:+,}") for split, (a, b) in found.rows.items()]
    table(("split", "old", "new", ""), rows, right=(1, 2, 3))
    click.echo(
        f"{found.equal:,} equal, {len(found.changed):,} changed, {len(found.removed):,} removed, "
        f"{len(found.added):,} added"
    )
    for way, n in found.moved.items():
        click.echo(f"moved {way}: {counted(n, 'row')}")
    for change in found.changed[:limit]:
        _show(_changed(change))
    for sign, gone in (("-", found.removed), ("+", found.added)):
        for row in gone[:limit]:
            _show(_whole(sign, row))
    hidden = sum(max(0, len(rows) - limit) for rows in (found.changed, found.removed, found.added))
    if hidden:
        note(f"not shown: {counted(hidden, 'more row')}: see --limit and --json")


def _show(text: Text) -> None:
    """Long lines are not cut into several: a pipe's reader searches them."""
    console().print(text, soft_wrap=True)


def _changed(change: Change) -> Text:
    from rich.text import Text

    from tunesmith.telemetry import visible

    old, new = change.old, change.new
    text = Text(f"\n~ {visible(old.where)} -> {visible(new.where)} ({_BY[change.by]})\n", "bold")
    before = (old.question, old.answer)
    after = (new.question, new.answer)
    for label, one, other in zip(("question", "answer  "), before, after, strict=True):
        text.append(f"  {label} ", "not bold dim")
        text.append_text(_words(one, other))
        text.append("\n")
    if before == after:
        text.append("  other fields differ\n", "not bold dim")
        text.append("  ").append_text(_words(old.text, new.text)).append("\n")
    return text


def _words(old: str, new: str) -> Text:
    """Words that stay, go and come, told by colour and by marks."""
    from rich.text import Text

    from tunesmith.data.look.difference import words
    from tunesmith.telemetry import visible

    text = Text(style="not bold")
    for sign, part in words(old, new):
        begin, end = _MARKS[sign]
        text.append(f"{begin}{visible(part)}{end}", _STYLES[sign])
    return text


def _whole(sign: str, row: Found) -> Text:
    from rich.text import Text

    from tunesmith.telemetry import visible

    text = Text(f"\n{sign} {visible(row.where)} ({row.split})\n", _STYLES[sign].split(" ")[0])
    for label, said in (("question", row.question), ("answer  ", row.answer)):
        if said:
            text.append(f"  {label} ", "dim").append(f"{visible(said)}\n")
    return text
