"""The bytes of a GGUF header as values: each length is held against the file's before it is believed."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from tunesmith.models.files.finding import Findings

__all__ = ["MOST_HEADER_BYTES", "Broken", "Cursor", "Lazy", "items_of", "read_value"]

MOST_HEADER_BYTES = 1 << 27
"""The largest vocabularies of today (262,144 tokens) make headers of about 12 MB."""
_CHUNK = 1 << 22
NUMBERS: Mapping[int, str] = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i"},
    **{6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"},
}
_BOOL, STRING, _ARRAY = 7, 8, 9


class Broken(Exception):
    """The header cannot be read any further: check, place, what."""


@dataclass(frozen=True)
class Lazy:
    """An array that lies in the header: its items are made when they are wanted."""

    kind: int
    count: int
    start: int


class Cursor:
    """Reads a header from its start; never more of the file than was asked for, plus one chunk."""

    def __init__(self, stream: BinaryIO, length: int) -> None:
        self.stream, self.length = stream, length
        self.limit = min(length, MOST_HEADER_BYTES)
        self.data = bytearray()
        self.position = 0

    @property
    def left(self) -> int:
        return self.limit - self.position

    def reserve(self, n_bytes: int, what: str) -> int:
        """Step over `n_bytes`, which are then in `data`; where they start."""
        if n_bytes > self.left:
            if self.position + n_bytes <= self.length:
                raise Broken(
                    "gguf-header",
                    f"byte {self.position}",
                    f"its header goes on beyond {MOST_HEADER_BYTES:,} bytes",
                )
            raise Broken(
                "gguf-truncated",
                f"byte {self.position}",
                f"it ends too early: {what} takes {n_bytes:,} bytes, {self.length - self.position:,} follow",
            )
        start = self.position
        self.position += n_bytes
        while len(self.data) < self.position:
            wanted = min(self.limit, max(self.position, len(self.data) + _CHUNK))
            read = self.stream.read(wanted - len(self.data))
            if not read:
                raise Broken(
                    "gguf-truncated", f"byte {len(self.data)}", "it was cut while it was read"
                )
            self.data += read
        return start

    def reach(self, position: int, n_bytes: int, what: str) -> int:
        """Have the bytes from `position` on in `data`; how many bytes are there."""
        self.position = position
        self.reserve(n_bytes, what)
        return len(self.data)

    def number(self, code: str, what: str) -> Any:
        start = self.reserve(struct.calcsize(code), what)
        return struct.unpack_from(f"<{code}", self.data, start)[0]

    def text(self, what: str, most: int | None = None) -> bytes:
        at = self.position
        length = self.number("Q", f"the length of {what}")
        if most is not None and length > most:
            raise Broken(
                "gguf-name", f"byte {at}", f"{what} is {length:,} bytes long, {most:,} is the most"
            )
        start = self.reserve(length, what)
        return bytes(self.data[start : start + length])


def items_of(array: Lazy, header: bytes) -> list[Any]:
    """The items of an array that lies in `header`. A text that is no UTF-8 has U+FFFD in it."""
    if array.kind != STRING:
        return list(struct.unpack_from(f"<{array.count}{NUMBERS[array.kind]}", header, array.start))
    position, texts = array.start, []
    for _ in range(array.count):
        end = position + 8 + int.from_bytes(header[position : position + 8], "little")
        texts.append(header[position + 8 : end].decode("utf-8", "replace"))
        position = end
    return texts


def read_value(cursor: Cursor, found: Findings, key: str, kind: int) -> Any:
    """A value of the metadata; arrays stay where they are, as `Lazy`.

    Raises:
        Broken: the header cannot be read any further.
    """
    if kind in NUMBERS:
        return _single(cursor, found, key, kind)
    if kind == STRING:
        return _decoded(cursor.text(key), found, key)
    if kind != _ARRAY:
        raise Broken("gguf-kind", f"key {key}", f"its value is of the unknown kind {kind}")
    of, length = cursor.number("I", key), cursor.number("Q", key)
    if of in NUMBERS:
        n_bytes = length * struct.calcsize(NUMBERS[of])
        return Lazy(of, length, cursor.reserve(n_bytes, f"the array {key}"))
    if of != STRING:
        raise Broken("gguf-kind", f"key {key}", f"its array holds values of the kind {of}")
    return _texts(cursor, key, length)


def _single(cursor: Cursor, found: Findings, key: str, kind: int) -> Any:
    if kind == _BOOL:
        byte = cursor.number("B", key)
        if byte > 1:
            found.error("gguf-kind", f"key {key}", f"a truth value is {byte}, neither 0 nor 1")
        return bool(byte)
    return cursor.number(NUMBERS[kind], key)


def _texts(cursor: Cursor, key: str, length: int) -> Lazy:
    """Step over an array of texts: only their lengths are looked at."""
    if length * 8 > cursor.left:
        what = f"the array is said to hold {length:,} texts in {cursor.left:,} bytes"
        raise Broken("gguf-truncated", f"key {key}", what)
    start = position = cursor.position
    have, what = len(cursor.data), f"a text of {key}"
    for _ in range(length):
        if position + 8 > have:
            have = cursor.reach(position, 8, what)
        size = int.from_bytes(cursor.data[position : position + 8], "little")
        position += 8
        if position + size > have:
            have = cursor.reach(position, size, what)
        position += size
    cursor.position = position
    return Lazy(STRING, length, start)


def _decoded(raw: bytes, found: Findings, key: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found.error("gguf-text", f"key {key}", f"its text is no UTF-8: {error.reason}")
        return raw.decode("utf-8", "replace")
