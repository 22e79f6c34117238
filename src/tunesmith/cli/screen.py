"""What every command prints with: results on stdout, notes and errors on stderr."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tunesmith.errors import TunesmithError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "console",
    "flat",
    "note",
    "print_json",
    "print_rich",
    "show_bug",
    "show_error",
    "size",
    "table",
    "where",
]

_WIDTH_OF_A_PIPE = 160
_NAME = 80
_STEERING = re.compile("[\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
"""Characters that may stand in JSON as they are, but steer terminals, or cannot be written at all."""


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    click.echo(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def note(text: str) -> None:
    """A line on stderr, so that stdout stays for results; nothing when nobody reads it any more.

    What would steer a terminal is spelled out: names of files and fields stand in notes.
    """
    from tunesmith.telemetry import point_nowhere, visible

    try:
        click.echo(visible(text), err=True)
    except BrokenPipeError:
        point_nowhere(sys.stderr)


def show_error(error: TunesmithError, *, as_json: bool) -> None:
    """What, why and fix: on stderr for people, on stdout as JSON for programs."""
    if as_json:
        print_json({**error.as_dict(), "exit_code": error.exit_code})
        return
    from rich.text import Text

    from tunesmith.telemetry import visible

    text = Text.assemble(("error: ", "bold red"), visible(error.what))
    if error.why:
        text.append_text(Text.assemble("\n", ("  why: ", "bold"), visible(error.why)))
    if error.fix:
        text.append_text(Text.assemble("\n", ("  fix: ", "bold green"), visible(error.fix)))
    console(stderr=True).print(text, soft_wrap=True)


def show_bug(error: Exception, *, as_json: bool) -> None:
    """A traceback, and where to report it."""
    lines = "".join(traceback.format_exception(error))
    if as_json:
        print_json({"error": type(error).__name__, "what": str(error), "why": "a bug in tunesmith"})
    note(lines)
    note(
        "This is a bug in tunesmith, not your mistake. Please report it with the lines above and "
        "the output of `tunesmith doctor --json`."
    )


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str = "",
    right: Sequence[int] = (),
    to: Console | None = None,
) -> None:
    """A table on stdout, or elsewhere.

    Text wraps between words; names and paths of up to 80 characters and figures stay whole.

    A table that is too wide even so is not cut: the terminal breaks its lines.

    Args:
        headers: column names.
        rows: cells; a rich renderable is shown as it is.
        title: above the table.
        right: indexes of columns that are aligned to the right.
        to: another console.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from tunesmith.telemetry import visible

    cells = [
        [cell if isinstance(cell, Text) else Text(visible(str(cell))) for cell in row]
        for row in rows
    ]
    screen = to or console()
    between = 3 * len(headers) - 1
    columns = [[head, *(row[i].plain for row in cells)] for i, head in enumerate(headers)]
    widths = _widths(columns, screen.width - between)
    grid = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, (header, width) in enumerate(zip(headers, widths, strict=True)):
        justify: Literal["right", "left"] = "right" if index in right else "left"
        grid.add_column(header, justify=justify, overflow="fold", width=width)
    for row in cells:
        grid.add_row(*row)
    before = screen.width
    screen.width = max(before, sum(widths) + between)
    screen.print(grid)
    screen.width = before


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Of each column: as wide as its text, the widest narrowed first until all fit, but none below its longest word."""
    from rich.cells import cell_len

    widths = [
        max(cell_len(line) for text in texts for line in text.split("\n")) for texts in columns
    ]
    least = [max(map(_unbroken, texts)) for texts in columns]
    while sum(widths) > room:
        open_ones = [i for i, width in enumerate(widths) if width > least[i]]
        if not open_ones:
            break
        widths[max(open_ones, key=widths.__getitem__)] -= 1
    return [max(width, 1) for width in widths]


def _unbroken(text: str) -> int:
    """Length of the longest word; what is no name (very long, or of a script without spaces) may be broken."""
    return max(
        (len(word) for word in text.split() if word.isascii() and len(word) <= _NAME), default=1
    )


def print_rich(renderable: Any) -> None:
    """A rich renderable on stdout."""
    console().print(renderable)


def where(path: Path) -> str:
    """A path as short as it can be typed from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def size(count: float) -> str:
    """Bytes for people: "98 MB", "1.4 GB" (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1_000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1_000
    return f"{count:.1f} TB"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested facts as dotted names and values, in their order."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def console(*, stderr: bool = False) -> Console:
    """Stdout for people; a pipe is wide, since wrapped tables are hard to `grep`."""
    from rich.console import Console

    from tunesmith.telemetry import Notes

    stream = sys.stderr if stderr else sys.stdout
    kind: type[Console] = Notes if stderr else Console
    if stream.isatty():
        return kind(stderr=stderr, highlight=False)
    # COLUMNS may be exported by a shell and then tells of the terminal, not of this pipe: it can
    # only make the pipe wider.
    columns = os.environ.get("COLUMNS", "")
    width = max(_WIDTH_OF_A_PIPE, int(columns) if columns.isdecimal() else 0)
    return kind(stderr=stderr, highlight=False, width=width)
