"""Queries of rows and of models, run on a database that they cannot change, within limits."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Failed", "Found", "ReadOnly", "same_rows"]

SECONDS = 5.0
MAX_ROWS = 100_000
HEAP_BYTES = 256 * 2**20
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
    (sqlite3.SQLITE_LIMIT_LENGTH, 2**20),
    (sqlite3.SQLITE_LIMIT_SQL_LENGTH, 2**20),
    (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
    (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
)


@dataclass(frozen=True)
class Found:
    """What a query returned: its rows, in SQLite's order, and how many columns."""

    rows: tuple[tuple[Any, ...], ...]
    columns: int


@dataclass(frozen=True)
class Failed:
    """Why a query gave no rows: SQLite's message, or the limit that it broke."""

    error: str


class ReadOnly:
    """One SQLite file, opened to be read only: by its mode, by a pragma and by an authorizer.

    Args:
        path: the file.
        seconds: longest time a query may run.

    Raises:
        sqlite3.Error: the file cannot be opened.
    """

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False
        )
        self._connection.text_factory = lambda raw: raw.decode("utf-8", "backslashreplace")
        for pragma in ("query_only=1", "trusted_schema=0", "temp_store=2"):
            self._connection.execute(f"PRAGMA {pragma}").close()
        self._connection.execute(f"PRAGMA hard_heap_limit={HEAP_BYTES}").close()
        for limit, value in _LIMITS:
            self._connection.setlimit(limit, value)
        self._connection.set_authorizer(_authorize)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def run(self, sql: str) -> Found | Failed:
        """The rows of one query. Nothing raises for what stands in `sql`."""
        return self._fetch(sql, MAX_ROWS)

    def program(self, sql: str) -> tuple[tuple[Any, ...], ...] | None:
        """SQLite's compiled program for a query; None when it cannot be compiled.

        Equal programs on files with equal pages return equal rows: names do not occur in it. The
        opcode Transaction is left out, since it holds the schema's version number.
        """
        found = self._fetch(f"EXPLAIN {sql}", MAX_ROWS)
        if isinstance(found, Failed):
            return None
        return tuple(row[:7] for row in found.rows if row[1] != "Transaction")

    def _fetch(self, sql: str, max_rows: int) -> Found | Failed:
        deadline = time.monotonic() + self._seconds
        late = False

        def over_time() -> int:
            nonlocal late
            late = time.monotonic() > deadline
            return int(late)

        self._connection.set_progress_handler(over_time, STEPS_BETWEEN_CHECKS)
        try:
            cursor = self._connection.execute(sql)
            try:
                if cursor.description is None:
                    return Failed("it is not a query")
                rows = tuple(cursor.fetchmany(max_rows + 1))
                columns = len(cursor.description)
            finally:
                cursor.close()
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            return Failed(f"it ran longer than {self._seconds:g} s" if late else str(error))
        except MemoryError:
            return Failed("it needed more memory than a query is given")
        if len(rows) > max_rows:
            return Failed(f"it returns more than {max_rows:,} rows")
        return Found(rows, columns)


def _authorize(
    action: int, first: str | None, second: str | None, _database: str | None, _trigger: str | None
) -> int:
    if action not in _ALLOWED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def same_rows(left: Found, right: Found) -> bool:
    """Whether two results hold the same rows, each as often, in any order; 1 is not "1"."""
    if left.columns != right.columns:
        return False
    return _counted(left) == _counted(right)


def _counted(found: Found) -> Counter[tuple[Any, ...]]:
    return Counter(tuple((type(cell).__name__, cell) for cell in row) for row in found.rows)
