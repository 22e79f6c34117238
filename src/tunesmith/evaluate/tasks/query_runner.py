"""Runs untrusted SQL on a database that cannot be changed, within time, memory and row limits."""

from __future__ import annotations

import json
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
        assert child.stdin is not None
        assert child.stdout is not None
        timed_out = threading.Event()

        def kill() -> None:
            timed_out.set()
            child.kill()

        timer = threading.Timer(self._seconds + _GRACE_SECONDS, kill)
        timer.start()
        try:
            child.stdin.write(request + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if line.endswith("\n"):
            reply: dict[str, Any] = json.loads(line)
            return reply
        self._stop()
        if timed_out.is_set():
            return {"error": f"it ran longer than {self._seconds:g} s"}
        return {"error": "it broke its process, most likely by the memory it asked for"}

    def _started(self) -> subprocess.Popen[str]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._stop()
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                env={},
                start_new_session=True,
            )
        except OSError as error:
            raise EnvironmentProblem(
                "no process can be started to run queries in",
                why=str(error),
                fix="end other programs, or raise the limit on processes (`ulimit -u`)",
            ) from error
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                stream.close()


def _cell(value: Any) -> Cell:
    if isinstance(value, dict):
        return bytes.fromhex(value["blob"])
    cell: Cell = value
    return cell
