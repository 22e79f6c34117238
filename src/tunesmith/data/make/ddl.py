"""A database from CREATE TABLE statements, in memory, its empty tables filled with seeded values.

The statements may come from anywhere: only tables, indexes and their rows can be made, in a process of its own,
each within limits of steps, time and memory.
"""

from __future__ import annotations

import datetime
import itertools
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.make.database import (
    MAX_SECONDS,
    MAX_STEPS,
    Database,
    name_in_sql,
    open_database,
)
from tunesmith.data.make.dialects import as_sqlite, is_left_out
from tunesmith.data.make.english import words_of
from tunesmith.data.make.rows import Order, read_text
from tunesmith.errors import DataError
from tunesmith.store import storage_errors, write_atomically
from tunesmith.store.sqlite import Base, Cell, QueryFailed, QueryRunner

__all__ = ["filled_database"]

MAX_ATTEMPTS = 20
# What is not closed reaches to the end, so that the time grows with the length alone.
_TOKEN = re.compile(
    r"'(?:[^']|'')*(?:'|\Z)|\"(?:[^\"]|\"\")*(?:\"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)|--[^\n]*|"
    r"/\*(?:.*?\*/|.*)|;|[^'\"`\[;/-]+|.",
    re.S,
)
MAX_TRANSLATED_CHARS = 100_000
_EMPTY = Base("tables")
_HEAP_MIB = 1024
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
def filled_database(path: Path, n_rows: int, order: Order, keep: Path | None) -> Iterator[Database]:
    """The database, to be read only.

    Args:
        keep: where its file is written, if anywhere.

    Raises:
        DataError: SQLite refuses a statement, there are no tables, or a table cannot be filled.
        StorageError: the disk refuses.
    """
    script = read_text(path)
    with QueryRunner(MAX_SECONDS, steps=MAX_STEPS, heap_mib=_HEAP_MIB) as runner:
        _run(path, script, Database(runner, _EMPTY, "create"))
        _fill(path, Database(runner, _EMPTY, "fill"), n_rows, order)
        content = runner.content(_EMPTY)
    if isinstance(content, QueryFailed):
        raise DataError(f"{path}: {content.error}", fix="make a smaller database of it")
    if keep is not None:
        write_atomically(keep, content)
    # A file outlives the process that a query breaks.
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "filled.sqlite"
        file.write_bytes(content)
        with open_database(file) as database:
            yield database


def _run(path: Path, script: str, database: Database) -> None:
    """Run each statement; a dump's transactions, views and triggers are left out."""
    for line, statement in _statements(script):
        if is_left_out(statement):
            continue
        error = _refusal(statement, database)
        if error and len(statement) < MAX_TRANSLATED_CHARS and as_sqlite(statement) != statement:
            # The second try is SQLite's own form; where that fails too, the first refusal says more.
            error = error if _refusal(as_sqlite(statement), database) else ""
        if error:
            raise DataError(
                f"{path}:{line}: {error}: {' '.join(statement.split())[:80]!r}",
                why="the statements are run by SQLite, to run the queries that are made for them",
                fix="write the statement as SQLite has it, or leave it out",
            )
    if not database.rows("select 1 from sqlite_master where type = 'table'", 1):
        raise DataError(
            f"{path}: no CREATE TABLE statement", fix="name a file with the tables' definitions"
        )


def _refusal(statement: str, database: Database) -> str:
    """What SQLite says against a statement; empty when it was run."""
    try:
        database.rows(statement, 0)
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


def _fill(path: Path, database: Database, n_rows: int, order: Order) -> None:
    """Give rows to every empty table, those first that others refer to."""
    listed = database.rows(
        "select name from sqlite_master where type = 'table' and name not like 'sqlite~_%' escape '~'"
    )
    left = [str(row[0]) for row in listed]
    while left:
        ready = [name for name in left if not _awaited(database, name) & set(left) - {name}]
        for name in ready or left[:1]:
            left.remove(name)
            if not database.rows(f"select 1 from {name_in_sql(name)}", 1):
                _fill_table(path, database, name, n_rows, order)


def _awaited(database: Database, name: str) -> set[str]:
    return {str(row[2]) for row in database.rows(f"pragma foreign_key_list({name_in_sql(name)})")}


@dataclass(frozen=True)
class _Rules:
    """What the cells of a table must keep to, a column (in lower case)."""

    table: str
    targets: Mapping[str, list[Cell]]
    allowed: Mapping[str, list[Cell]]
    unique: frozenset[str]


def _fill_table(path: Path, database: Database, name: str, n_rows: int, order: Order) -> None:
    table = name_in_sql(name)
    infos = database.rows(f"pragma table_info({table})")
    rules = _Rules(
        name, _targets(database, table), _allowed(database, name), _unique(database, table)
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
            database.rows(f"insert into {table} values ({marks})", 0, values=cells)
            n_made = row + 1
        except sqlite3.IntegrityError as error:
            last = str(error)
        except sqlite3.Error as error:
            raise _unfilled(path, name, str(error)) from error
    if not n_made:
        raise _unfilled(path, name, last)


def _unfilled(path: Path, table: str, why: str) -> DataError:
    return DataError(
        f"{path}: the table {table} cannot be filled with made-up rows: {why}",
        fix="add INSERT statements with rows of your own",
    )


def _targets(database: Database, table: str) -> dict[str, list[Cell]]:
    """Column -> values of the key that it refers to; of the table itself: not yet any."""
    found: dict[str, list[Cell]] = {}
    for key in database.rows(f"pragma foreign_key_list({table})"):
        parent = name_in_sql(str(key[2]))
        column = key[4]
        if column is None:
            keys = [i[1] for i in database.rows(f"pragma table_info({parent})") if i[5]]
            column = keys[0] if keys else "rowid"
        values = database.rows(f"select {name_in_sql(str(column))} from {parent}")
        found[str(key[3]).lower()] = [value[0] for value in values]
    return found


def _allowed(database: Database, name: str) -> dict[str, list[Cell]]:
    """Column -> values that a CHECK (column IN (...)) lets pass."""
    ((sql,),) = database.rows(
        "select sql from sqlite_master where type = 'table' and name = ?", values=(name,)
    )
    found: dict[str, list[Cell]] = {}
    for column, items in re.findall(
        r"check\s*\(\s*[\"`\[]?(\w+)[\"`\]]?\s+in\s*\(([^()]*)\)", str(sql or ""), re.I
    ):
        values = re.findall(r"'((?:[^']|'')*)'|(-?\d+)", items)
        found[column.lower()] = [
            text.replace("''", "'") if not number else int(number) for text, number in values
        ]
    return found


def _unique(database: Database, table: str) -> frozenset[str]:
    """Columns that must not repeat a value."""
    found: set[str] = set()
    for index in database.rows(f"pragma index_list({table})"):
        columns = database.rows(f"pragma index_info({name_in_sql(str(index[1]))})")
        if index[2] and len(columns) == 1:
            found.add(str(columns[0][2]).lower())
    return frozenset(found)


def _cell(rules: _Rules, info: Sequence[object], row: int, number: int) -> Cell:
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
