"""SQLite databases that may come from anywhere: of SQL scripts, made in memory within limits; of files, whole ones."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tunesmith.store.sqlite import (
    SCRIPT_SECONDS,
    SCRIPT_STEPS,
    Base,
    QueryFailed,
    QueryRunner,
)

__all__ = ["from_script", "what_waits"]

_HEAP_MIB = 1024


def from_script(path: Path, *, steps: int = SCRIPT_STEPS) -> bytes:
    """The file of the database that a script makes, of at most 256 MiB.

    It is made in a process of its own, which can reach no other file and is ended when a limit is passed.

    Raises:
        sqlite3.Error: the script cannot be read, SQLite refuses a statement, or a limit is passed.
        EnvironmentProblem: no process can be started.
    """
    script = Base("script", str(path.absolute()), SCRIPT_SECONDS, steps)
    with QueryRunner(SCRIPT_SECONDS, heap_mib=_HEAP_MIB) as runner:
        made = runner.content(script)
    if isinstance(made, QueryFailed):
        raise sqlite3.DatabaseError(made.error)
    return made


def what_waits(path: Path) -> str:
    """Why a SQLite file is not all of its database: rows that wait in a file beside it. Empty when it is."""
    log = path.with_name(f"{path.name}-wal")
    is_waiting = log.is_file() and log.stat().st_size > 0
    return f"rows wait in {log.name}: close the program that writes them" if is_waiting else ""
