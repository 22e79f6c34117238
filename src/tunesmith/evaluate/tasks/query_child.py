"""The child process that runs queries: standard library only, started by `query_runner`.

It is run as a script, isolated (`python -I -S`), so that a query which eats memory, hangs inside
one SQLite function or crashes SQLite takes down this process and nothing else. Requests and replies
are JSON, one a line, on stdin and stdout.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
ADDRESS_SPACE_BYTES = 1024 * MIB
HEAP_BYTES = 256 * MIB
REPLY_BYTES = 16 * MIB
STEPS_BETWEEN_CHECKS = 2_000

_ALLOWED = frozenset(
    (
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    )
)
_FORBIDDEN_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer", "readfile", "writefile"))
_LIMITS = (
    (sqlite3.SQLITE_LIMIT_LENGTH, MIB),
    (sqlite3.SQLITE_LIMIT_SQL_LENGTH, MIB),
    (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
    (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
)


class Refused(Exception):
    """The query broke a limit; the message is for the report."""


def limit_process() -> None:
    """Bound memory, forbid writing files and dumping core, where the system can."""
    try:
        import resource
    except ImportError:  # not a POSIX system: SQLite's own limits stay
        return
    limits = (
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, value in limits:
        # A system that does not know a limit, or has a lower one, keeps its own.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def open_read_only(path: str) -> sqlite3.Connection:
    """A connection that can only read: by its mode, by a pragma and by an authorizer."""
    uri = f"{Path(path).absolute().as_uri()}?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
    for pragma in (
        "query_only=1",
        "trusted_schema=0",
        "temp_store=2",
        f"hard_heap_limit={HEAP_BYTES}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()
    for limit, value in _LIMITS:
        connection.setlimit(limit, value)
    connection.set_authorizer(_authorize)
    return connection


def _authorize(
    action: int, first: str | None, second: str | None, _database: str | None, _trigger: str | None
) -> int:
    if action not in _ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def run_query(
    connection: sqlite3.Connection, sql: str, *, seconds: float, max_rows: int
) -> dict[str, Any]:
    """Run one query and fetch at most `max_rows` rows.

    Returns `columns`, `rows` and `more` (whether rows were left), or `error`.
    """
    deadline = time.monotonic() + seconds
    late = False

    def over_time() -> int:
        nonlocal late
        late = time.monotonic() > deadline
        return int(late)

    connection.set_progress_handler(over_time, STEPS_BETWEEN_CHECKS)
    try:
        return _fetch(connection, sql, max_rows)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, Refused) as error:
        return {"error": f"it ran longer than {seconds:g} s" if late else str(error)}
    except MemoryError:
        return {"error": "it needed more memory than a query is given"}


def _fetch(connection: sqlite3.Connection, sql: str, max_rows: int) -> dict[str, Any]:
    with contextlib.closing(connection.execute(sql)) as cursor:
        if cursor.description is None:
            raise Refused("it is not a query")
        rows: list[list[Any]] = []
        size = 0
        for row in cursor:
            if len(rows) == max_rows:
                return {"columns": len(cursor.description), "rows": rows, "more": True}
            values = [_portable(value) for value in row]
            size += sum(len(v) if isinstance(v, str) else 16 for v in values)
            if size > REPLY_BYTES:
                raise Refused(f"its result is larger than {REPLY_BYTES // MIB} MiB")
            rows.append(values)
        return {"columns": len(cursor.description), "rows": rows, "more": False}


def _portable(value: Any) -> Any:
    return {"blob": value.hex()} if isinstance(value, bytes) else value


def main() -> None:
    """Say that it is up, then answer requests until stdin closes."""
    connections: dict[str, sqlite3.Connection] = {}
    limit_process()
    _reply({"sqlite": sqlite3.sqlite_version})
    for line in sys.stdin:
        request = json.loads(line)
        path = request["database"]
        try:
            if path not in connections:
                connections[path] = open_read_only(path)
            reply = run_query(
                connections[path],
                request["sql"],
                seconds=request["seconds"],
                max_rows=request["max_rows"],
            )
        except sqlite3.Error as error:
            reply = {"error": f"the database cannot be opened: {error}"}
        _reply(reply)


def _reply(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
