"""SQLite as a judge of SQL: prepares and runs queries in this process, reading only, within limits.

Limits are counts of SQLite's own steps and bytes, not seconds, so that the same query gives the same
finding on every machine.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.data.scripts import from_script, what_waits

__all__ = ["Ran", "SqliteJudge"]

_STEPS = 20_000_000
_STEPS_BETWEEN_CALLS = 100_000
_MIB = 2**20
_LIMITS = (
    (sqlite3.SQLITE_LIMIT_LENGTH, _MIB),
    (sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MIB),
    (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
    (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
    (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 500),
)
_NEVER = frozenset((sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA))
_READS = frozenset(
    (
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    )
)
_FORBIDDEN_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer", "readfile", "writefile"))
_SYNTAX = re.compile(r"syntax error|unrecognized token|incomplete input|not a query|one statement")
_UNKNOWN = re.compile(r"no such (table|column|function|module|collation)")
_DDL = re.compile(r"\bcreate\s+(?:temp(?:orary)?\s+)?table\b[^;]*", re.IGNORECASE)
_EXPLAIN = re.compile(r"\A\s*explain(?:\s+query\s+plan)?\b", re.IGNORECASE)
_MAX_SCHEMAS = 64
_MAX_DDL_CHARACTERS = 100_000

Verdict = Literal["fits", "syntax", "no table", "no column", "no function", "forbidden", "wrong"]


@dataclass(frozen=True, slots=True)
class Ran:
    """What SQLite says to a query: `verdict`, its own words unless it fits, rows when it was run."""

    verdict: Verdict
    words: str = ""
    n_rows: int | None = None


class _Steps:
    """Ends what takes more than `_STEPS`; SQLite calls it now and then."""

    def __init__(self) -> None:
        self._n_left = _STEPS // _STEPS_BETWEEN_CALLS

    @property
    def is_over(self) -> bool:
        """Whether it ended something."""
        return self._n_left < 0

    def __call__(self) -> int:
        self._n_left -= 1
        return int(self.is_over)


class SqliteJudge:
    """Connections to databases, to schemas out of prompts, and to an empty one, made when needed."""

    def __init__(self) -> None:
        self._files: dict[Path, sqlite3.Connection | str] = {}
        self._schemas: OrderedDict[str, sqlite3.Connection | None] = OrderedDict()
        self._empty: sqlite3.Connection | None = None

    def syntax(self, sql: str) -> Ran:
        """Whether it is SQLite's SQL; `no table` is the best that can come where a table is named."""
        if self._empty is None:
            self._empty = _connection(":memory:")
        return _prepared(self._empty, sql)

    def on_schema(self, sql: str, text: str) -> Ran | None:
        """Whether it fits the tables that a text creates; None when the text creates none."""
        ddl = ";\n".join(_DDL.findall(text[:_MAX_DDL_CHARACTERS]))
        if not ddl:
            return None
        if ddl not in self._schemas:
            self._schemas[ddl] = _with_tables(ddl)
            if len(self._schemas) > _MAX_SCHEMAS:
                _, oldest = self._schemas.popitem(last=False)
                if oldest is not None:
                    oldest.close()
        connection = self._schemas[ddl]
        return None if connection is None else _prepared(connection, sql)

    def run(self, sql: str, database: Path) -> Ran:
        """Run one reading query; its first rows are fetched, the steps are limited."""
        connection = self._files.get(database)
        if connection is None:
            connection = self._files[database] = _on_file(database)
        if isinstance(connection, str):
            return Ran("wrong", connection)
        steps = _Steps()
        connection.set_progress_handler(steps, _STEPS_BETWEEN_CALLS)
        try:
            with contextlib.closing(connection.execute(sql)) as cursor:
                if cursor.description is None:
                    return Ran("wrong", "it is not a query")
                return Ran("fits", n_rows=len(cursor.fetchmany(2)))
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            if steps.is_over:
                return Ran("wrong", f"it did not end within {_STEPS:,} steps of SQLite")
            return _said(str(error))

    def __del__(self) -> None:
        """No connection outlives its judge."""
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for connection in (*self._files.values(), *self._schemas.values(), self._empty):
            if isinstance(connection, sqlite3.Connection):
                connection.close()
        self._files.clear()
        self._schemas.clear()
        self._empty = None


def _connection(path: str, *, uri: bool = False, reads_only: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(path, uri=uri, isolation_level=None, check_same_thread=False)
    connection.text_factory = bytes
    for limit, value in _LIMITS:
        connection.setlimit(limit, value)

    connection.set_authorizer(_allows)
    if reads_only:
        _only_reads(connection)
    return connection


def _limit(connection: sqlite3.Connection) -> None:
    connection.text_factory = bytes
    for limit, value in _LIMITS:
        connection.setlimit(limit, value)


def _only_reads(connection: sqlite3.Connection) -> None:
    """By a pragma and by an authorizer, beside the mode in which a file was opened."""
    connection.set_authorizer(None)
    for pragma in ("query_only=1", "trusted_schema=0", "temp_store=2"):
        connection.execute(f"PRAGMA {pragma}").close()
    connection.set_authorizer(_allows_reading)


def _allows(
    action: int, _first: str | None, second: str | None, _base: str | None, _by: str | None
) -> int:
    if action in _NEVER:
        return sqlite3.SQLITE_DENY
    called = (second or "").lower() if action == sqlite3.SQLITE_FUNCTION else ""
    return sqlite3.SQLITE_DENY if called in _FORBIDDEN_FUNCTIONS else sqlite3.SQLITE_OK


def _allows_reading(
    action: int, first: str | None, second: str | None, base: str | None, by: str | None
) -> int:
    return _allows(action, first, second, base, by) if action in _READS else sqlite3.SQLITE_DENY


def _on_file(path: Path) -> sqlite3.Connection | str:
    """A connection, or why there is none. Of a script `.sql` its tables are made in memory."""
    try:
        if path.suffix == ".sql":
            return _of_script(path)
        if waits := what_waits(path):
            return f"the database {path} cannot be read: {waits}"
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        connection = _connection(uri, uri=True, reads_only=True)
        connection.execute("select count(*) from sqlite_master").close()
    except (OSError, UnicodeDecodeError, sqlite3.Error, sqlite3.Warning) as error:
        return f"the database {path} cannot be opened: {error}"
    return connection


def _of_script(path: Path) -> sqlite3.Connection:
    """The script is run within limits; queries then get a copy that they can only read."""
    content = from_script(path)
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.deserialize(content)
    _limit(connection)
    _only_reads(connection)
    return connection


def _with_tables(ddl: str) -> sqlite3.Connection | None:
    """A database with these tables; None when one is not SQLite's SQL: then nothing is known."""
    connection = _connection(":memory:")
    # The text may come from anywhere: `create table t as with recursive ...` need not end.
    connection.set_progress_handler(_Steps(), _STEPS_BETWEEN_CALLS)
    try:
        connection.executescript(ddl)
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        connection.close()
        return None
    connection.set_progress_handler(None, 0)
    return connection


def _prepared(connection: sqlite3.Connection, sql: str) -> Ran:
    """EXPLAIN compiles a statement as running it would, and runs nothing."""
    try:
        connection.execute(f"EXPLAIN {_EXPLAIN.sub('', sql)}").close()
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        return _said(str(error))
    return Ran("fits")


def _said(words: str) -> Ran:
    if "not authorized" in words or "prohibited" in words:
        return Ran("forbidden", words)
    if unknown := _UNKNOWN.search(words):
        kinds: dict[str, Verdict] = {
            "table": "no table",
            "column": "no column",
            "function": "no function",
        }
        return Ran(kinds.get(unknown[1], "wrong"), words)
    return Ran("syntax" if _SYNTAX.search(words) else "wrong", words)
