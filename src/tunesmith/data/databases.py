"""SQLite files that go with a dataset, for evaluation by execution."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith.data.problems import Problems
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.store import Run, sha256_of_file

__all__ = ["changed", "check_databases", "check_row", "copy_databases", "make_databases"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_MAGIC = b"SQLite format 3\0"


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
        try:
            n_tables = _n_tables(path)
        except sqlite3.DatabaseError as error:
            problems.add(where, f"damaged: {error}")
            continue
        if n_tables == 0:
            problems.add(where, "it has no tables")


def _n_tables(path: Path) -> int:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        rows = connection.execute("pragma quick_check").fetchall()
        if rows != [("ok",)]:
            raise sqlite3.DatabaseError(str(rows[0][0]))
        query = "select count(*) from sqlite_master where type in ('table', 'view')"
        return int(connection.execute(query).fetchone()[0])
    finally:
        connection.close()


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
    """Make `databases/NAME.sqlite` from SQL scripts."""
    for name, script in scripts.items():
        connection = sqlite3.connect(":memory:")
        try:
            connection.executescript(script.read_text(encoding="utf-8"))
            content = connection.serialize()
        finally:
            connection.close()
        with at.writing(_file(name)) as target:
            target.write_bytes(content)


def _file(name: str) -> str:
    return f"databases/{name}.sqlite"
