"""A database from CREATE TABLE statements, in memory, its empty tables filled with seeded values.

The statements may come from anywhere: only tables, indexes and their rows can be made, under a step limit.
"""

from __future__ import annotations

import datetime
import itertools
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.make.database import Steps, guarded, name_in_sql
from tunesmith.data.make.dialects import as_sqlite, is_left_out
from tunesmith.data.make.english import words_of
from tunesmith.data.make.rows import Order, read_text
from tunesmith.errors import DataError
from tunesmith.store import write_atomically

__all__ = ["filled_database"]

MAX_ATTEMPTS = 20
# What is not closed reaches to the end, so that the time grows with the length alone.
_TOKEN = re.compile(
    r"'(?:[^']|'')*(?:'|\Z)|\"(?:[^\"]|\"\")*(?:\"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)|--[^\n]*|"
    r"/\*(?:.*?\*/|.*)|;|[^'\"`\[;/-]+|.",
    re.S,
)
MAX_TRANSLATED_CHARS = 100_000
_CREATES = {
    sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_READ,
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_REINDEX,
    sqlite3.SQLITE_DROP_TABLE, sqlite3.SQLITE_ALTER_TABLE, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_DELETE,
}  # fmt: skip
_FIRST = "Ada Ben Carla David Elena Frank Grace Hugo Iris Jonas Karen Leo Maria Nina Oscar Paula Rosa Simon Tara Wendy"
_LAST = "Adams Baker Costa Dale Evans Fischer Grant Hill Ivers Jensen Klein Lane Moore Nash Olsen Park Reed Stone Vance"
_PLACES = "Arden Bellmore Carrick Dunmore Eastvale Farleigh Glenbrook Harwick Inverley Kingsford Langley Milford"
_COUNTRIES = "Brazil Canada Denmark Egypt France Ghana India Japan Kenya Mexico Norway Peru Spain"
_WORDS = "Amber Birch Cedar Dawn Ember Falcon Garnet Harbour Iron Juniper Lantern Maple North Opal Pine Quartz River"
_NOUNS = "Bridge Crown Field Garden House Lake Meadow Path Road Stone Tower Valley"
_KINDS = "basic standard premium"
_COLOURS = "red blue green black white grey"
_BY_NAME: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r".*first name|given name", (_FIRST,)),
    (r".*last name|surname|family name", (_LAST,)),
    (r".*(?:person|author|customer|user|employee|manager|owner|artist|driver|teacher|student)", (_FIRST, _LAST)),
    (r".*\bcountry.*|nationality", (_COUNTRIES,)),
    (r".*\b(?:city|town|place|location|region|area)\b.*", (_PLACES,)),
    (r".*colou?r", (_COLOURS,)),
    (r"(?:.* )?(?:kind|type|category|class|tier|plan)", (_KINDS,)),
    (r"(?:.* )?(?:status|state)", ("open closed waiting",)),
    (r"(?:.* )?(?:sex|gender)", ("female male",)),
    (r".*description|.*text|.*comment|.*note|.*body", (_WORDS, _NOUNS, _PLACES)),
    (r".*", (_WORDS, _NOUNS)),
)  # fmt: skip
_PEOPLE = re.compile(
    r"(?:person|people|author|customer|user|employee|staff|artist|driver|teacher|student|player|member|patient|doctor)s?"
)
_FROM = datetime.date(2021, 1, 1)


@contextmanager
def filled_database(
    path: Path, n_rows: int, order: Order, keep: Path | None
) -> Iterator[tuple[sqlite3.Connection, Steps]]:
    """The database in memory, and the counter of steps that its statements share.

    Args:
        keep: where its file is written, if anywhere.

    Raises:
        DataError: SQLite refuses a statement, there are no tables, or a table cannot be filled.
    """
    script = read_text(path)
    connection = sqlite3.connect(":memory:")
    steps = Steps()
    connection.set_progress_handler(steps, 1_000)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000_000)
    try:
        connection.set_authorizer(_may_create)
        _run(path, script, connection, steps)
        connection.set_authorizer(None)
        connection.set_progress_handler(None, 0)
        _fill(path, connection, n_rows, order)
        if keep is not None:
            write_atomically(keep, connection.serialize())
        yield connection, guarded(connection)
    finally:
        connection.close()


def _may_create(action: int, first: str | None, *_others: object) -> int:
    return sqlite3.SQLITE_OK if action in _CREATES else sqlite3.SQLITE_DENY


def _run(path: Path, script: str, connection: sqlite3.Connection, steps: Steps) -> None:
    """Run each statement; a dump's transactions, views and triggers are left out."""
    for line, statement in _statements(script):
        if is_left_out(statement):
            continue
        error = _refusal(statement, connection, steps)
        if error and len(statement) < MAX_TRANSLATED_CHARS and as_sqlite(statement) != statement:
            # The second try is SQLite's own form; where that fails too, the first refusal says more.
            error = error if _refusal(as_sqlite(statement), connection, steps) else ""
        if error:
            raise DataError(
                f"{path}:{line}: {error}: {' '.join(statement.split())[:80]!r}",
                why="the statements are run by SQLite, to run the queries that are made for them",
                fix="write the statement as SQLite has it, or leave it out",
            )
    connection.commit()
    if not connection.execute("select 1 from sqlite_master where type = 'table'").fetchone():
        raise DataError(
            f"{path}: no CREATE TABLE statement", fix="name a file with the tables' definitions"
        )


def _refusal(statement: str, connection: sqlite3.Connection, steps: Steps) -> str:
    """What SQLite says against a statement; empty when it was run."""
    steps.start()
    try:
        connection.execute(statement)
    except (sqlite3.Error, sqlite3.Warning) as error:
        said = str(error)
        return "not allowed: only tables, indexes and rows" if "authorized" in said else said
    return ""


def _statements(script: str) -> Iterator[tuple[int, str]]:
    """Statements with the lines on which they begin; comments are left out."""
    parts: list[str] = []
    line, start = 1, 0
    for token in _TOKEN.finditer(script):
        text = token[0]
        if not text.startswith(("--", "/*")) and text != ";":
            if not parts and text.strip():
                start = line + text[: len(text) - len(text.lstrip())].count("\n")
            parts += [text] if parts or text.strip() else []
        line += text.count("\n")
        if text != ";":
            continue
        statement = "".join(parts).strip()
        is_trigger = re.match(r"create\s+(?:temp\w*\s+)?trigger\b", statement, re.I)
        if is_trigger and not re.search(r"\bend\Z", statement[-4:], re.I):
            parts.append(";")
        else:
            parts = []
            if statement:
                yield start, statement
    if statement := "".join(parts).strip():
        yield start, statement


def _fill(path: Path, connection: sqlite3.Connection, n_rows: int, order: Order) -> None:
    """Give rows to every empty table, those first that others refer to."""
    names = [row[0] for row in connection.execute(
        "select name from sqlite_master where type = 'table' and name not like 'sqlite~_%' escape '~'")]  # fmt: skip
    left = list(names)
    while left:
        ready = [name for name in left if not _awaited(connection, name) & set(left) - {name}]
        for name in ready or left[:1]:
            left.remove(name)
            (count,) = connection.execute(f"select count(*) from {name_in_sql(name)}").fetchone()
            if not count:
                _fill_table(path, connection, name, n_rows, order)
    connection.commit()


def _awaited(connection: sqlite3.Connection, name: str) -> set[str]:
    return {
        str(row[2]) for row in connection.execute(f"pragma foreign_key_list({name_in_sql(name)})")
    }


@dataclass(frozen=True)
class _Rules:
    """What the cells of a table must keep to, a column (in lower case)."""

    table: str
    targets: Mapping[str, list[object]]
    allowed: Mapping[str, list[object]]
    unique: frozenset[str]


def _fill_table(
    path: Path, connection: sqlite3.Connection, name: str, n_rows: int, order: Order
) -> None:
    table = name_in_sql(name)
    infos = connection.execute(f"pragma table_info({table})").fetchall()
    rules = _Rules(
        name, _targets(connection, table), _allowed(connection, name), _unique(connection, table)
    )
    marks = ", ".join("?" * len(infos))
    last, n_made = "", 0
    for row, attempt in itertools.product(range(n_rows), range(MAX_ATTEMPTS)):
        if row < n_made:
            continue
        cells = [
            _cell(rules, info, row, order.number(name, row, attempt, info[1])) for info in infos
        ]
        try:
            connection.execute(f"insert into {table} values ({marks})", cells)
            n_made = row + 1
        except sqlite3.IntegrityError as error:
            last = str(error)
    if not n_made:
        raise DataError(
            f"{path}: the table {name} cannot be filled with made-up rows: {last}",
            fix="add INSERT statements with rows of your own",
        )


def _targets(connection: sqlite3.Connection, table: str) -> dict[str, list[object]]:
    """Column -> values of the key that it refers to; of the table itself: not yet any."""
    found: dict[str, list[object]] = {}
    for key in connection.execute(f"pragma foreign_key_list({table})").fetchall():
        parent = name_in_sql(str(key[2]))
        column = key[4]
        if column is None:
            keys = [i[1] for i in connection.execute(f"pragma table_info({parent})") if i[5]]
            column = keys[0] if keys else "rowid"
        values = connection.execute(f"select {name_in_sql(str(column))} from {parent}").fetchall()
        found[str(key[3]).lower()] = [value[0] for value in values]
    return found


def _allowed(connection: sqlite3.Connection, name: str) -> dict[str, list[object]]:
    """Column -> values that a CHECK (column IN (...)) lets pass."""
    (sql,) = connection.execute(
        "select sql from sqlite_master where type = 'table' and name = ?", (name,)
    ).fetchone()
    found: dict[str, list[object]] = {}
    for column, items in re.findall(
        r"check\s*\(\s*[\"`\[]?(\w+)[\"`\]]?\s+in\s*\(([^()]*)\)", sql or "", re.I
    ):
        values = re.findall(r"'((?:[^']|'')*)'|(-?\d+)", items)
        found[column.lower()] = [
            text.replace("''", "'") if not number else int(number) for text, number in values
        ]
    return found


def _unique(connection: sqlite3.Connection, table: str) -> frozenset[str]:
    """Columns that must not repeat a value."""
    found: set[str] = set()
    for index in connection.execute(f"pragma index_list({table})").fetchall():
        columns = connection.execute(f"pragma index_info({name_in_sql(str(index[1]))})").fetchall()
        if index[2] and len(columns) == 1:
            found.add(str(columns[0][2]).lower())
    return frozenset(found)


def _cell(rules: _Rules, info: Sequence[object], row: int, number: int) -> object:
    name, kind = str(info[1]), str(info[2]).lower()
    words = words_of(name)
    for given in (rules.targets, rules.allowed):
        if name.lower() in given:
            values = given[name.lower()]
            return values[number % len(values)] if values else None
    if info[5] or words in ("id", "key", "uuid"):
        return row + 1 if "int" in kind or not kind else f"{rules.table[:1].upper()}{row + 1:03d}"
    if "bool" in kind or words.startswith("is "):
        return number % 2
    if "year" in words and ("int" in kind or not kind):
        return 1980 + number % 44
    if (
        "date" in kind
        or "time" in kind
        or re.fullmatch(r".*\b(?:date|day)\b.*|.* at|.*birth", words)
    ):
        day = (_FROM + datetime.timedelta(days=number % 1200)).isoformat()
        return f"{day} {number % 24:02d}:{number // 24 % 60:02d}:00" if "time" in kind else day
    if re.search(r"int|num|dec|real|doub|float|money", kind):
        return _number(words, kind, number)
    return _text(rules, words, number, row, name.lower() in rules.unique)


def _number(words: str, kind: str, number: int) -> float | int:
    if re.search(r"\bage\b", words):
        return 18 + number % 60
    if re.search(r"price|cost|amount|total|fee|salary|balance", words):
        return 5 + number % 496 if "int" in kind else (500 + number % 49_500) / 100
    return 1 + number % 200 if "int" in kind else (10 + number % 9_990) / 10


def _text(rules: _Rules, words: str, number: int, row: int, unique: bool) -> str:
    if words in ("name", "full name") and _PEOPLE.fullmatch(words_of(rules.table)):
        lists: tuple[str, ...] = (_FIRST, _LAST)
    else:
        lists = next(lists for pattern, lists in _BY_NAME if re.fullmatch(pattern, words))
    parts = []
    for text in lists:
        items = text.split()
        parts.append(items[number % len(items)])
        number //= len(items)
    said = " ".join(parts)
    if "mail" in words:
        return f"{said.replace(' ', '.').lower()}.{row + 1}@example.invalid"
    return f"{said} {row + 1}" if unique and len(lists) == 1 else said
