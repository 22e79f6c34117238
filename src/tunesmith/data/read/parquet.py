"""Parquet, streamed by row group; one row a record, values as JSON.

Arrow gives every struct of a column all the keys that any of them has, and fills what a row did not
have with null; in the file the two cannot be told apart. So a null member of a struct, and a null
cell of a column, are read as "not there": a tool's schema does not gain keys. A null in a list or in
a map was written by somebody and stays. Columns of Arrow's JSON type are read byte for byte.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from decimal import Decimal
from json.encoder import encode_basestring
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tunesmith.data.read.chunk import Chunk, Form, Job, Stream, Unreadable
from tunesmith.data.read.limits import Limits, in_words
from tunesmith.data.read.objects import Refused, first_twice, flat, value_of
from tunesmith.data.read.stream import Disk
from tunesmith.data.rows import BadRow, Field, RawRow, bad_text
from tunesmith.errors import EnvironmentProblem, reason_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FORM"]

_BATCH_ROWS = 64
"""Rows that are expanded at a time: a dictionary may hold one long text for all of them."""
_COPY_BYTES = 2**20
_Text = Callable[[Any], str]
"""Writes a value that is not null as JSON."""


def divide(stream: Stream, job: Job) -> Iterator[Chunk]:
    """Arrow streams with some rows each.

    Raises:
        Unreadable: the file is damaged, cut off or a bomb, or a column holds what JSON has no form for.
        EnvironmentProblem: pyarrow is not installed.
    """
    pa = _arrow()
    found = stream.at_random() if isinstance(stream, Disk) else None
    if found is not None:
        yield from _divided(found, job, pa)
        return
    with tempfile.TemporaryFile() as copy:
        while data := stream.read(_COPY_BYTES):
            copy.write(data)
        copy.seek(0)
        yield from _divided(copy, job, pa)


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "a Parquet file needs the package 'pyarrow', which is not installed",
            fix="pip install 'tunesmith[data]'",
        ) from error
    return pyarrow


def _divided(file: IO[bytes], job: Job, pa: Any) -> Iterator[Chunk]:
    try:
        found = pa.parquet.ParquetFile(_native(file, pa))
        _refuse_bomb(found.metadata, file.seek(0, os.SEEK_END), job.limits)
        _refuse_columns(found.schema_arrow)
        yield from _chunks(found, job, pa)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"the Parquet file is damaged or cut off: {reason_of(error)}") from error


def _native(file: IO[bytes], pa: Any) -> Any:
    """The open file as one of Arrow's own, where the system has a name for it.

    A thread of Arrow's that lets go of a Python file while the interpreter ends is ended by it, and takes the process
    along ("terminate called without an active exception").
    """
    name = Path(f"/dev/fd/{file.fileno()}")
    return pa.OSFile(str(name)) if name.exists() else file


def _chunks(found: Any, job: Job, pa: Any) -> Iterator[Chunk]:
    held: list[Any] = []
    n_bytes, row = 0, 1
    for batch in found.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
        batch.validate()
        if batch.nbytes > _BATCH_ROWS * job.limits.max_row_bytes:
            most = in_words(job.limits.max_row_bytes)
            raise Unreadable(f"rows from number {row} on are longer than {most} each")
        held.append(batch)
        n_bytes += batch.nbytes
        if n_bytes >= job.limits.chunk_bytes:
            yield _chunk(held, row, job, pa)
            row += sum(batch.num_rows for batch in held)
            held, n_bytes = [], 0
    if held:
        yield _chunk(held, row, job, pa)


def _chunk(batches: list[Any], row: int, job: Job, pa: Any) -> Chunk:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return Chunk(job.file, job.form, row, sink.getvalue().to_pybytes(), limits=job.limits)


def _refuse_bomb(metadata: Any, n_in: int, limits: Limits) -> None:
    """What the row groups say of themselves; pages that lie are damaged for pyarrow.

    Not by column: the metadata of a damaged one ends the process in pyarrow's C++ code.
    """
    groups = range(metadata.num_row_groups)
    n_out = sum(metadata.row_group(group).total_byte_size for group in groups)
    if n_out > limits.max_expanded_bytes:
        raise Unreadable(f"the columns expand to more than {in_words(limits.max_expanded_bytes)}")
    if n_out > limits.free_bytes and n_out > limits.max_ratio * n_in:
        raise Unreadable(
            f"the columns expand to more than {limits.max_ratio:g} times the file's size "
            f"({in_words(n_out)} from {in_words(n_in)}): it looks like a bomb"
        )


def _refuse_columns(schema: pa.Schema) -> None:
    names = list(schema.names)
    if not names:
        raise Unreadable("the Parquet file has no columns")
    if (twice := first_twice(names)) is not None:
        raise Unreadable(f"two columns are called {twice!r}")
    for column in schema:
        try:
            _writer(column.type)
        except Refused as error:
            raise Unreadable(
                f"column {column.name!r}: {error}; write the file without that column"
            ) from error


def parse(chunk: Chunk) -> Iterator[RawRow | BadRow]:
    """A row for each record; null cells are left out."""
    pa = _arrow()
    number = chunk.first_line
    with pa.ipc.open_stream(chunk.data) as batches:
        columns = [
            (column.name, encode_basestring(column.name), _writer(column.type), _is_text(column))
            for column in batches.schema
        ]
        for batch in batches:
            for record in _records(batch, pa):
                try:
                    if isinstance(record, Exception):
                        raise Refused(f"a value that is not valid: {record}")
                    yield RawRow(chunk.file, number, _fields(record, columns, chunk.limits))
                except Refused as error:
                    yield BadRow(chunk.file, number, (str(error),), _shown(record, chunk.limits))
                number += 1


def _shown(record: Any, limits: Limits) -> str:
    """A record that is no row, for `BadRow`; nothing where it is damaged or longer than a row may be."""
    if isinstance(record, Exception):
        return ""
    text = json.dumps(record, ensure_ascii=False, default=str)
    return bad_text(text) if len(text) <= limits.max_row_bytes else ""


def _records(batch: Any, pa: Any) -> list[Any]:
    """Name -> value of each row; in place of one that is not valid, the error."""
    damages = (pa.ArrowException, ValueError, OverflowError)
    try:
        return _taken(batch)
    except damages:
        pass  # row by row it shows which one
    found: list[Any] = []
    for place in range(batch.num_rows):
        try:
            found += _taken(batch.slice(place, 1))
        except damages as error:
            found.append(error)
    return found


def _taken(batch: Any) -> list[Any]:
    """Rows as Python values, from memory that was checked: a damaged file may point anywhere."""
    batch.validate(full=True)
    return list(batch.to_pylist())


def _fields(
    record: dict[str, Any], columns: list[tuple[str, str, _Text, bool]], limits: Limits
) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for name, raw_name, text_of, is_text in columns:
        value = record[name]
        if value is None:
            continue
        try:
            raw = text_of(value)
            if len(raw) > limits.max_row_bytes:
                raise Refused(f"longer than {in_words(limits.max_row_bytes)}")
            value = value if is_text else value_of(raw, limits.max_depth)
        except Refused as error:
            raise Refused(f"{name}: {error}") from error
        fields[name] = Field(value, raw_name, raw)
    return fields


def _is_text(column: Any) -> bool:
    return _family(column.type) == "text"


def _family(kind: Any) -> str:
    """What a type's values are written as."""
    import pyarrow.types as is_

    tests: tuple[tuple[str, tuple[Callable[[Any], bool], ...]], ...] = (
        ("text", (is_.is_string, is_.is_large_string, is_.is_string_view)),
        ("bool", (is_.is_boolean,)),
        ("integer", (is_.is_integer,)),
        ("float", (is_.is_floating,)),
        ("decimal", (is_.is_decimal,)),
        ("time", (is_.is_date, is_.is_time, is_.is_timestamp)),
        ("null", (is_.is_null,)),
        ("struct", (is_.is_struct,)),
        ("map", (is_.is_map,)),
        ("list", (is_.is_list, is_.is_large_list, is_.is_fixed_size_list)),
        ("list", (is_.is_list_view, is_.is_large_list_view)),
        ("encoded", (is_.is_dictionary, is_.is_run_end_encoded)),
    )
    if getattr(kind, "extension_name", "") == "arrow.json":
        return "json"
    return next((name for name, asked in tests if any(test(kind) for test in asked)), "other")


def _writer(kind: Any) -> _Text:
    """What writes values of an Arrow type as JSON.

    Raises:
        Refused: JSON has no form for them.
    """
    family = _family(kind)
    match family:
        case "struct":
            return _struct(kind)
        case "map":
            return _map(kind)
        case "list":
            inner = _writer(kind.value_type)
            return lambda value: f"[{', '.join(_or_null(item, inner) for item in value)}]"
        case "encoded":
            return _writer(kind.value_type)
        case "other":
            raise Refused(f"JSON has no form for values of the type {kind}")
    return _PLAIN[family]


def _struct(kind: Any) -> _Text:
    members = [kind.field(index) for index in range(kind.num_fields)]
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        raise Refused("two members of a struct have the same name")
    writers = [
        (member.name, encode_basestring(member.name), _writer(member.type)) for member in members
    ]

    def write(value: Any) -> str:
        parts = [
            f"{raw_name}: {text_of(value[name])}"
            for name, raw_name, text_of in writers
            if value[name] is not None
        ]
        return f"{{{', '.join(parts)}}}"

    return write


def _map(kind: Any) -> _Text:
    if _family(kind.key_type) != "text":
        raise Refused(f"a map whose keys are {kind.key_type}, not texts")
    inner = _writer(kind.item_type)

    def write(value: Any) -> str:
        parts = [f"{encode_basestring(key)}: {_or_null(item, inner)}" for key, item in value]
        return f"{{{', '.join(parts)}}}"

    return write


def _or_null(value: Any, text_of: _Text) -> str:
    return "null" if value is None else text_of(value)


def _float(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        raise Refused(f"{value} is not JSON")
    return float.__repr__(float(value))


def _decimal(value: Decimal) -> str:
    return format(value, "f")


_PLAIN: dict[str, _Text] = {
    "text": encode_basestring,
    "bool": lambda value: "true" if value else "false",
    "integer": int.__repr__,
    "float": _float,
    "decimal": _decimal,
    "time": lambda value: encode_basestring(value.isoformat()),
    "null": lambda value: "null",
    "json": flat,
}

FORM = Form(divide, parse)
