"""SQLite databases that may come from anywhere: of SQL scripts, made in memory within limits; of files, whole ones."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

__all__ = ["MAX_STEPS", "from_script", "what_waits"]

MAX_STEPS = 500_000_000
"""Instructions of SQLite's virtual machine for a whole script: a million rows take some 30 million."""
_STEPS_A_CALL = 100_000
_MAX_VALUE_BYTES = 10_000_000
_MAX_PAGES = 2**18
_HARMLESS = frozenset(
    ("foreign_keys", "defer_foreign_keys", "encoding", "user_version", "application_id")
)
"""Pragmas that a script may set; all others do nothing here."""
_FORBIDDEN_FUNCTIONS = frozenset(("load_extension", "fts3_tokenizer", "readfile", "writefile"))


def from_script(path: Path, max_steps: int = MAX_STEPS) -> bytes:
    """The file of the database that a script makes. It can reach no other file.

    Raises:
        OSError, UnicodeDecodeError: the script cannot be read.
        sqlite3.Error, sqlite3.Warning: SQLite refuses a statement, or a limit is passed.
    """
    script = path.read_text(encoding="utf-8-sig")
    n_left = max_steps // _STEPS_A_CALL

    def is_over() -> int:
        nonlocal n_left
        n_left -= 1
        return int(n_left < 0)

    with closing(sqlite3.connect(":memory:")) as connection:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.execute(f"pragma max_page_count={_MAX_PAGES}").close()
        connection.set_authorizer(_allows)
        connection.set_progress_handler(is_over, _STEPS_A_CALL)
        try:
            connection.executescript(script)
        except sqlite3.OperationalError as error:
            if n_left < 0:
                text = f"it did not end within {max_steps:,} steps of SQLite"
                raise sqlite3.OperationalError(text) from error
            raise
        # `serialize` asks a pragma of its own.
        connection.set_authorizer(None)
        connection.set_progress_handler(None, 0)
        return connection.serialize()


def what_waits(path: Path) -> str:
    """Why a SQLite file is not all of its database: rows that wait in a file beside it. Empty when it is."""
    log = path.with_name(f"{path.name}-wal")
    is_waiting = log.is_file() and log.stat().st_size > 0
    return f"rows wait in {log.name}: close the program that writes them" if is_waiting else ""


def _allows(action: int, first: str | None, second: str | None, *_others: object) -> int:
    if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH):
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() not in _HARMLESS:
        return sqlite3.SQLITE_IGNORE
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK
