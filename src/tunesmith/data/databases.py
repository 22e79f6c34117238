"""SQLite files that go with a dataset, for evaluation by execution."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith.data.problems import Problems
from tunesmith.data.rows import Row
from tunesmith.data.scripts import from_script
from tunesmith.errors import DataError
from tunesmith.store import Run, sha256_of_file
from tunesmith.store.sqlite import QueryFailed, QueryRows, QueryRunner

__all__ = [
    "changed",
    "check_databases",
    "check_row",
    "copy_databases",
    "is_of_virtual_table",
    "make_databases",
]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_MAGIC = b"SQLite format 3\0"
CHECK_SECONDS = 300.0
"""Longest time for the check of one database: every page of it is read."""


def check_databases(databases: Mapping[str, Path], problems: Problems) -> None:
    """Note each database that is no readable SQLite file or has a name unfit for a file."""
    for name, path in databases.items():
        where = f"data.databases.{name}: {path}"
        if not _NAME.fullmatch(name):
            problems.add(where, "a name has letters, digits, `.`, `_` and `-` only")
        with path.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                problems.add(where, "no SQLite database")
                continue
        log = path.with_name(f"{path.name}-wal")
        if log.is_file() and log.stat().st_size:
            problems.add(where, f"rows wait in {log.name}: close the program that writes them")
            continue
        if why := _why_unfit(path):
            problems.add(where, why)


def _why_unfit(path: Path) -> str:
    """What is wrong with a file; in a process of its own, since its CHECK constraints and columns may hold any SQL."""
    with QueryRunner(CHECK_SECONDS) as runner:
        checked = runner.run(path, "pragma quick_check(1)", max_rows=1, mode="verify")
        listed = "select count(*) from sqlite_master where type in ('table', 'view')"
        counted = runner.run(path, listed, max_rows=1)
    for found in (checked, counted):
        if isinstance(found, QueryFailed) and not is_of_virtual_table(found.error):
            takes_long = found.kind == "time"
            return (
                f"its check was stopped: {found.error}" if takes_long else f"damaged: {found.error}"
            )
    assert isinstance(counted, QueryRows)
    if isinstance(checked, QueryRows) and checked.rows != (("ok",),):
        return f"damaged: {checked.rows[0][0]!s}"
    return "" if counted.rows[0][0] else "it has no tables"


def is_of_virtual_table(error: str) -> bool:
    """Whether SQLite's check of a file stopped at a table that another module keeps, such as FTS5's.

    Such a table cannot be opened where nothing may be made; the others can be read.
    """
    return error.startswith(("vtable constructor failed: ", "no such module: "))


def check_row(row: Row, names: Sequence[str], problems: Problems) -> None:
    """Note a row whose field `database` names none of `names`; with a single one it may be left out."""
    name = row.meta.get("database")
    if name in names or (name is None and len(names) == 1):
        return
    if name is None:
        problems.add(row.where, f"the field 'database' is missing; it is one of {_list(names)}")
    else:
        problems.add(row.where, f"database: {name!r} is not one of {_list(names)}")


def _list(names: Sequence[str]) -> str:
    return ", ".join(sorted(names))


def changed(path: Path) -> DataError:
    """The error for a file that is not the one that the run was opened with."""
    return DataError(
        f"{path} changed while it was read",
        why="its SHA-256 is no longer the one it had when the run began",
        fix="close the program that writes it, and run again",
    )


def copy_databases(databases: Mapping[str, Path], hashes: Mapping[Path, str], at: Run) -> None:
    """Copy SQLite files to `databases/NAME.sqlite`.

    Raises:
        DataError: a file is no longer the one that was planned.
    """
    for name, path in databases.items():
        with at.writing(_file(name)) as target:
            shutil.copyfile(path, target)
            if sha256_of_file(target) != hashes[path]:
                raise changed(path)


def make_databases(scripts: Mapping[str, Path], at: Run) -> None:
    """Make `databases/NAME.sqlite` from SQL scripts, each in a process of its own, within limits.

    Raises:
        DataError: a script cannot be read or run, or does not end.
    """
    for name, script in scripts.items():
        try:
            content = from_script(script)
        except sqlite3.Error as error:
            raise DataError(
                f"the database {name} cannot be made of {script}: {error}",
                fix="mend the script, or name a SQLite file",
            ) from error
        with at.writing(_file(name)) as target:
            target.write_bytes(content)


def _file(name: str) -> str:
    return f"databases/{name}.sqlite"
