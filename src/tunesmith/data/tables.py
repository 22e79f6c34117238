"""Rows, one line of JSON each, to a file of any form; nested values never get Arrow's types."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.data.rows import Field
from tunesmith.data.schemas.slices import fields_of
from tunesmith.errors import ConfigError, EnvironmentProblem

__all__ = ["FORMS", "TABLES", "Columns", "form_of", "unfit_for_table", "write_rows"]

FORMS: Mapping[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
}
"""Form -> ends of the names of such files."""
TABLES = ("csv", "tsv", "parquet")
TEXT, WHOLE, TRUTH, NUMBER, NULL, NESTED = (
    "text",
    "whole number",
    "true or false",
    "number",
    "null",
    "list or object",
)
_BATCH_ROWS = 10_000
_ESCAPED = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_UNFIT = re.compile("[\0\ud800-\udfff]")


def form_of(path: Path) -> str:
    """The form that a file's name asks for; `.gz` at its end does not count.

    Raises:
        ConfigError: the name asks for none.
    """
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    for form, ends in FORMS.items():
        if suffix.lower() in ends:
            return form
    raise ConfigError(
        f"the name {path.name!r} does not say which form the file shall have",
        fix=f"add --form ({', '.join(FORMS)}), or use a name such as {path.stem}.jsonl",
    )


def unfit_for_table(line: str) -> str:
    """Why a table, which has no escapes, cannot hold a row; "" when it can."""
    if not _ESCAPED.search(line):
        return ""
    for name, one in fields_of(line).items():
        for text in (name, one.value):
            found = _UNFIT.search(text) if isinstance(text, str) else None
            if found is not None:
                what = "a NUL character" if found[0] == "\0" else "half of a surrogate pair"
                return f"{name!a}: {what}, which a table cannot hold; JSON lines can"
    return ""


@dataclass
class Seen:
    """How many rows have something, and "file:line" of the first."""

    rows: int
    first: str


@dataclass
class Columns:
    """What the fields of all rows hold, so that a table can have a column for each.

    Attributes:
        types: name -> JSON type -> the rows with it.
        absent: name -> "file:line" of the first row without it.
        n_rows: rows seen.
    """

    types: dict[str, dict[str, Seen]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    n_rows: int = 0
    _first: str = ""

    def see(self, line: str, where: str) -> None:
        """Take a row in, which stands at `where` in its file."""
        self._first = self._first or where
        found = fields_of(line)
        for name, one in found.items():
            if name not in self.types:
                self.types[name] = {}
                if self.n_rows:
                    self.absent[name] = self._first
            seen = self.types[name].setdefault(_type_of(one), Seen(0, where))
            seen.rows += 1
        for name in self.types.keys() - found.keys():
            self.absent.setdefault(name, where)
        self.n_rows += 1

    def kind(self, name: str) -> str:
        """What a column of Parquet holds: its rows' only type where that changes no value, else text."""
        types = set(self.types[name]) - {NULL}
        return types.pop() if types in ({WHOLE}, {TRUTH}) else TEXT

    def lost(self, form: str) -> dict[str, Seen]:
        """What a table cannot keep, and of which rows.

        Lists and objects are written as JSON text, which is read as what it spells: not lost.
        """
        found: dict[str, Seen] = {}
        if form not in TABLES:
            return found
        for name, types in self.types.items():
            kept = {TEXT, NESTED} | ({self.kind(name), NULL} if form == "parquet" else set())
            changed = [seen for kind, seen in types.items() if kind not in kept]
            if changed:
                n_rows = sum(seen.rows for seen in changed)
                found[f"type of {name} (becomes text)"] = Seen(n_rows, changed[0].first)
            n_absent = self.n_rows - sum(seen.rows for seen in types.values())
            if n_absent:
                what = "null" if form == "parquet" else "an empty cell"
                found[f"absence of {name} (becomes {what})"] = Seen(n_absent, self.absent[name])
        return found


def _type_of(one: Field) -> str:
    value = one.value
    if isinstance(value, bool):
        return TRUTH
    if isinstance(value, int):
        # Arrow's whole numbers have 64 bits, and one spelling: -0 has none there.
        return WHOLE if -(2**63) <= value < 2**63 and one.raw == str(value) else NUMBER
    return {str: TEXT, type(None): NULL, float: NUMBER}.get(type(value), NESTED)


def write_rows(lines: Iterable[str], columns: Columns, form: str, out: BinaryIO) -> None:
    """Write rows in a form.

    Args:
        lines: a JSON object each, without its line end.
        columns: of all these rows; needed for tables.
        form: one of `FORMS`.

    Raises:
        EnvironmentProblem: Parquet is asked for and pyarrow is not installed.
    """
    writers: Mapping[str, Callable[[Iterable[str], Columns, BinaryIO], None]] = {
        "jsonl": _write_jsonl,
        "json": _write_json,
        "csv": lambda *args: _write_delimited(",", *args),
        "tsv": lambda *args: _write_delimited("\t", *args),
        "parquet": _write_parquet,
    }
    writers[form](lines, columns, out)


def _write_jsonl(lines: Iterable[str], _columns: Columns, out: BinaryIO) -> None:
    for line in lines:
        out.write(f"{line}\n".encode())


def _write_json(lines: Iterable[str], _columns: Columns, out: BinaryIO) -> None:
    out.write(b"[")
    for number, line in enumerate(lines):
        out.write(f"{',' if number else ''}\n{line}".encode())
    out.write(b"\n]\n")


def _write_delimited(delimiter: str, lines: Iterable[str], columns: Columns, out: BinaryIO) -> None:
    """RFC 4180 with line feeds. Python's own writer leaves a carriage return without quotes."""
    special = re.compile(f'[{delimiter}"\r\n]|^\\s|\\s$')

    def written(cells: Iterable[str]) -> bytes:
        quoted = [
            '"' + cell.replace('"', '""') + '"' if special.search(cell) else cell for cell in cells
        ]
        # A line without any character would be no row.
        return (delimiter.join(quoted) or '""').encode() + b"\n"

    out.write(written(columns.types))
    for line in lines:
        found = fields_of(line)
        out.write(written(_cell(found.get(name)) for name in columns.types))


def _cell(one: Field | None) -> str:
    """A text as it is, null and nothing as an empty cell, all else as JSON."""
    if one is None or one.value is None:
        return ""
    return one.value if isinstance(one.value, str) else one.raw


def _write_parquet(lines: Iterable[str], columns: Columns, out: BinaryIO) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "Parquet needs the package 'pyarrow', which is not installed",
            fix="pip install 'tunesmith[data]'",
        ) from error
    types = {TEXT: pyarrow.string(), WHOLE: pyarrow.int64(), TRUTH: pyarrow.bool_()}
    kinds = {name: columns.kind(name) for name in columns.types}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in kinds.items()])
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in _batches(lines):
            rows = [fields_of(line) for line in batch]
            values = {
                name: [_value(row.get(name), kind) for row in rows] for name, kind in kinds.items()
            }
            writer.write_table(pyarrow.table(values, schema=schema))


def _value(one: Field | None, kind: str) -> Any:
    """What stands in a column: the value of its type, or the JSON of any other."""
    if one is None or one.value is None:
        return None
    return one.raw if kind == TEXT and not isinstance(one.value, str) else one.value


def _batches(lines: Iterable[str]) -> Iterator[Sequence[str]]:
    rest = iter(lines)
    while batch := list(islice(rest, _BATCH_ROWS)):
        yield batch
