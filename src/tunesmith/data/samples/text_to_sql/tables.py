"""A schema file to tables with rows: the same rows on every machine and Python version."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

__all__ = ["SCHEMAS_DIR", "Schema", "Table", "database", "draw", "load_schema", "ordered", "script"]

SCHEMAS_DIR = Path(__file__).resolve().parent / "schemas"
SEED = 7
_RANGE = re.compile(r"(\S+)\.\.(\S+?)( unique)?$")
Cell = int | str


@dataclass(frozen=True)
class Table:
    """One table with all of its rows."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Schema:
    """One schema file.

    Attributes:
        tables: in the order of the file; a table refers only to earlier ones.
        values: slot name -> what may fill it, or a query whose first column does.
        patterns: pattern name -> the query's template, then its six phrasings.
    """

    name: str
    tables: tuple[Table, ...]
    values: Mapping[str, Any]
    patterns: Mapping[str, tuple[str, ...]]


def draw(*key: object) -> int:
    """A number that depends on nothing but the seed and `key` (64 bits of SHA-256)."""
    text = "/".join(str(part) for part in (SEED, *key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def ordered(items: Sequence[Any], *key: object) -> list[Any]:
    """`items` in a random order that depends on nothing but the seed, `key` and the items."""
    return sorted(items, key=lambda item: (draw(*key, item), str(item)))


def load_schema(path: Path) -> Schema:
    """Read a schema file and fill its tables.

    Raises:
        ValueError: a column asks for more different values than it has.
    """
    raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    names = YAML(typ="safe", pure=True).load(
        (path.parent.parent / "names.yaml").read_text(encoding="utf-8")
    )
    people = [f"{first} {last}" for first, last in itertools.product(names["first"], names["last"])]
    tables: dict[str, Table] = {}
    for name, spec in raw["tables"].items():
        columns = [
            _column(tables, people, spec["rows"], (path.stem, name, column), kind)
            for column, kind in spec["columns"].items()
        ]
        tables[name] = Table(name, tuple(spec["columns"]), tuple(zip(*columns, strict=True)))
    patterns = {key: tuple(lines) for key, lines in raw["patterns"].items()}
    return Schema(path.stem, tuple(tables.values()), raw["values"], patterns)


def _column(
    tables: Mapping[str, Table], people: list[str], n_rows: int, key: tuple[str, ...], kind: Any
) -> list[Cell]:
    """The cells of one column; `kind` is written as in the schema files."""
    if kind == "serial":
        return list(range(1, n_rows + 1))
    if kind == "person":
        return _distinct(people, n_rows, key)
    if isinstance(kind, dict):
        pairs = [" ".join(words) for words in itertools.product(*kind["join"])]
        return _distinct(pairs, n_rows, key)
    if isinstance(kind, list):
        return [kind[draw(*key, row) % len(kind)] for row in range(n_rows)]
    if kind.startswith("-> "):
        n_targets = len(tables[kind[3:]].rows)
        return [1 + draw(*key, row) % n_targets for row in range(n_rows)]
    return _range(kind, n_rows, key)


def _range(kind: str, n_rows: int, key: tuple[str, ...]) -> list[Cell]:
    match = _RANGE.fullmatch(kind)
    if match is None:
        raise ValueError(f"{'.'.join(key)}: {kind!r} is no kind of column")
    low, high, unique = match.groups()
    span: list[Cell] = [*(_days(low, high) if "-" in low else range(int(low), int(high) + 1))]
    if unique:
        return _distinct(span, n_rows, key)
    return [span[draw(*key, row) % len(span)] for row in range(n_rows)]


def _days(low: str, high: str) -> Iterator[str]:
    day, last = datetime.date.fromisoformat(low), datetime.date.fromisoformat(high)
    while day <= last:
        yield day.isoformat()
        day += datetime.timedelta(days=1)


def _distinct(choices: Sequence[Cell], n_rows: int, key: tuple[str, ...]) -> list[Cell]:
    if len(choices) < n_rows:
        raise ValueError(f"{'.'.join(key)}: {n_rows} rows, but {len(choices)} different values")
    return list(ordered(choices, *key)[:n_rows])


def script(schema: Schema) -> str:
    """SQL that makes the schema's database: one statement a line."""
    lines: list[str] = []
    for table in schema.tables:
        columns = ", ".join(
            "id integer primary key" if column == "id" else f"{column} {_type(cell)}"
            for column, cell in zip(table.columns, table.rows[0], strict=True)
        )
        lines.append(f"create table {table.name} ({columns});")
        cells = ", ".join("(" + ",".join(quoted(cell) for cell in row) + ")" for row in table.rows)
        lines.append(f"insert into {table.name} values {cells};")
    return "\n".join(lines) + "\n"


def _type(cell: Cell) -> str:
    return "integer" if isinstance(cell, int) else "text"


def quoted(cell: Cell) -> str:
    """A value as SQL."""
    return str(cell) if isinstance(cell, int) else "'" + cell.replace("'", "''") + "'"


def database(schema: Schema) -> sqlite3.Connection:
    """The schema's database, in memory. The caller closes it."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(script(schema))
    return connection
