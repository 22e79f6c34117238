"""Progress on stderr: a live bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import io
import os
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bar", "Notes", "console", "point_nowhere", "progress", "silenced", "visible"]

_SECONDS_BETWEEN_LINES = 15.0
_SPEED_SECONDS = 600.0
"""Time left is told from the speed over so long: single parts may take minutes, and show no speed in rich's 30 s."""
_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_HARMLESS = frozenset("\n\t\u200c\u200d\u00ad")
_silence: ContextVar[io.StringIO | None] = ContextVar("silence", default=None)


class Notes(Console):
    """A console on stderr that outlives its reader: the work goes on, unseen.

    With `|& tee log`, Ctrl-C ends `tee` together with this process, which has to save yet. rich's own
    console would exit with 1 at the next line.
    """

    def on_broken_pipe(self) -> None:
        """Called when nobody reads any more: print nowhere from now on."""
        self.quiet = True
        point_nowhere(self.file)


def point_nowhere(stream: IO[str]) -> None:
    """Let what is written to a stream go to the null device, also what it could not bring out yet.

    Nothing changes for a stream that is no file of the system.
    """
    with suppress(io.UnsupportedOperation):
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def console() -> Console:
    """The console that all progress and notes go to: stderr, so that stdout stays for results."""
    silence = _silence.get()
    if silence is not None:
        return Console(file=silence, highlight=False)
    return Notes(stderr=True, highlight=False)


@contextmanager
def silenced() -> Iterator[io.StringIO]:
    """Progress and notes of the block go into a text instead, when a stage runs inside another one."""
    text = io.StringIO()
    token = _silence.set(text)
    try:
        yield text
    finally:
        _silence.reset(token)


def visible(text: str) -> str:
    """Text of a model or of a user, safe for a terminal: what would steer it is spelled out.

    C0 and C1 controls but line feed and tab, and format characters (Unicode category Cf, such as
    the ones that turn the direction of text or are not seen) become `\\x1b` or `\\u202e`. The
    joiners U+200C and U+200D stay: emoji and several scripts are written with them.
    """
    return "".join(map(_visible_char, text))


def _visible_char(char: str) -> str:
    if char in _HARMLESS or unicodedata.category(char) not in _STEERING:
        return char
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


@dataclass
class Bar:
    """A running count. Get one by `progress`."""

    total: int
    title: str
    out: Console
    live: Progress | None
    task: TaskID | None
    done: int = 0
    note: str = ""
    _started: float = field(default_factory=time.monotonic)
    _printed: float = field(default_factory=time.monotonic)
    _first: int = 0

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count on, and show `note` (such as the loss) beside the bar."""
        self.done += count
        self.note = self.note if note is None else note
        if self.live is not None and self.task is not None:
            self.live.update(self.task, completed=self.done, note=self.note)
        elif time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            self.out.print(f"{self.title}: {self.done}/{self.total} {self.note} {self._left()}")

    def print(self, message: object) -> None:
        """Print above the bar."""
        (self.live.console if self.live is not None else self.out).print(message)

    def _left(self) -> str:
        rate = (self.done - self._first) / max(time.monotonic() - self._started, 1e-9)
        return f"({(self.total - self.done) / rate:.0f} s left)" if rate > 0 else ""


@contextmanager
def progress(title: str, total: int, *, start: int = 0, unit: str = "") -> Iterator[Bar]:
    """A bar with count, time elapsed and time left.

    Args:
        title: what is done.
        total: units of work.
        start: units that an earlier attempt did.
        unit: what units are called, in the plural where that ends in s.
    """
    out = console()
    if total == 1:
        unit = unit.removesuffix("s")
    if not out.is_terminal:
        out.print(f"{title}: {total} {unit}".rstrip())
        yield Bar(total, title, out, None, None, done=start, _first=start)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(
        *columns, console=out, refresh_per_second=4, speed_estimate_period=_SPEED_SECONDS
    ) as live:
        task = live.add_task(title, total=total, completed=start, note="")
        yield Bar(total, title, out, live, task, done=start, _first=start)
