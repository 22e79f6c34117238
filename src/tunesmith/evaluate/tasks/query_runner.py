"""Runs untrusted SQL on a database that cannot be changed, within time, memory and row limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.errors import EnvironmentProblem

__all__ = ["QueryFailed", "QueryRows", "QueryRunner"]

_CHILD = Path(__file__).with_name("query_child.py")
_GRACE_SECONDS = 2.0
"""Beyond a query's own limit: for the child to stop by itself and to answer."""
_START_SECONDS = 60.0
_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""All that the child gets: what some installations of Python need to start."""

Cell = int | float | str | bytes | None


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
    """Why a query gave no rows: SQLite's message, or the limit that it broke."""

    error: str


class QueryRunner:
    """A child process that runs queries; started on first use, again after it died.

    The connection is read-only three times over (`mode=ro`, `PRAGMA query_only`, an authorizer that
    allows nothing but reading), the file is opened as `immutable`, and the process may write no
    file and has bounded memory. A query that does not end is killed with its process.

    Args:
        seconds: longest time a query may run.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def run(self, database: Path, sql: str, *, max_rows: int) -> QueryRows | QueryFailed:
        """Run one statement, fetching at most `max_rows` rows.

        Anything that is not one reading query comes back as `QueryFailed`; nothing raises for what
        stands in `sql`.

        Raises:
            EnvironmentProblem: no child process can be started.
        """
        request = {
            "database": str(database.absolute()),
            "sql": sql,
            "seconds": self._seconds,
            "max_rows": max_rows,
        }
        reply = self._ask(json.dumps(request))
        if "error" in reply:
            return QueryFailed(reply["error"])
        rows = tuple(tuple(_cell(value) for value in row) for row in reply["rows"])
        return QueryRows(rows, reply["columns"], reply["more"])

    def _ask(self, request: str) -> dict[str, Any]:
        child = self._started()
        reply, timed_out = _exchange(child, request, self._seconds + _GRACE_SECONDS)
        if reply is not None:
            return reply
        self._stop()
        if timed_out:
            return {"error": f"it ran longer than {self._seconds:g} s"}
        return {"error": "it broke its process, most likely by the memory it asked for"}

    def _started(self) -> subprocess.Popen[str]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._stop()
        try:
            child = self._child = _start()
        except OSError as error:
            raise _no_child(str(error)) from error
        greeting, _ = _exchange(child, None, _START_SECONDS)
        if greeting is None:
            self._stop()
            raise _no_child(f"{sys.executable} ended or said nothing for {_START_SECONDS:g} s")
        return child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
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
    child: subprocess.Popen[str], request: str | None, seconds: float
) -> tuple[dict[str, Any] | None, bool]:
    """Send a line, if any, and read one; the child is killed when `seconds` are over.

    Returns the reply, or None when there was no whole one, and whether the time ran out.
    """
    assert child.stdin is not None
    assert child.stdout is not None
    timed_out = threading.Event()

    def kill() -> None:
        timed_out.set()
        child.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        if request is not None:
            child.stdin.write(request + "\n")
            child.stdin.flush()
        line = child.stdout.readline()
    except BrokenPipeError:
        line = ""
    finally:
        timer.cancel()
    return (json.loads(line) if line.endswith("\n") else None), timed_out.is_set()


def _cell(value: Any) -> Cell:
    if isinstance(value, dict):
        return bytes.fromhex(value["blob"])
    cell: Cell = value
    return cell
