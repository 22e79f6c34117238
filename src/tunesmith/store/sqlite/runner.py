"""Runs SQL that may come from anywhere in a process of its own, within time, memory and row limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tunesmith.errors import EnvironmentProblem

__all__ = [
    "SCRIPT_SECONDS",
    "SCRIPT_STEPS",
    "Base",
    "Cell",
    "Mode",
    "QueryFailed",
    "QueryRows",
    "QueryRunner",
]

_CHILD = Path(__file__).with_name("child.py")
_START_SECONDS = 60.0
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""All that the child gets: what some installations of Python need to start."""
_OUT_OF_TIME = (-14, 142)
"""How the child ends when the system's timer ends it: see `child.OUT_OF_TIME`."""
_MIB = 2**20
_MAX_OPEN = 64
SCRIPT_SECONDS = 60.0
SCRIPT_STEPS = 500_000_000
"""Instructions of SQLite's virtual machine for a whole script: a million rows take some 30 million."""

Cell = int | float | str | bytes | None
Mode = Literal["read", "look", "verify", "compile", "create", "fill"]
"""What a statement may do; see `child.MODES`."""


@dataclass(frozen=True)
class Base:
    """What a statement runs on. Equal ones are the same database of a runner.

    Attributes:
        kind: a SQLite `file`, opened as immutable and to be read only; a `script` file, whose database is
            made in memory and then only read; `tables`, made in memory by the statements in `text`.
        text: the path, or the statements; of `tables` any name will do that begins with `--`.
        seconds: longest time that making it may take; None for that of a query.
        steps: most steps of SQLite to make it; None for those of a query.
    """

    kind: Literal["file", "script", "tables"]
    text: str = ""
    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def of(cls, path: Path) -> Base:
        """Of a SQLite file, or of a script where the name ends in .sql."""
        if path.suffix.lower() == ".sql":
            return cls("script", str(path.absolute()), SCRIPT_SECONDS, SCRIPT_STEPS)
        return cls("file", str(path.absolute()))


@dataclass(frozen=True)
class QueryRows:
    """What a query returned.

    Attributes:
        rows: in the order SQLite gave them, columns as selected.
        columns: how many columns.
        more: it had more rows than were asked for; they were not fetched.
    """

    rows: tuple[tuple[Cell, ...], ...]
    columns: int
    more: bool


@dataclass(frozen=True)
class QueryFailed:
    """Why a statement gave no rows.

    Attributes:
        error: SQLite's message, or the limit that it broke.
        kind: `time`, `steps`, `size`, `memory`, `process` (it broke it), `file`, `no query`, or the name of
            `sqlite3`'s class of errors.
        is_opening: the database itself cannot be opened or made.
    """

    error: str
    kind: str = field(default="", compare=False)
    is_opening: bool = field(default=False, compare=False)


class QueryRunner:
    """A child process that runs SQL; started on first use, again after it died.

    Files are read-only three times over (`mode=ro`, `PRAGMA query_only`, an authorizer that allows
    nothing but reading) and opened as `immutable`; the process may write no file and has bounded memory.
    A statement that does not end is ended with its process. A runner belongs to the process and the thread
    that use it.

    Args:
        seconds: longest time a statement may run.
        steps: most steps of SQLite that it may take; None for any number.
        heap_mib: memory that SQLite may use.
    """

    def __init__(self, seconds: float, *, steps: int | None = None, heap_mib: int = 256) -> None:
        self._seconds, self._steps, self._heap_mib = seconds, steps, heap_mib
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._is_asking = False
        self._open: OrderedDict[Base, int] = OrderedDict()
        self._n_opened = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """No process outlives its runner."""
        self.close()

    def run(
        self,
        base: Base | Path,
        sql: str,
        *,
        max_rows: int,
        mode: Mode = "read",
        values: Sequence[Cell] = (),
    ) -> QueryRows | QueryFailed:
        """Run one statement, fetching at most `max_rows` rows.

        Anything that is not one statement of the mode comes back as `QueryFailed`; nothing raises for
        what stands in `sql`.

        Args:
            base: what it runs on; a path is that of a SQLite file.
            values: of the marks `?` in it; blobs are no values here.

        Raises:
            EnvironmentProblem: no child process can be started.
        """
        request = {"sql": sql, "mode": mode, "values": list(values), "max_rows": max_rows}
        reply = self._on(base, {"do": "run", **request, **self._limits})
        if isinstance(reply, QueryFailed):
            return reply
        rows = tuple(tuple(map(_cell, row)) for row in reply["rows"])
        return QueryRows(rows, reply["columns"], reply["more"])

    def content(self, base: Base | Path) -> bytes | QueryFailed:
        """The bytes of a database as a SQLite file has them.

        Raises:
            EnvironmentProblem: no child process can be started.
        """
        reply = self._on(base, {"do": "content", **self._limits})
        if isinstance(reply, QueryFailed):
            return reply
        content: bytes = reply["bytes"]
        return content

    def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        self._open.clear()
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()

    @property
    def _limits(self) -> dict[str, Any]:
        return {"seconds": self._seconds, "steps": self._steps}

    def _on(self, base: Base | Path, request: Mapping[str, Any]) -> dict[str, Any] | QueryFailed:
        """Ask for something about a database, which is opened first where it is not yet."""
        base = Base("file", str(base.absolute())) if isinstance(base, Path) else base
        child = self._started()
        drop: list[int] = []
        if base not in self._open:
            drop = [self._open.popitem(last=False)[1]] if len(self._open) >= _MAX_OPEN else []
            self._n_opened += 1
            limits = {"seconds": base.seconds or self._seconds, "steps": base.steps or self._steps}
            asked = {"do": "open", "kind": base.kind, "text": base.text, **limits}
            reply = self._ask(child, {"base": self._n_opened, "drop": drop, **asked})
            if isinstance(reply, QueryFailed):
                return QueryFailed(reply.error, reply.kind, is_opening=True)
            self._open[base] = self._n_opened
        self._open.move_to_end(base)
        return self._ask(child, {"base": self._open[base], "drop": [], **request})

    def _ask(
        self, child: subprocess.Popen[bytes], request: Mapping[str, Any]
    ) -> dict[str, Any] | QueryFailed:
        # What interrupts this leaves a reply behind, which is no answer to the next question.
        self._is_asking = True
        reply = _exchange(child, request)
        self._is_asking = False
        if reply is None:
            code = child.wait()
            self.close()
            if code in _OUT_OF_TIME:
                return QueryFailed(f"it ran longer than {request['seconds']:g} s", "time")
            said = "it broke its process, most likely by the memory it asked for"
            return QueryFailed(said, "process")
        if "error" in reply:
            return QueryFailed(reply["error"], reply["kind"])
        return reply

    def _started(self) -> subprocess.Popen[bytes]:
        is_own = self._owner == os.getpid() and not self._is_asking
        if self._child is not None and is_own and self._child.poll() is None:
            return self._child
        self.close()
        self._is_asking = False
        try:
            child = self._child = _start(self._heap_mib)
        except OSError as error:
            raise _no_child(str(error)) from error
        self._owner = os.getpid()
        timer = threading.Timer(_START_SECONDS, child.kill)
        timer.start()
        try:
            greeting = _exchange(child, None)
        finally:
            timer.cancel()
        if greeting is None:
            self.close()
            raise _no_child(f"{sys.executable} ended or said nothing for {_START_SECONDS:g} s")
        return child


def _start(heap_mib: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD), str(heap_mib * _MIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        start_new_session=True,
    )


def _no_child(why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        "no process can be started to run queries in",
        why=why,
        fix="end other programs, raise the limit on processes (`ulimit -u`), or check that "
        f"`{sys.executable} -I -S -c 'import sqlite3'` works",
    )


def _exchange(
    child: subprocess.Popen[bytes], request: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Send a request, if any, and read the reply; None when the child ended before it was whole."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        if request is not None:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
    except BrokenPipeError:
        return None
    line = child.stdout.readline()
    if not line.endswith(b"\n"):
        return None
    reply: dict[str, Any] = json.loads(line)
    if "bytes" in reply:
        n_bytes = reply["bytes"]
        reply["bytes"] = child.stdout.read(n_bytes)
        return reply if len(reply["bytes"]) == n_bytes else None
    return reply


def _cell(value: Any) -> Cell:
    if isinstance(value, dict):
        return bytes.fromhex(value["blob"])
    cell: Cell = value
    return cell
