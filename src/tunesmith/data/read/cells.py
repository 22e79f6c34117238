"""Records of text cells to rows: what CSV, TXT and Markdown have in common."""

from __future__ import annotations

from collections.abc import Iterator
from json.encoder import encode_basestring

from tunesmith.data.problems import Problems
from tunesmith.data.read.chunk import Chunk
from tunesmith.data.rows import Field, RawRow

__all__ = ["parse"]


def parse(chunk: Chunk, problems: Problems) -> Iterator[RawRow]:
    """A row for each record that has as many cells as the heading. Every value is a string."""
    names = [(name, encode_basestring(name)) for name in chunk.heading]
    for line, cells in chunk.records:
        if len(cells) != len(names):
            are = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
            problems.add(f"{chunk.file}:{line}", f"{are}; the heading has {len(names)}")
            continue
        fields = {
            name: Field(cell, raw_name, encode_basestring(cell))
            for (name, raw_name), cell in zip(names, cells, strict=True)
        }
        yield RawRow(chunk.file, line, fields)
