"""Records of text cells to rows: what CSV, TXT and Markdown have in common."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from json.encoder import encode_basestring

from tunesmith.data.read.chunk import Chunk
from tunesmith.data.rows import BadRow, Field, RawRow, bad_text

__all__ = ["parse"]


def parse(chunk: Chunk) -> Iterator[RawRow | BadRow]:
    """A row for each record; one that has not as many cells as the heading is bad. Every value is a string."""
    names = [(name, encode_basestring(name)) for name in chunk.heading]
    for line, cells in chunk.records:
        if len(cells) != len(names):
            are = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
            what = f"{are}; the heading has {len(names)}"
            yield BadRow(chunk.file, line, (what,), bad_text(_written(cells)))
            continue
        fields = {
            name: Field(cell, raw_name, encode_basestring(cell))
            for (name, raw_name), cell in zip(names, cells, strict=True)
        }
        yield RawRow(chunk.file, line, fields)


def _written(cells: tuple[str, ...]) -> str:
    """Cells as one record of CSV with commas, whatever stood between them."""
    held = io.StringIO()
    csv.writer(held, lineterminator="").writerow(cells)
    return held.getvalue()
