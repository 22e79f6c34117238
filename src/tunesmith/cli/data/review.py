"""`tunesmith data review`: a queue of rows and one key a decision."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tunesmith.cli.data.growing import (
    database_option,
    databases_of,
    refuse_overwriting,
)
from tunesmith.cli.data.reading import Reading, reading_options
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json
from tunesmith.errors import counted

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.data.annotate import Review, Suspect
    from tunesmith.data.rows import Row

__all__ = ["review"]

Key = Literal["accept", "reject", "edit", "skip", "undo", "quit"]
KEYS: Mapping[str, Key] = {
    "a": "accept",
    "r": "reject",
    "e": "edit",
    "s": "skip",
    "u": "undo",
    "q": "quit",
}
_LONGEST_SHOWN = 4_000


@click.command
@click.argument("file")
@click.option("--by", metavar="FIELD", help="Order by a field of the rows, largest first.")
@click.option("--out", metavar="FILE", help="The rows after the review; NAME.reviewed.jsonl.")
@click.option("--only-accepted", is_flag=True, help="Leave out what nobody accepted.")
@database_option
@reading_options()
@json_option
def review(
    file: str, by: str | None, out: str | None, reading: Reading, as_json: bool, **asked: Any
) -> None:
    """Look through rows in the terminal, the most suspicious first.

    Keys: a accept, r reject, e edit in $EDITOR, s skip, u undo, q quit. Every decision is on the disk
    at once, in NAME.review.jsonl beside the file: the same command goes on after any stop. At the end,
    and at q, the result is written: all rows but the rejected ones, edited ones as edited.

    \b
    Examples:
      tunesmith data review rows.jsonl
      tunesmith data review rows.jsonl --by loss
      tunesmith data review made.jsonl --only-accepted --out good.jsonl
    """
    from tunesmith.data.annotate import Review, ReviewPlaces
    from tunesmith.data.grow.source import read_rows
    from tunesmith.errors import DataError

    if file == "-":
        raise click.UsageError(
            "a review reads its keys from stdin, and goes on from a file beside the rows: save them to "
            "a file, and name it"
        )
    if out == "-":
        raise click.UsageError(
            "a review writes rows, and rejected ones beside them: name a file by --out"
        )
    refuse_overwriting([file], out)
    rows = read_rows([file], reading.options, reading.form)
    if not rows:
        raise DataError(f"{file} has no rows to look at", fix="name a file with rows")
    queue = _queue(rows, by, databases_of(asked["databases"]))
    places = ReviewPlaces.beside(Path(file), Path(out) if out else None)
    with Review(rows, queue, places, only_accepted=asked["only_accepted"]) as state:
        try:
            _decide_all(state)
        except KeyboardInterrupt:
            note("stopped; every decision is kept")
        state.write()
        _tell(state, as_json=as_json)


def _queue(rows: list[Row], by: str | None, databases: dict[str, Path]) -> list[Suspect]:
    from tunesmith.data.annotate import by_field, most_suspicious
    from tunesmith.data.check import CheckOptions

    if by is None:
        return most_suspicious(rows, CheckOptions(databases=databases))
    if not any(by in row.meta for row in rows):
        names = sorted({name for row in rows for name in row.meta})
        raise click.UsageError(
            f"--by {by!r}: no row has such a field; they have {', '.join(names) or 'none'}"
        )
    return by_field(rows, by)


def _decide_all(state: Review) -> None:
    """Show rows and take keys until q or the end of stdin; the last decision can be undone, too."""
    from tunesmith.cli.screen import console

    screen = console(stderr=True)
    with _keys() as keys:
        choice: Key = "skip"
        while choice != "quit":
            suspect = state.next()
            if suspect is None:
                screen.print("every row is decided", style="green")
                choice = _choice(keys, screen, "[u]ndo [q]uit ")
            else:
                _show(screen, state, suspect)
                choice = _decided(state, suspect, keys, screen)
            if choice == "undo":
                undone = state.undo()
                screen.print("nothing to undo" if undone is None else "undone", style="yellow")


def _decided(state: Review, suspect: Suspect, keys: Iterator[str], screen: Console) -> Key:
    """Take the decision about one row, and say what was pressed at last."""
    while (choice := _choice(keys, screen)) == "edit":
        text = _edit(suspect.row, screen)
        if text is not None:
            state.decide(suspect.index, "edit", text)
            return "edit"
    if choice in ("accept", "reject", "skip"):
        state.decide(suspect.index, choice)
    return choice


def _choice(
    keys: Iterator[str],
    screen: Console,
    offered: str = "[a]ccept [r]eject [e]dit [s]kip [u]ndo [q]uit ",
) -> Key:
    """The next key that means something; `quit` at the end of stdin."""
    screen.print(offered, end="", markup=False)
    for key in keys:
        if key in KEYS:
            screen.print(KEYS[key], style="bold")
            return KEYS[key]
    return "quit"


@contextmanager
def _keys() -> Iterator[Iterator[str]]:
    """Single keys of a terminal; the characters of a pipe otherwise."""
    if not sys.stdin.isatty():
        yield iter(lambda: sys.stdin.read(1), "")
        return
    try:
        import termios
        import tty
    except ModuleNotFoundError:  # not a POSIX system: click knows its keys
        yield iter(click.getchar, "")
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)
        yield (os.read(number, 1).decode("latin-1") or "q" for _ in iter(int, 1))
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _show(screen: Console, state: Review, suspect: Suspect) -> None:
    """One row: place, what is suspicious, and its texts with everything that steers spelled out."""
    from rich.panel import Panel
    from rich.text import Text

    from tunesmith.telemetry import visible

    counts = state.counts
    done = ", ".join(f"{n} {choice}" for choice, n in sorted(counts.items())) or "nothing yet"
    body = Text()
    for reason in suspect.reasons[:8]:
        body.append(f"! {visible(reason)}\n", "yellow")
    for role, text in _parts(suspect.row):
        body.append(f"{visible(role)}\n", "bold")
        cut = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]} ..."
        body.append(f"{visible(cut)}\n")
    title = Text(f"{visible(suspect.row.where)}  ({state.n_left} left; {done})")
    screen.print(Panel(body, title=title, title_align="left"))


def _parts(row: Row) -> list[tuple[str, str]]:
    """Who says what in a row, and its other fields."""
    import json

    def said(turn: Any) -> str:
        content = turn.get("content")
        others = {name: turn[name] for name in turn if name not in ("role", "content")}
        more = json.dumps(others, ensure_ascii=False) if others else ""
        return "\n".join(part for part in (content, more) if isinstance(part, str) and part)

    found = [(str(turn.get("role")), said(turn)) for turn in row.messages]
    if row.kind == "pair":
        found[-1] = ("chosen", found[-1][1])
        found.append(("rejected", said(row.rejected[0])))
    elif row.kind in ("problem", "text"):
        found.append(("answer" if row.kind == "problem" else "text", row.answer))
    elif row.kind == "feedback":
        found.append(("label", json.dumps(row.value["label"])))
    if row.meta:
        found.append(("meta", json.dumps(dict(row.meta), ensure_ascii=False)))
    return found


def _edit(row: Row, screen: Console) -> str | None:
    """The row's text after $EDITOR; None when nothing changed or the row would be wrong."""
    from tunesmith.data.annotate.editing import on_lines
    from tunesmith.data.annotate.review import edited
    from tunesmith.telemetry import visible

    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    before = on_lines(row.text)
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder:
        path = Path(folder) / "row.json"
        path.write_text(before, encoding="utf-8")
        try:
            code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
        except (OSError, ValueError) as error:
            screen.print(f"{editor!r} cannot be started: {error}", style="red", markup=False)
            return None
        try:
            after = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            screen.print(f"the edited row cannot be read: {error}", style="red", markup=False)
            return None
    if code or after == before:
        screen.print("not changed", style="yellow")
        return None
    found = edited(row, after)
    if isinstance(found, str):
        screen.print(f"not taken: {visible(found)}", style="red", markup=False)
        return None
    return found.text


def _tell(state: Review, *, as_json: bool) -> None:
    counts = {choice: state.counts[choice] for choice in ("accept", "reject", "edit", "skip")}
    if as_json:
        places = {name: str(path) for name, path in vars(state.places).items()}
        print_json({"rows": len(state.rows), "left": state.n_left, **counts, **places})
        return
    said = ", ".join(f"{n} {choice}" for choice, n in counts.items() if n) or "no decisions"
    note(f"{said}; {state.n_left} of {counted(len(state.rows), 'row')} not looked at")
    note(f"rows: {state.places.out}; rejected and edited ones as they were: {state.places.side}")
