"""Paths of canonical rows to the names of fields in the user's own file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from tunesmith.data.check.finding import Finding
from tunesmith.data.check.text import in_text
from tunesmith.data.rows import RawRow, Row
from tunesmith.data.schemas import Told

__all__ = ["answer_in_users_words", "in_users_words"]

_PLACE = re.compile(r"(messages|prompt|completion|chosen|rejected)\[(\d+)\]\.content")
_FLAT = (
    "instruction",
    "prompt-completion",
    "preference-text",
    "feedback-text",
    "problem-text",
    "text",
)
"""Schemas of which each turn is a field of its own."""
_ANSWERS = ("completion", "output", "chosen", "answer", "messages", "text")
"""Uses of fields, one of which holds a row's answer."""


def in_users_words(found: Finding, row: Row, told: Told, raw: RawRow) -> Finding:
    """The finding with the field's name in the file, where a turn was a field there.

    Args:
        raw: the row as the file has it.
    """
    if told.schema not in _FLAT or not found.field:
        return found
    place = _PLACE.fullmatch(found.field)
    if place is None:
        return _answer(found, told)
    part, index = place[1], int(place[2])
    role = str(row.value[part][index].get("role"))
    name = _name(part, role, is_late=index >= len(row.value[part]) - 2, told=told)
    if name and name == told.mapping.get("instruction"):
        name = _part_of_question(found, told, raw)
    return replace(found, field=name) if name else found


def _part_of_question(found: Finding, told: Told, raw: RawRow) -> str:
    """Which of `instruction` and `input`, which are one turn, has the fault."""
    instruction = told.mapping["instruction"]
    for name in (instruction, told.mapping.get("input", "")):
        said = raw.fields[name].value if name in raw.fields else None
        if isinstance(said, str) and any(
            one.check == found.check for one in in_text(said, about_markup=False)
        ):
            return name
    return instruction


def answer_in_users_words(found: Finding, tolds: Mapping[str, Told]) -> Finding:
    """A finding of the whole dataset about a row's answer, with the name of the field that holds it in its file.

    Args:
        tolds: of each file that was read.
    """
    told = tolds.get(found.where.rpartition(":")[0])
    if found.field != "answer" or told is None:
        return found
    name = next((told.mapping[use] for use in _ANSWERS if use in told.mapping), "")
    return replace(found, field=name) if name else found


def _answer(found: Finding, told: Told) -> Finding:
    name = told.mapping.get(found.field) if found.field in ("answer", "text") else None
    return replace(found, field=name) if name else found


def _name(part: str, role: str, *, is_late: bool, told: Told) -> str:
    mapping = told.mapping
    if part in ("chosen", "rejected", "completion"):
        return mapping.get(part, "")
    if role == "system":
        return mapping.get("system", "")
    if not is_late and "history" in mapping:
        return mapping["history"]
    if role == "assistant":
        return mapping.get("completion") or mapping.get("output") or ""
    return mapping.get("prompt") or mapping.get("instruction") or ""
