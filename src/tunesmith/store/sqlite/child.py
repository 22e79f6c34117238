"""The child process that runs SQL which may come from anywhere: standard library only, started by `runner`.

It is run as a script, isolated (`python -I -S`), so that a statement which eats memory, hangs inside
one SQLite function or crashes SQLite takes down this process and nothing else. Requests and replies
are JSON, one a line, on stdin and stdout; a database's bytes follow the line that says how many.

A statement has two limits of time: SQLite asks between its steps whether to go on, and where it does not
ask, since one function call takes all the time, the system's own timer ends the process, whether or not
the parent is still there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

MIB = 1024 * 1024
REPLY_BYTES = 16 * MIB
MAX_PAGES = 2**16
"""Of a database made in memory: 256 MiB."""
STEPS_BETWEEN_CHECKS = 1_000
GRACE_SECONDS = 0.5
"""Beyond a statement's own limit: for it to end by itself and to answer."""
OUT_OF_TIME = 142
"""Exit code where the system has no timer of its own; by its signal a process ends as -14."""

_READS = frozenset(
    (
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    )
)
_CREATES = _READS | {
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_DROP_TABLE,
    sqlite3.SQLITE_ALTER_TABLE,
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,
    sqlite3.SQLITE_DELETE,
    sqlite3.SQLITE_TRANSACTION,
    sqlite3.SQLITE_REINDEX,
}
_ATTACHES = frozenset((sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH))
_FORBIDDEN_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer", "readfile", "writefile"))
_ABOUT_TABLES = frozenset(
    ("table_info", "table_xinfo", "foreign_key_list", "index_list", "index_info", "quick_check")
)
_HARMLESS = frozenset(
    ("foreign_keys", "defer_foreign_keys", "encoding", "user_version", "application_id")
)
"""Pragmas that a script may set; all others do nothing there."""


class Mode(NamedTuple):
    """What statements may do.

    Attributes:
        actions: what SQLite's authorizer lets pass; None for everything but to attach other files.
        pragmas: those that may be used.
        skips_pragmas: whether others do nothing, or are refused.
        value_bytes: longest text or blob.
        is_query: whether a statement must return rows.
        errors: how text that is no UTF-8 is read.
    """

    actions: frozenset[int] | None
    pragmas: frozenset[str] = frozenset()
    skips_pragmas: bool = False
    value_bytes: int = MIB
    is_query: bool = True
    errors: str = "backslashreplace"


MODES: Mapping[str, Mode] = {
    "read": Mode(_READS),
    "look": Mode(_READS, _ABOUT_TABLES, errors="replace"),
    "verify": Mode(_READS, _ABOUT_TABLES, value_bytes=1_000 * MIB),
    "compile": Mode(None),
    "create": Mode(_CREATES, value_bytes=10 * MIB, is_query=False, errors="replace"),
    "fill": Mode(_CREATES, _ABOUT_TABLES, value_bytes=10 * MIB, is_query=False, errors="replace"),
    "script": Mode(None, _HARMLESS, skips_pragmas=True, value_bytes=10 * MIB, is_query=False),
}
"""Name -> what is allowed: to read, to ask about tables too, to check a whole file, to compile (of statements that
`EXPLAIN` keeps from running), to make tables with rows, to fill them, and to run a whole script."""


class Refused(Exception):
    """A statement broke a limit; the message is for the report, `kind` for the program."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class Opened:
    """A connection to one database, with the mode that its authorizer has now."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.mode = ""
        for limit, value in (
            (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
            (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
            (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
        ):
            connection.setlimit(limit, value)

    def become(self, name: str) -> Mode:
        """Allow what a mode allows, from now on."""
        mode = MODES[name]
        if name != self.mode:
            length = mode.value_bytes
            self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, length)
            self.connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, length)
            self.connection.text_factory = lambda raw: raw.decode("utf-8", mode.errors)
            self.connection.set_authorizer(_authorizer(mode))
            self.mode = name
        return mode

    def free(self) -> sqlite3.Connection:
        """The connection without rules, for what this program itself asks of it."""
        self.connection.set_authorizer(None)
        self.connection.set_progress_handler(None, 0)
        self.mode = ""
        return self.connection

    def only_reads(self) -> Opened:
        """By a pragma, beside the authorizer and the mode in which a file was opened."""
        for pragma in ("query_only=1", "trusted_schema=0", "temp_store=2"):
            self.free().execute(f"PRAGMA {pragma}").close()
        return self


def _authorizer(mode: Mode) -> Callable[..., int]:
    def allows(action: int, first: str | None, second: str | None, *_others: object) -> int:
        if action == sqlite3.SQLITE_PRAGMA:
            if (first or "").lower() in mode.pragmas:
                return sqlite3.SQLITE_OK
            return sqlite3.SQLITE_IGNORE if mode.skips_pragmas else sqlite3.SQLITE_DENY
        if action in _ATTACHES or (mode.actions is not None and action not in mode.actions):
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    return allows


class Clock:
    """Ends a statement after so many seconds or steps of SQLite; `why` says which."""

    def __init__(self, seconds: float, steps: int | None) -> None:
        self.seconds, self.steps = seconds, steps
        self.why = ""
        self._deadline = time.monotonic() + seconds
        self._left = steps

    def __call__(self) -> int:
        """What SQLite calls now and then; non-zero ends the statement."""
        if self._left is not None:
            self._left -= STEPS_BETWEEN_CHECKS
            if self._left < 0:
                self.why = "steps"
        if time.monotonic() > self._deadline:
            self.why = "time"
        return int(bool(self.why))

    def refused(self) -> Refused:
        """Why it ended something."""
        if self.why == "steps":
            return Refused("steps", f"it did not end within {self.steps:,} steps of SQLite")
        return Refused("time", f"it ran longer than {self.seconds:g} s")


@contextlib.contextmanager
def limited(base: Opened, clock: Clock) -> Any:
    """While the block runs: the clock, and the system's timer behind it."""
    base.connection.set_progress_handler(clock, STEPS_BETWEEN_CHECKS)
    disarm = _arm(clock.seconds + GRACE_SECONDS)
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning) as error:
        if clock.why:
            raise clock.refused() from error
        raise
    finally:
        disarm()


def _arm(seconds: float) -> Callable[[], object]:
    """Let the system end this process after so many seconds; what is returned takes that back."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return lambda: signal.setitimer(signal.ITIMER_REAL, 0)
    # SQLite lets other threads run while it works.
    timer = threading.Timer(seconds, os._exit, (OUT_OF_TIME,))
    timer.daemon = True
    timer.start()
    return timer.cancel


def open_base(kind: str, text: str, clock: Clock) -> Opened:
    """A database: of a file, of a script's file, of statements that create tables, or empty.

    Raises:
        sqlite3.Error, OSError, UnicodeDecodeError, Refused: there is none.
    """
    if kind == "file":
        uri = f"{Path(text).absolute().as_uri()}?mode=ro&immutable=1"
        return Opened(sqlite3.connect(uri, uri=True, isolation_level=None)).only_reads()
    base = _empty()
    if kind == "script":
        content = _content(base, Path(text).read_text(encoding="utf-8-sig"), clock)
        # A copy, without the temporary views and tables that the script may have left.
        base = _empty()
        base.connection.deserialize(content)
        return base.only_reads()
    if text:
        base.become("compile")
        with limited(base, clock):
            base.connection.executescript(text)
    return base


def _empty() -> Opened:
    base = Opened(sqlite3.connect(":memory:", isolation_level=None))
    for pragma in ("temp_store=2", f"max_page_count={MAX_PAGES}"):
        base.connection.execute(f"PRAGMA {pragma}").close()
    return base


def _content(base: Opened, script: str, clock: Clock) -> bytes:
    """The bytes of the database that a script makes."""
    base.become("script")
    base.connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 1_000 * MIB)
    with contextlib.closing(base.connection):
        with limited(base, clock):
            base.connection.executescript(script)
        return base.free().serialize()


def run(base: Opened, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run one statement and fetch at most `max_rows` rows.

    Returns `columns`, `rows` and `more` (whether rows were left).
    """
    mode = base.become(request["mode"])
    clock = Clock(request["seconds"], request["steps"])
    with limited(base, clock):
        cursor = base.connection.execute(request["sql"], request["values"])
        with contextlib.closing(cursor):
            return _fetched(cursor, request["max_rows"], is_query=mode.is_query)


def _fetched(cursor: sqlite3.Cursor, max_rows: int, *, is_query: bool) -> dict[str, Any]:
    if cursor.description is None:
        if is_query:
            raise Refused("no query", "it is not a query")
        return {"columns": 0, "rows": [], "more": False}
    rows: list[list[Any]] = []
    size = 0
    for row in cursor:
        if len(rows) == max_rows:
            return {"columns": len(cursor.description), "rows": rows, "more": True}
        values = [{"blob": v.hex()} if isinstance(v, bytes) else v for v in row]
        size += sum(
            2 * len(v) if isinstance(v, bytes) else len(v) if isinstance(v, str) else 16
            for v in row
        )
        if size > REPLY_BYTES:
            raise Refused("size", f"its result is larger than {REPLY_BYTES // MIB} MiB")
        rows.append(values)
    return {"columns": len(cursor.description), "rows": rows, "more": False}


def answer(bases: dict[int, Opened], request: Mapping[str, Any]) -> dict[str, Any] | bytes:
    """What one request gets; `error` and `kind` where it fails."""
    try:
        for number in request["drop"]:
            if (old := bases.pop(number, None)) is not None:
                old.connection.close()
        number = request["base"]
        match request["do"]:
            case "open":
                clock = Clock(request["seconds"], request["steps"])
                bases[number] = open_base(request["kind"], request["text"], clock)
                return {}
            case "content":
                return bases[number].free().serialize()
            case _:
                return run(bases[number], request)
    except Refused as error:
        return {"error": str(error), "kind": error.kind}
    except MemoryError:
        return {"error": "it needed more memory than a query is given", "kind": "memory"}
    except OSError as error:
        return {"error": error.strerror or str(error), "kind": "file"}
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        return {"error": str(error), "kind": type(error).__name__}


def limit_process(heap_bytes: int) -> None:
    """Bound memory, forbid writing files and dumping core, where the system can; let its timer end this process."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"PRAGMA hard_heap_limit={heap_bytes}").close()
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    try:
        import resource
    except ImportError:  # not a POSIX system: SQLite's own limits stay
        return
    limits = (
        (resource.RLIMIT_AS, 2 * heap_bytes + 512 * MIB),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, value in limits:
        # A system that does not know a limit, or has a lower one, keeps its own.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def main() -> None:
    """Say that it is up, then answer requests until stdin closes."""
    bases: dict[int, Opened] = {}
    limit_process(int(sys.argv[1]))
    _reply({"sqlite": sqlite3.sqlite_version})
    for line in sys.stdin.buffer:
        _reply(answer(bases, json.loads(line)))


def _reply(reply: dict[str, Any] | bytes) -> None:
    out = sys.stdout.buffer
    head = {"bytes": len(reply)} if isinstance(reply, bytes) else reply
    out.write(json.dumps(head).encode() + b"\n")
    if isinstance(reply, bytes):
        out.write(reply)
    out.flush()


if __name__ == "__main__":
    main()
