"""Rows of any schema to canonical rows, and back.

A value keeps its exact characters on the way: a schema says where values stand, never how they are
spelled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.data.problems import OfRow, Problems
from tunesmith.data.rows import BadRow, Field, Kind, RawRow, Row
from tunesmith.data.schemas.cut import CannotHold, Cut
from tunesmith.data.schemas.picked import ALIASES, Options, Picked, options_of
from tunesmith.data.schemas.table import SCHEMAS, Schema
from tunesmith.data.schemas.told import HEAD_ROWS, Told, schema_named, shape_of, tell
from tunesmith.errors import ArtifactError

__all__ = [
    "ALIASES",
    "HEAD_ROWS",
    "SCHEMAS",
    "Options",
    "Schema",
    "Told",
    "Written",
    "from_row",
    "options_of",
    "parse_sealed",
    "read_row",
    "tell",
    "to_row",
]


@dataclass(frozen=True)
class Written:
    """A row in another schema.

    Attributes:
        text: one line of JSON, without its line end; "" when the schema cannot hold the row.
        lost: names of what the schema has no place for.
        refused: why the schema cannot hold the row; "" when it can.
    """

    text: str
    lost: tuple[str, ...] = ()
    refused: str = ""


def to_row(raw: RawRow, schema: Told | str, options: Options, problems: Problems) -> Row | None:
    """The canonical row of a raw row; None when it is wrong, which is noted with its field.

    Args:
        raw: a row of a file.
        schema: of the file, as `tell` found it, or its name. A row that looks like another one is
            wrong, unless it has a field `task`: rows of several tasks may have several schemas.
        options: fields that the user mapped, and a system message.
        problems: gets what is wrong.
    """
    name = schema if isinstance(schema, str) else schema.schema
    if options.schema is None and not options.mapping:
        own, has_task = shape_of(raw), "task" in raw.fields
        is_other = not (own and name) or SCHEMAS[own].family != SCHEMAS[name].family
        if own and name and is_other and not has_task:
            a = "an" if own[0] in "aeiou" else "a"
            problems.add(raw.where, f"mixed schemas: {a} {own} row in a file of {name}")
            return None
        if is_other and (own or has_task):
            name = own
    if not name:
        names = ", ".join(raw.fields) or "none"
        problems.add(
            raw.where,
            f"no schema has such a row; its fields are {names}: say by data.fields what they are",
        )
        return None
    return SCHEMAS[name].reads(Picked(raw, name, options, problems))


def read_row(raw: RawRow | BadRow, schema: Told | str, options: Options) -> Row | BadRow:
    """As `to_row`, with the row and what is wrong with it in place of nothing."""
    if isinstance(raw, BadRow):
        return raw
    problems = OfRow()
    row = to_row(raw, schema, options, problems)
    if row is None or problems.n_problems:
        return BadRow(raw.file, raw.line, tuple(problems.lines), raw.text)
    return row


def from_row(row: Row, schema: str, parts: tuple[Field, Field] | None = None) -> Written:
    """A canonical row in another schema.

    Args:
        parts: the two that its last question was read in, as `instruction.parts_of` gives them.

    Raises:
        ConfigError: no schema has this name.
    """
    target = SCHEMAS[schema_named(schema)]
    cut = Cut(row, parts)
    try:
        own = target.writes(cut)
    except CannotHold as error:
        return Written("", tuple(cut.lost), str(error))
    return Written(cut.written(own, target.reserved), tuple(cut.lost))


_TELLS: Mapping[str, Kind] = {
    "messages": "chat",
    "chosen": "pair",
    "completion": "feedback",
    "answer": "problem",
    "text": "text",
}
"""Field that only one kind of canonical rows has -> that kind."""


def parse_sealed(where: str, line: str) -> Row:
    """A line of a sealed dataset, which needs no checks.

    Raises:
        ArtifactError: it is no canonical row, so nothing of ours sealed it.
    """
    text = line.rstrip("\r\n")
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise _not_sealed(where) from error
    if isinstance(value, dict) and isinstance(value.get("meta"), dict):
        for name, kind in _TELLS.items():
            if name in value:
                return Row(where, kind, text, value)
    raise _not_sealed(where)


def _not_sealed(where: str) -> ArtifactError:
    return ArtifactError(
        f"{where}: no row of a sealed dataset",
        why="it has none of the forms that the data stage writes",
        fix="build the dataset again with `tunesmith data build`",
    )
