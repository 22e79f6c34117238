"""Raw and canonical rows from JSON text, and what a file of them holds."""

from __future__ import annotations

import json

from tunesmith.data.grow.pieces import as_json
from tunesmith.data.problems import Problems
from tunesmith.data.rows import RawRow, Row
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


def chat_row(question, answer, system=None, *, where="a.jsonl:1", **meta):
    """A canonical conversation of one question and its answer."""
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    value = {"messages": turns, "meta": meta}
    return Row(where, "chat", as_json(value), value)


def rows_in(path):
    """The values of a JSONL file; a text may hold any other line end."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
