"""A SQLite file that may come from anywhere, opened to be read only, under limits.

No statement can write, attach, load an extension or run without end: an authorizer lets reads pass,
a step limit ends what takes too long, a length limit what grows too large.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import BusyError, DataError

__all__ = ["Steps", "guarded", "name_in_sql", "open_database", "value_in_sql"]

MAGIC = b"SQLite format 3\0"
MAX_STEPS = 20_000_000
"""Instructions of SQLite's virtual machine for one statement."""
MAX_VALUE_BYTES = 1_000_000
MAX_CHECKED_BYTES = 64 * 2**20
_STEPS_A_CALL = 1_000
_READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}
_PRAGMAS = {
    "table_info",
    "table_xinfo",
    "foreign_key_list",
    "index_list",
    "index_info",
    "quick_check",
}
_KEYWORDS_OF_SQL = (
    "add all alter and as asc attach begin between by case cast check collate column commit constraint create cross "
    "default delete desc distinct drop else end escape except exists for foreign from full group having if in index "
    "inner insert intersect into is isnull join key left like limit natural not notnull null of offset on or order "
    "outer primary references right row rows select set table temp then to transaction trigger union unique update "
    "using values view virtual when where with without over window filter range groups match plan current"
)
_KEYWORDS = frozenset(_KEYWORDS_OF_SQL.split())


class Steps:
    """Ends a statement that takes more than `MAX_STEPS` instructions; `start` begins a new one."""

    def __init__(self, limit: int = MAX_STEPS) -> None:
        self._limit = limit
        self._left = limit

    def start(self) -> None:
        """Give the next statement its full share."""
        self._left = self._limit

    def __call__(self) -> int:
        """What SQLite calls every 1,000 instructions; non-zero ends the statement."""
        self._left -= _STEPS_A_CALL
        return int(self._left < 0)


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


def guarded(connection: sqlite3.Connection) -> Steps:
    """Put limits on a connection: reads only, from now on."""
    steps = Steps()
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.execute("pragma trusted_schema = off")
    connection.execute("pragma query_only = on")
    connection.set_authorizer(_may_read)
    connection.set_progress_handler(steps, _STEPS_A_CALL)
    # Text that is no UTF-8 must not end the work: it is read with marks, and then not asked about.
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    return steps


def _may_read(action: int, first: str | None, _second: object, *_others: object) -> int:
    if action in _READS:
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() in _PRAGMAS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


@contextmanager
def open_database(path: Path) -> Iterator[tuple[sqlite3.Connection, Steps]]:
    """The database, and the counter of steps that its statements share.

    Raises:
        DataError: no SQLite file, damaged, or with work of another program in it.
        BusyError: another program holds it locked.
    """
    _refuse_other_files(path)
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        if not _is_wal(path):
            _refuse_locked(path, uri)
        connection = sqlite3.connect(f"{uri}&immutable=1", uri=True)
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error
    try:
        steps = guarded(connection)
        if path.stat().st_size <= MAX_CHECKED_BYTES:
            _refuse_damaged(path, connection, steps)
        steps.start()
        yield connection, steps
    except sqlite3.DatabaseError as error:
        raise _damaged(path, error) from error
    finally:
        connection.close()


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


def _refuse_damaged(path: Path, connection: sqlite3.Connection, steps: Steps) -> None:
    steps.start()
    try:
        found = connection.execute("pragma quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return  # too large to be checked whole: what is damaged will show when it is read
    if found is None or found[0] != "ok":
        raise sqlite3.DatabaseError(str(found[0] if found else "no answer"))


def _damaged(path: Path, error: Exception) -> DataError:
    if "interrupted" in str(error):
        return DataError(
            f"{path}: reading a table takes more than {MAX_STEPS:,} steps",
            fix="make a smaller database of the tables that you want questions about",
        )
    return DataError(
        f"{path}: {error}",
        why="SQLite cannot read it: damaged, encrypted, or made to be unreadable",
        fix="`sqlite3 FILE .recover | sqlite3 NEW` saves what can be read",
    )
