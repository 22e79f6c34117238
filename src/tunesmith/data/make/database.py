"""A SQLite file that may come from anywhere, opened to be read only, under limits, in a process of its own.

No statement can write, attach, load an extension or run without end: an authorizer lets reads pass, limits of
steps and of time end what takes too long, limits of length and memory what grows too large. That holds for
our own statements too: a generated column may compute anything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith.data.databases import is_of_virtual_table
from tunesmith.errors import BusyError, DataError
from tunesmith.store.sqlite import Base, Cell, Mode, QueryRows, QueryRunner

__all__ = ["Database", "name_in_sql", "open_database", "value_in_sql"]

MAGIC = b"SQLite format 3\0"
MAX_STEPS = 20_000_000
"""Instructions of SQLite's virtual machine for one statement."""
MAX_SECONDS = 20.0
"""For one statement, where a single call of a function takes longer than all steps may."""
MAX_CHECKED_BYTES = 64 * 2**20
_MAX_ROWS = 10_000
_TOO_LARGE = ("size", "memory", "process")
_KEYWORDS_OF_SQL = (
    "add all alter and as asc attach begin between by case cast check collate column commit constraint create cross "
    "default delete desc distinct drop else end escape except exists for foreign from full group having if in index "
    "inner insert intersect into is isnull join key left like limit natural not notnull null of offset on or order "
    "outer primary references right row rows select set table temp then to transaction trigger union unique update "
    "using values view virtual when where with without over window filter range groups match plan current"
)
_KEYWORDS = frozenset(_KEYWORDS_OF_SQL.split())


Row = tuple[Cell, ...]


class Database:
    """A database whose statements run in another process, each within limits.

    Args:
        runner: the process.
        base: the database in it.
        mode: what the statements may do.
    """

    def __init__(self, runner: QueryRunner, base: Base, mode: Mode = "look") -> None:
        self._runner, self._base, self._mode = runner, base, mode

    def rows(
        self,
        sql: str,
        limit: int = _MAX_ROWS,
        *,
        values: Sequence[Cell] = (),
        mode: Mode | None = None,
    ) -> list[Row]:
        """The first rows of a statement.

        Raises:
            sqlite3.OperationalError: "interrupted", when it takes too long; others as SQLite has them.
            sqlite3.DataError: a value, or all of them, are too large.
            sqlite3.Error: SQLite refuses it; the class is that of the error in the other process.
        """
        found = self._runner.run(
            self._base, sql, max_rows=limit, mode=mode or self._mode, values=values
        )
        if isinstance(found, QueryRows):
            return list(found.rows)
        if found.kind in ("time", "steps"):
            raise sqlite3.OperationalError(f"interrupted: {found.error}")
        if found.kind in _TOO_LARGE:
            raise sqlite3.DataError(found.error)
        raise _CLASSES.get(found.kind, sqlite3.OperationalError)(found.error)


_CLASSES: Mapping[str, type[sqlite3.Error]] = {
    kind.__name__: kind
    for kind in (
        sqlite3.DatabaseError,
        sqlite3.DataError,
        sqlite3.IntegrityError,
        sqlite3.InternalError,
        sqlite3.NotSupportedError,
        sqlite3.ProgrammingError,
    )
}


def name_in_sql(name: str) -> str:
    """A table's or column's name as SQL; quoted only where it must be."""
    plain = name.isascii() and name.isidentifier() and name.lower() not in _KEYWORDS
    return name if plain else '"' + name.replace('"', '""') + '"'


def value_in_sql(value: int | float | str) -> str:
    """A value as SQL."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return repr(value)


@contextmanager
def open_database(path: Path) -> Iterator[Database]:
    """The database in a file, to be read only.

    Raises:
        DataError: no SQLite file, damaged, or with work of another program in it.
        BusyError: another program holds it locked.
    """
    _refuse_other_files(path)
    try:
        if not _is_wal(path):
            _refuse_locked(path, f"{path.resolve().as_uri()}?mode=ro")
        with QueryRunner(MAX_SECONDS, steps=MAX_STEPS) as runner:
            database = Database(runner, Base("file", str(path.resolve())))
            if path.stat().st_size <= MAX_CHECKED_BYTES:
                _refuse_damaged(database)
            yield database
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error


def _refuse_other_files(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            head = stream.read(len(MAGIC))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", fix="make it readable") from error
    if head != MAGIC:
        raise DataError(
            f"{path}: {'an empty file' if not head else 'no SQLite database'}",
            why=f"a SQLite file begins with 'SQLite format 3', this one with {head[:16]!r}",
            fix="name a .sqlite or .db file, or a .sql file with CREATE TABLE statements",
        )
    for ending, held in (("-wal", "rows wait"), ("-journal", "an unfinished change waits")):
        log = path.with_name(path.name + ending)
        if log.is_file() and log.stat().st_size:
            raise DataError(
                f"{path}: {held} in {log.name}",
                why="what is there is not in the database yet, and reading must change nothing",
                fix="close the program that writes it, or copy it with `sqlite3 FILE '.backup NEW'`",
            )


def _is_wal(path: Path) -> bool:
    """A database in WAL mode would get new files beside it, were it opened without `immutable`."""
    with path.open("rb") as stream:
        return b"\x02" in stream.read(20)[18:20]


def _refuse_locked(path: Path, uri: str) -> None:
    connection = sqlite3.connect(uri, uri=True, timeout=0.5)
    try:
        connection.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise BusyError(
                f"{path}: another program has it locked",
                fix="close that program, or read a copy of the file",
            ) from error
        raise
    finally:
        connection.close()


def _refuse_damaged(database: Database) -> None:
    try:
        found = database.rows("pragma quick_check(1)", 1, mode="verify")
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error) and not is_of_virtual_table(str(error)):
            raise
        return  # it cannot be checked whole: what is damaged will show when it is read
    if found != [("ok",)]:
        raise sqlite3.DatabaseError(str(found[0][0] if found else "no answer"))


def _damaged(path: Path, error: Exception) -> DataError:
    if "interrupted" in str(error):
        return DataError(
            f"{path}: reading a table takes more than {MAX_STEPS:,} steps of SQLite or {MAX_SECONDS:g} s",
            fix="make a smaller database of the tables that you want questions about",
        )
    return DataError(
        f"{path}: {error}",
        why="SQLite cannot read it: damaged, encrypted, or made to be unreadable",
        fix="`sqlite3 FILE .recover | sqlite3 NEW` saves what can be read",
    )
