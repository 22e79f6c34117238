"""Raw and canonical rows from JSON text, for tests that need no file."""

from __future__ import annotations

import json

from tunesmith.data.problems import Problems
from tunesmith.data.rows import RawRow
from tunesmith.data.schemas import Options, tell, to_row
from tunesmith.data.schemas.slices import fields_of


def raw_row(row, line=1):
    text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
    return RawRow("rows.jsonl", line, fields_of(text))


def read(*rows, options=None):
    """Told schema, canonical rows and problems of rows, each a value or JSON text."""
    asked, problems = options or Options(), Problems()
    raws = [raw_row(row, number) for number, row in enumerate(rows, 1)]
    told = tell(raws, asked)
    found = [to_row(raw, told, asked, problems) for raw in raws]
    return told, [row for row in found if row is not None], problems.lines


def one(row, options=None):
    """The canonical row of a right row."""
    _, rows, problems = read(row, options=options)
    assert problems == []
    return rows[0]
