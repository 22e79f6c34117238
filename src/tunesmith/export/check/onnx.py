"""ONNX files: lengths, operators and the files of their weights, read without onnx or protobuf.

Format: Protocol Buffers' wire format (the specification "Encoding" of Protocol Buffers) and the
numbers of fields in `onnx/onnx.proto` (1.20).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from tunesmith.export.check.report import Desk
from tunesmith.models.files import Findings

__all__ = ["check_onnx"]

_FIX = "export the model again"
_OWN = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_MOST_FIELDS = 2_000_000
_MOST_TEXT = 4_096
_MOST_DEPTH = 100
"""Messages inside of messages: where Protocol Buffers' own readers stop."""
_NAME, _EXTERNAL = 8, 13
"""Fields of a TensorProto."""
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "initializer", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute", 7: "domain"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Kind of a message -> number of a field -> kind of the message in it: all ways to a tensor."""

_Field = tuple[int, int, int]
"""Number, first byte, end."""
_Part = tuple[str, int, int]
"""Kind, first byte, end."""


class _Broken(Exception):
    """The bytes are no Protocol Buffers message."""


def check_onnx(desk: Desk, path: Path) -> None:
    """Every length inside the one around it, every external file inside the folder and long enough."""
    found = desk.about(path, _FIX)
    counts = dict.fromkeys(("graph", "node", "initializer"), 0)
    domains: set[str] = set()
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        walk = _Walk(stream)
        try:
            for kind, start, end in _parts(walk, ("model", 0, size), 0):
                if kind == "domain":
                    domains.add(walk.text(start, end))
                elif kind in ("initializer", "tensor"):
                    _check_weight(desk, found, walk, path, (start, end))
                if kind in counts:
                    counts[kind] += 1
        except _Broken as error:
            found.error("onnx-structure", "", str(error), "a reader that trusts it would read on")
            return
    if not counts["graph"] or not counts["node"]:
        found.error("onnx-structure", "", "it holds no graph", "nothing can be computed with it")
    desk.tell(path, nodes=counts["node"], initializers=counts["initializer"], bytes=size)
    for domain in sorted(domains - _OWN):
        told = f"it uses operators of {domain[:100]!r}"
        why = "they come from a library of machine code that has to be loaded"
        found.warning("code", "", told, why, "use a model of ONNX's own operators")


def _parts(walk: _Walk, part: _Part, depth: int) -> Iterator[_Part]:
    """All that lies in a message and may lead to a tensor: subgraphs, attributes, functions, too."""
    kind, start, end = part
    if depth > _MOST_DEPTH:
        raise _Broken(
            f"byte {start:,} lies in more than {_MOST_DEPTH} messages inside of each other"
        )
    known = _INSIDE[kind]
    for number, first, last in walk.fields(start, end):
        if number in known:
            inner = (known[number], first, last)
            yield inner
            if inner[0] in _INSIDE:
                yield from _parts(walk, inner, depth + 1)


def _check_weight(
    desk: Desk, found: Findings, walk: _Walk, path: Path, place: tuple[int, int]
) -> None:
    start, end = place
    entries: dict[str, str] = {}
    name = _last_text(walk, start, end, _NAME)
    for number, first, last in walk.fields(start, end):
        if number == _EXTERNAL:
            key, value = (_last_text(walk, first, last, n) for n in (1, 2))
            entries[key] = value
    if not entries:
        return
    where, location = f"tensor {name[:200]}", entries.get("location", "")
    target = path.parent / location
    root = path.parent.resolve()
    if not location or "\0" in location or not target.resolve().is_relative_to(root):
        told = f"its numbers are in {location[:200]!r}, outside of the folder"
        found.error("link-outside", where, told, "another file of this machine would be read")
        return
    if not _is_file(target):
        found.error(
            "onnx-external", where, f"its numbers are in {location[:200]}, which is not there"
        )
        return
    offset, length = entries.get("offset", "0"), entries.get("length", "0")
    if not offset.isdecimal() or not length.isdecimal():
        found.error("onnx-external", where, f"its place is {offset[:20]!r}, {length[:20]!r}")
    elif int(offset) + int(length) > target.stat().st_size:
        told = f"it ends at byte {int(offset) + int(length):,} of {location}, which has {target.stat().st_size:,}"
        found.error("onnx-external", where, told, "the file was cut off, or is another model's")


def _is_file(place: Path) -> bool:
    """Whether there is such a file; a name that the system does not take names none."""
    try:
        return place.is_file()
    except OSError:
        return False


def _last_text(walk: _Walk, start: int, end: int, number: int) -> str:
    """The text of a field; of one that is there twice readers take the last."""
    text = ""
    for found, first, last in walk.fields(start, end):
        if found == number:
            text = walk.text(first, last)
    return text


class _Walk:
    """Steps through messages; the numbers of tensors are stepped over, not read."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.steps = 0

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """The length-delimited fields of a message."""
        position = start
        while position < end:
            self.steps += 1
            if self.steps > _MOST_FIELDS:
                raise _Broken(f"it has more than {_MOST_FIELDS:,} fields")
            tag, position = self._varint(position, end)
            kind = tag & 7
            if kind == 0:
                _, position = self._varint(position, end)
            elif kind in (1, 5):
                position += 8 if kind == 1 else 4
            elif kind == 2:
                length, position = self._varint(position, end)
                if position + length <= end:
                    yield tag >> 3, position, position + length
                position += length
            else:
                raise _Broken(f"byte {position:,} begins a field of the unknown kind {kind}")
            if position > end:
                raise _Broken(f"a field ends at byte {position:,}, what holds it at byte {end:,}")

    def text(self, start: int, end: int) -> str:
        if end - start > _MOST_TEXT:
            raise _Broken(f"byte {start:,} begins a text of {end - start:,} bytes")
        self.stream.seek(start)
        return self.stream.read(end - start).decode("utf-8", "replace")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        self.stream.seek(position)
        data = self.stream.read(min(10, end - position))
        value = 0
        for index, byte in enumerate(data):
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, position + index + 1
        raise _Broken(f"byte {position:,} begins a number that does not end")
