"""What a database holds, as far as questions need it: things, their properties, and links between them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tunesmith.data.make.database import Database, name_in_sql
from tunesmith.data.make.english import is_cryptic, noun_phrase, plural, singular, words_of

__all__ = ["Column", "Contents", "Link", "Names", "Table", "read_tables"]

Value = int | float | str
Role = Literal["key", "label", "category", "number", "year", "date", "flag", "text", "unused"]
Names = Mapping[str, str | Sequence[str] | None]
"""`table` or `table.column` -> words, or two for one and many, or None to leave it out."""
MAX_TABLES, MAX_COLUMNS, MAX_SAMPLE_ROWS, MAX_VALUES = 200, 100, 5_000, 500
MAX_CATEGORIES = 60
MAX_VALUE_CHARS, MAX_SEEN = 60, 200
_KEYS = re.compile(r"(?:^|.* )(?:id|key|uuid|guid|code|hash|rowid)")
_LABELS = ("name", "title", "label")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}.*)?")
_NAME_PARTS = re.compile(
    r"(?:.* )?(?:first|last|full|given|family|middle|user|file|display|nick|brand|host|maiden)"
)
_YEAR = re.compile(r".*\byear\b.*|.*\bseason\b")


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        one: its words as a noun phrase: "population", "number of docks".
        role: what may be asked of it; `unused` when nothing may.
        values: different real values that can stand in a question, in the order of the table.
        is_unique: no value occurs twice and none is missing.
        has_nulls: some row has no value.
        has_blanks: some row has a text of nothing but white space, which says as little.
    """

    name: str
    one: str
    role: Role
    values: tuple[Value, ...] = ()
    is_unique: bool = False
    has_nulls: bool = False
    has_blanks: bool = False

    @property
    def sql(self) -> str:
        """As it stands in a query."""
        return name_in_sql(self.name)


@dataclass(frozen=True)
class Link:
    """A column that names a row of another table; `role` is what that row is to this one."""

    column: str
    target: str
    target_column: str
    role: str
    is_declared: bool


@dataclass
class Table:
    """One table with rows.

    Attributes:
        one: what a row is called, in the singular; `many` the plural.
        rows_are_things: a row is one thing; else a thing may have several rows, and is not counted.
        key: a column that tells rows apart, if there is a single one.
    """

    name: str
    one: str
    many: str
    n_rows: int
    columns: tuple[Column, ...]
    rows_are_things: bool = True
    key: str | None = None
    links: list[Link] = field(default_factory=list)

    @property
    def sql(self) -> str:
        """As it stands in a query."""
        return name_in_sql(self.name)

    @property
    def label(self) -> Column | None:
        """The column that people call a row by."""
        return next((column for column in self.columns if column.role == "label"), None)

    def of(self, *roles: Role) -> Iterator[Column]:
        """Columns that play one of the roles."""
        return (column for column in self.columns if column.role in roles)


class _Reader:
    """Reads one database; `unnamed` gathers what has no clear English name."""

    def __init__(self, database: Database, names: Names) -> None:
        self.database = database
        self.names = {key.lower(): value for key, value in names.items()}
        self.unnamed: list[str] = []
        self.unread: list[str] = []
        self.words: dict[str, str] = {}

    def rows(self, sql: str, limit: int = 10_000) -> list[tuple[Value | None, ...]]:
        return self.database.rows(sql, limit)  # type: ignore[return-value]

    def tried(self, sql: str, limit: int = 10_000) -> list[tuple[Value | None, ...]]:
        """The rows; none when getting them takes too long, or a value is too large."""
        try:
            return self.rows(sql, limit)
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                return []
            raise
        except sqlite3.DataError:  # larger than the limit for one value
            return []

    def counts(self, table: str, column: str) -> tuple[int, int, int] | None:
        """Rows, values and different values; None when counting them takes too long."""
        sql = f"select count(*), count({column}), count(distinct {column}) from {table}"
        found = self.tried(sql)
        return found[0] if found else None  # type: ignore[return-value]

    def named(self, key: str, guess: str) -> str | None:
        """The user's words for a name, or the guess; None when it is to be left out."""
        given = self.names.get(key.lower(), guess)
        if given is None:
            return None
        if key.lower() not in self.names and is_cryptic(guess):
            self.unnamed.append(key)
            return None
        words = given if isinstance(given, str) else given[0]
        self.words[key] = words
        return words


@dataclass(frozen=True)
class Contents:
    """What a database holds.

    Attributes:
        unnamed: `table` or `table.column` without a clear English name.
        unread: columns of tables with rows that take too long to read, or whose values are too large.
        words: `table` or `table.column` -> the words used for it.
    """

    tables: list[Table]
    unnamed: list[str]
    unread: list[str]
    words: dict[str, str]


_ORDINARY = """select name from sqlite_master as one where type = 'table'
and name not like 'sqlite~_%' escape '~' and coalesce(sql, '') not like 'create virtual%'
and not exists (select 1 from sqlite_master as owner where owner.sql like 'create virtual%'
and one.name in (owner.name || '_data', owner.name || '_idx', owner.name || '_content',
owner.name || '_docsize', owner.name || '_config', owner.name || '_segments', owner.name || '_segdir',
owner.name || '_stat', owner.name || '_node', owner.name || '_parent', owner.name || '_rowid'))
order by rowid"""
"""The tables of the user's: none of FTS3 to FTS5 and R*Tree, nor those in which they keep their rows."""


def read_tables(database: Database, names: Names) -> Contents:
    """Tables with their columns and links. SQLite's own tables, virtual ones and views are not read."""
    reader = _Reader(database, names)
    listed = reader.rows(_ORDINARY, MAX_TABLES)
    known = [str(name) for (name,) in listed]
    tables = [table for name in known if (table := _table(reader, name)) is not None]
    by_name = {table.name.lower(): table for table in tables}
    for table in tables:
        table.links = _links(reader, table, by_name)
        held = {
            link.column for link in table.links if not _is_label(by_name[link.target.lower()], link)
        }
        table.columns = tuple(
            replace(column, role="key") if column.name in held else column
            for column in table.columns
        )
    filled = {table.name for table in tables if table.n_rows}
    unread = [key for key in reader.unread if key.partition(".")[0] in filled]
    return Contents(tables, reader.unnamed, unread, reader.words)


def _is_label(target: Table, link: Link) -> bool:
    """Whether a link's column holds what rows of the other table are called by, so that it reads as words."""
    return target.label is not None and target.label.name == link.target_column


def _table(reader: _Reader, name: str) -> Table | None:
    words = reader.named(name, singular(words_of(name)))
    given = reader.names.get(name.lower())
    if words is None:
        return None
    sql = name_in_sql(name)
    counted = reader.counts(sql, "1")
    n_rows = counted[0] if counted else MAX_SAMPLE_ROWS
    infos = reader.rows(f"pragma table_info({sql})", MAX_COLUMNS)
    keys = [str(info[1]) for info in infos if info[5]]
    linked = {str(row[3]).lower() for row in reader.rows(f"pragma foreign_key_list({sql})")}
    columns = tuple(
        _column(
            reader,
            name,
            words,
            str(info[1]),
            is_key=str(info[1]).lower() in {*linked, *map(str.lower, keys)},
        )
        for info in infos
    )
    columns = _with_label(columns, words)
    many = given[1] if isinstance(given, list | tuple) and len(given) > 1 else plural(words)
    table = Table(name, words, many, n_rows, columns, key=keys[0] if len(keys) == 1 else None)
    label = table.label
    if label is not None and table.key is None and label.is_unique:
        table.key = label.name
    if not keys and not any(column.is_unique for column in columns):
        table.rows_are_things = not _label_settles_numbers(reader, table)
    return table


def _column(reader: _Reader, table: str, thing: str, name: str, *, is_key: bool) -> Column:
    """A column with its role; by its name first, then by the values that it really has."""
    own = words_of(name)
    guess = own.removeprefix(f"{thing} ") if own != thing else own
    head = guess.removesuffix(" name")
    if head != guess and not _NAME_PARTS.fullmatch(head):
        guess = head  # `country_name` holds a country
    if own == f"{thing} name":
        guess = "name"
    if is_key or _KEYS.fullmatch(own):
        return Column(name, own, "key")
    if re.fullmatch(r"is \w+(?: \w+)*", own):
        return _flag(reader, table, name, own.removeprefix("is "))
    words = reader.named(f"{table}.{name}", guess)
    if words is None:
        return Column(name, own, "unused")
    return _measured(reader, table, name, words)


def _flag(reader: _Reader, table: str, name: str, words: str) -> Column:
    given = reader.names.get(f"{table}.{name}".lower(), words)
    said = given if isinstance(given, str) else None
    reader.words[f"{table}.{name}"] = words
    found = {
        row[0]
        for row in reader.rows(f"select distinct {name_in_sql(name)} from {name_in_sql(table)}", 3)
    }
    return Column(name, said or words, "flag" if said and found == {0, 1} else "unused")


def _measured(reader: _Reader, table: str, name: str, words: str) -> Column:
    column, source = name_in_sql(name), name_in_sql(table)
    counted = reader.counts(source, column)
    # A value may be as large as the limits allow; what is cut here is too long to be asked about.
    cut = f"case when typeof({column}) in ('text', 'blob') then substr({column}, 1, {MAX_SEEN}) else {column} end"
    sample = reader.tried(f"select {cut} from {source}", MAX_SAMPLE_ROWS)
    if not sample:
        reader.unread.append(f"{table}.{name}")
    values = [row[0] for row in sample if row[0] is not None]
    kinds = {type(value) for value in values}
    different = list(dict.fromkeys(values))
    usable = [value for value in different if _is_sayable(value)][:MAX_VALUES]
    is_unique = counted is not None and counted[0] == counted[2] > 1
    has_nulls = counted is None or counted[1] < counted[0]
    role = _role(words, kinds, different, n_rows=len(sample))
    one = noun_phrase(words) if role == "number" else words
    has_blanks = any(isinstance(value, str) and not value.strip() for value in different)
    return Column(name, one, role, tuple(usable), is_unique, has_nulls, has_blanks)


def _role(words: str, kinds: set[type], different: Sequence[Value], *, n_rows: int) -> Role:
    if not different or not kinds <= {int, float, str} or (str in kinds and len(kinds) > 1):
        return "unused"
    if kinds <= {int, float}:
        is_year = kinds == {int} and all(1000 <= int(v) <= 2100 for v in different)
        return "year" if is_year and (_YEAR.fullmatch(words) or "birth" in words) else "number"
    if all(_DATE.fullmatch(str(value)) for value in different):
        return "date"
    if all(re.fullmatch(r"-?\d+(\.\d+)?", str(value)) for value in different):
        return "unused"  # numbers kept as text compare as text: 9 comes after 10
    if len(different) <= MAX_CATEGORIES and len(different) <= max(2, 0.6 * n_rows):
        if len({str(value).casefold().strip() for value in different}) < len(different):
            return "unused"  # "Red" and "red": a question means both, a query one
        return "category" if len(different) > 1 else "unused"
    return "text"


def _is_sayable(value: Value | None) -> bool:
    """Whether a value can stand in a question as it is."""
    if isinstance(value, str):
        fits = 0 < len(value) <= MAX_VALUE_CHARS and value == value.strip() and value.isprintable()
        return fits and '"' not in value and "\ufffd" not in value
    return isinstance(value, int | float) and abs(value) < 1e15


def _with_label(columns: tuple[Column, ...], thing: str) -> tuple[Column, ...]:
    """Make the best text column the label: by its name, else the first that tells rows apart."""
    texts = [c for c in columns if c.role in ("text", "category")]
    by_name = [
        c for c in texts if c.one in _LABELS or c.one in (thing, f"full {thing}", "full name")
    ]
    chosen = (by_name or [c for c in texts if c.is_unique and c.role == "text"])[:1]
    return tuple(replace(c, role="label") if c in chosen else c for c in columns)


def _label_settles_numbers(reader: _Reader, table: Table) -> bool:
    """Whether rows of one label always agree in all numbers: then they are parts of one thing."""
    label = table.label
    numbers = [name_in_sql(column.name) for column in table.of("number", "year")]
    if label is None:
        return False
    if not numbers:
        return True
    differ = " or ".join(f"count(distinct {number}) > 1" for number in numbers)
    sql = f"select 1 from {table.sql} group by {label.sql} having {differ} limit 1"
    return not reader.tried(sql)


def _links(reader: _Reader, table: Table, by_name: Mapping[str, Table]) -> list[Link]:
    """Declared foreign keys of one column; then columns that hold a key of the table that they are named after."""
    links: list[Link] = []
    declared = reader.rows(f"pragma foreign_key_list({table.sql})")
    composed = {row[0] for row in declared if row[1] != 0}
    for row in declared:
        target = by_name.get(str(row[2]).lower())
        to = str(row[4]) if row[4] is not None else (target.key if target else None)
        if target is None or to is None or row[0] in composed or target is table:
            continue
        if not _tells_rows_apart(reader, target, to):
            continue  # a join would count a row once for each row that it meets
        links.append(Link(str(row[3]), target.name, to, _link_role(str(row[3]), target), True))
    taken = {link.column.lower() for link in links}
    for info in reader.rows(f"pragma table_info({table.sql})", MAX_COLUMNS):
        name = str(info[1])
        link = None if name.lower() in taken else _inferred(reader, table, name, by_name)
        links += [link] if link is not None else []
    return links


def _tells_rows_apart(reader: _Reader, table: Table, column: str) -> bool:
    """Whether no value of a column stands in two rows: SQLite lets a foreign key refer to any column."""
    if table.key is not None and column.lower() == table.key.lower():
        return True
    try:
        counted = reader.counts(table.sql, name_in_sql(column))
    except sqlite3.OperationalError:  # there is no such column
        return False
    return counted is not None and counted[1] == counted[2]


def _inferred(
    reader: _Reader, table: Table, name: str, by_name: Mapping[str, Table]
) -> Link | None:
    words = words_of(name)
    for target in by_name.values():
        plain = singular(words_of(target.name))
        if (
            target is table
            or target.key is None
            or not re.fullmatch(rf"(?:.* )?{re.escape(plain)}(?: id| name| key| code)?", words)
        ):
            continue
        column, key = name_in_sql(name), name_in_sql(target.key)
        sql = (
            f"select count({column}), sum({column} in (select {key} from {target.sql})) "
            f"from {table.sql}"
        )
        (found,) = reader.tried(sql) or [(0, 0)]
        if found[0] and found[0] == found[1]:
            return Link(name, target.name, target.key, _link_role(name, target), False)
    return None


def _link_role(column: str, target: Table) -> str:
    """What the row of another table is called: "author" for `author_id`, the table's word for `id`."""
    words = re.sub(r" (?:id|key|code|name|number|ref)$", "", words_of(column))
    if not words or words in ("id", "key", "name", "code") or is_cryptic(words):
        return target.one
    return (
        target.one if words in (singular(words_of(target.name)), words_of(target.name)) else words
    )
