"""GGUF files: what their header says, held against the file's length before llama.cpp reads it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian; what llama.cpp
refuses beyond it: `ggml/src/gguf.cpp`. Read here because the `gguf` package makes an array of each of 100,000
strings, which takes seconds, trusts every length, and is not there where only the engine is.

A header is read up to its own end and never beyond `MOST_HEADER_BYTES`; texts and arrays are made only
when they are asked for. So time and memory are bounded whatever a file claims.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.models.files.finding import Finding, Findings, refuse
from tunesmith.models.files.ggml import GGML_TYPES, GgmlType
from tunesmith.models.files.gguf_numbers import check_numbers
from tunesmith.models.files.gguf_values import (
    Broken,
    Cursor,
    Lazy,
    items_of,
    read_value,
)

__all__ = [
    "GgufFile",
    "GgufTensor",
    "look_at_gguf",
    "parts_of_gguf",
    "read_metadata",
    "refuse_damaged_gguf",
]

MOST_TENSORS = 1 << 17
MOST_KEYS = 1 << 16
MOST_DIMENSIONS = 4
MOST_NAME_BYTES = 63
MOST_KEY_BYTES = (1 << 16) - 1
_DEFAULT_ALIGNMENT = 32
_FIX = "download or convert the file again, from a source that you trust"
_REFUSED_FIX = "export, convert or download the model again"
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as the header declares it.

    Attributes:
        type: its number format.
        shape: the fastest index first, as GGUF has it: a matrix is (in, out).
        offset: first byte in the file.
        bytes: size in the file.
    """

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass
class GgufFile:
    """A header, as far as it could be read.

    Attributes:
        findings: what is wrong with it.
        tensors: by name, in the file's order.
        size_bytes: the file's length.
    """

    path: Path
    version: int = 0
    size_bytes: int = 0
    data_start: int = 0
    tensors: dict[str, GgufTensor] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    _values: dict[str, Any] = field(default_factory=dict)
    _spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    _header: bytes = b""

    @property
    def is_sound(self) -> bool:
        """Nothing is wrong for which it must not be loaded."""
        return not any(one.severity == "error" for one in self.findings)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the metadata's values, in the file's order."""
        return tuple(self._values)

    def pair(self, key: str) -> bytes:
        """A key and its value as they stand in the header: what a copy of the file begins with."""
        start, end = self._spans[key]
        return self._header[start:end]

    def length(self, key: str) -> int:
        """Items of an array; 0 when there is no such array."""
        value = self._values.get(key)
        return value.count if isinstance(value, Lazy) else 0

    def kind(self, key: str) -> int | None:
        """Kind of an array's items, as the format numbers them; None when there is no such array."""
        value = self._values.get(key)
        return value.kind if isinstance(value, Lazy) else None

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata; an array is a list. A text that is no UTF-8 has U+FFFD in it."""
        value = self._values.get(key, default)
        return items_of(value, self._header) if isinstance(value, Lazy) else value


def look_at_gguf(path: Path, name: str = "") -> GgufFile:
    """Read a file's header and hold every number in it against the file's length; no weight is read.

    Args:
        name: what findings call the file; the path when empty.

    Raises:
        OSError: the file cannot be opened.
    """
    found = Findings(name or str(path), _FIX)
    file = GgufFile(path, findings=found.found)
    with path.open("rb") as stream:
        file.size_bytes = stream.seek(0, 2)
        stream.seek(0)
        cursor = Cursor(stream, file.size_bytes)
        try:
            _read(cursor, file, found)
        except Broken as broken:
            check, where, what = broken.args
            found.error(check, where, what, "a reader that trusts it would read foreign memory")
        file._header = bytes(cursor.data[: cursor.position])
    if found.is_sound:
        check_numbers(file, found)
    return file


def _read(cursor: Cursor, file: GgufFile, found: Findings) -> None:
    n_tensors, n_keys = _start(cursor, file)
    for number in range(n_keys):
        _pair(cursor, file, found, number)
    alignment = _alignment(file, found)
    entries = [_entry(cursor, found, number) for number in range(n_tensors)]
    file.data_start = _padded(cursor.position, alignment)
    _place(file, found, entries, alignment)
    if found.is_sound or n_tensors == 0:
        _end(file, found, alignment)


def _start(cursor: Cursor, file: GgufFile) -> tuple[int, int]:
    start = cursor.reserve(min(4, cursor.length), "the magic")
    magic = bytes(cursor.data[start : start + 4])
    if magic != b"GGUF":
        raise Broken("gguf-magic", "byte 0", f"it starts with {magic!r} instead of b'GGUF'")
    start = cursor.reserve(20, "the head of a GGUF file")
    version, n_tensors, n_keys = struct.unpack_from("<IQQ", cursor.data, start)
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0 and version
        told = "it is in big endian" if swapped else f"its version is {version}, known are 2 and 3"
        raise Broken("gguf-version", "byte 4", told)
    file.version = version
    for what, count, most, least_bytes in (
        ("tensors", n_tensors, MOST_TENSORS, 24),
        ("keys", n_keys, MOST_KEYS, 13),
    ):
        if count > most or count * least_bytes > cursor.length:
            raise Broken(
                "gguf-count",
                "byte 8" if what == "tensors" else "byte 16",
                f"it names {count:,} {what} in {cursor.length:,} bytes",
            )
    return n_tensors, n_keys


def _pair(cursor: Cursor, file: GgufFile, found: Findings, number: int) -> None:
    start = cursor.position
    raw = cursor.text(f"the name of key {number + 1}", MOST_KEY_BYTES)
    key = raw.decode("utf-8", "backslashreplace")
    if not raw.isascii() or not raw:
        found.error("gguf-key", f"key {key!r}", "the name of a key is not in ASCII, or empty")
    if key in file._values:
        found.error(
            "gguf-duplicate",
            f"key {key}",
            "the key is there twice",
            "two readers may take two values",
        )
    file._values[key] = read_value(cursor, found, key, cursor.number("I", f"the kind of {key}"))
    file._spans[key] = (start, cursor.position)


def _alignment(file: GgufFile, found: Findings) -> int:
    value = file._values.get("general.alignment", _DEFAULT_ALIGNMENT)
    if isinstance(value, int) and value > 0 and value & (value - 1) == 0:
        return value
    where = "key general.alignment"
    found.error("gguf-alignment", where, f"it is {value!r}, which is no power of two")
    return _DEFAULT_ALIGNMENT


_Entry = tuple[str, tuple[int, ...], GgmlType, int]


def _entry(cursor: Cursor, found: Findings, number: int) -> _Entry | None:
    raw = cursor.text(f"the name of tensor {number + 1}")
    name = raw[:200].decode("utf-8", "backslashreplace")
    where = f"tensor {name}"
    if len(raw) > MOST_NAME_BYTES:
        found.error("gguf-name", where, f"its name is {len(raw):,} bytes long, 63 is the most")
    n_dimensions = cursor.number("I", where)
    if n_dimensions > MOST_DIMENSIONS:
        raise Broken("gguf-shape", where, f"it has {n_dimensions:,} dimensions, 4 is the most")
    shape = tuple(cursor.number("Q", where) for _ in range(n_dimensions))
    kind, offset = cursor.number("I", where), cursor.number("Q", where)
    form = GGML_TYPES.get(kind)
    if form is None:
        found.error("gguf-type", where, f"its number format {kind} is withdrawn or unknown")
    elif shape and shape[0] % form.block:
        what = f"its rows of {shape[0]:,} weights are no whole number of blocks of {form.block} ({form.name})"
        found.error("gguf-shape", where, what)
        form = None
    return None if form is None else (name, shape, form, offset)


def _place(file: GgufFile, found: Findings, entries: list[_Entry | None], alignment: int) -> None:
    """Sizes and places: inside the file, one after the other, none over another."""
    expected: int | None = 0
    for entry in entries:
        tensor = None if entry is None else _sized(file, found, *entry)
        if tensor is None:
            expected = None  # where the next one has to start is not known
            continue
        where, offset = f"tensor {tensor.name}", tensor.offset - file.data_start
        if tensor.name in file.tensors:
            found.error(
                "gguf-duplicate",
                where,
                "the tensor is there twice",
                "two readers may take two weights",
            )
        file.tensors[tensor.name] = tensor
        if tensor.offset + tensor.bytes > file.size_bytes:
            found.error(
                "gguf-bounds",
                where,
                f"it ends at byte {tensor.offset + tensor.bytes:,}, the file at byte {file.size_bytes:,}",
                "the file was cut off, or its header is not that of its weights",
            )
        elif expected is not None and offset != expected:
            found.error("gguf-order", where, *_displaced(offset, expected, alignment))
        expected = _padded(max(expected or 0, offset + tensor.bytes), alignment)


def _sized(
    file: GgufFile, found: Findings, name: str, shape: tuple[int, ...], form: GgmlType, offset: int
) -> GgufTensor | None:
    where, weights = f"tensor {name}", prod(shape)
    if weights >= 1 << 63:
        found.error("gguf-shape", where, f"its shape {list(shape)} overflows")
        return None
    if weights == 0:
        found.warning("gguf-shape", where, f"its shape {list(shape)} holds no weight")
    n_bytes = weights // form.block * form.bytes
    return GgufTensor(name, form, shape, file.data_start + offset, n_bytes)


def _displaced(offset: int, expected: int, alignment: int) -> tuple[str, str]:
    if offset % alignment:
        told = f"it starts at byte {offset:,} of the weights, which is no multiple of {alignment}"
    elif offset < expected:
        told = f"it starts at byte {offset:,} of the weights, inside the tensor before, which ends at {expected:,}"
    else:
        told = f"bytes {expected:,} to {offset:,} of the weights, before it, belong to no tensor"
    return told, "llama.cpp refuses a file whose tensors do not follow each other"


def _end(file: GgufFile, found: Findings, alignment: int) -> None:
    last = max((tensor.offset + tensor.bytes for tensor in file.tensors.values()), default=0)
    # The writer pads after the last tensor or not; a file of keys alone ends with them.
    if not file.tensors:
        return
    spare = file.size_bytes - _padded(last, alignment)
    if spare > 0:
        found.warning(
            "gguf-trailing",
            f"byte {_padded(last, alignment):,}",
            f"{spare:,} bytes follow the last tensor",
            "nothing reads them: another file may be hidden there",
        )


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def parts_of_gguf(file: GgufFile) -> Iterator[Path]:
    """The other files of a model in several parts, which llama.cpp opens by itself; none of one that is whole."""
    count = file.get("split.count", 0)
    named = _PART.fullmatch(file.path.name)
    if not isinstance(count, int) or count < 2 or named is None:
        return
    for number in range(1, min(count, int(named["count"])) + 1):
        path = file.path.with_name(f"{named['stem']}-{number:05d}-of-{named['count']}.gguf")
        if path != file.path:
            yield path


def refuse_damaged_gguf(path: Path) -> GgufFile:
    """The header, when llama.cpp may read the file (and the parts that it would open with it).

    Raises:
        ModelError: names everything that is wrong.
        OSError: the file cannot be opened.
    """
    file = look_at_gguf(path)
    for one in (file, *(look_at_gguf(part) for part in parts_of_gguf(file) if part.is_file())):
        magic = next((f.what for f in one.findings if f.check == "gguf-magic"), "")
        if magic:
            raise ModelError(f"{one.path} is not a GGUF file", why=magic, fix=_REFUSED_FIX)
        refuse(one.findings, f"{one.path} is no readable GGUF file", _REFUSED_FIX)
    return file


def read_metadata(path: Path) -> dict[str, Any]:
    """All key-value pairs of a GGUF file; no tensor is read.

    Raises:
        ModelError: the file is damaged.
    """
    try:
        file = refuse_damaged_gguf(path)
    except OSError as error:
        raise ModelError(
            f"{path} is no readable GGUF file", why=str(error), fix="export again"
        ) from error
    return {key: file.get(key) for key in file.keys}
