"""Where a row's question, context and answer stand, and which part of a turn is the question."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tunesmith.data.grow.pieces import as_json, put, raw_at, replaced
from tunesmith.data.rows import Row

__all__ = [
    "answers_raw",
    "asks",
    "context_paths",
    "question_path",
    "question_span",
    "remade",
    "with_origin",
]

_ANSWERS: Mapping[str, tuple[str, ...]] = {
    "pair": ("chosen", "rejected"),
    "feedback": ("completion", "label"),
    "problem": ("answer",),
    "text": ("text",),
}
"""Kind -> the fields that no augmentation may touch; of a chat all turns of assistant and tools."""

_ASKING_TEXT = (
    "what which who whom whose when where why how is are was were do does did can could will would "
    "should may has have had am list show give name find count tell return select get display "
    "compute calculate print write explain describe translate summarise summarize classify extract "
    "make create please convert rewrite identify define compare solve"
)
_ASKING = frozenset(_ASKING_TEXT.split())
_LABEL = re.compile(r"(?im)^[ \t]*(?:question|query|q|task|instruction)[ \t]*:[ \t]*")


def _turns_key(row: Row) -> str | None:
    if row.kind == "text":
        return None
    return "messages" if row.kind == "chat" else "prompt"


def question_path(row: Row) -> tuple[str, int, str] | None:
    """Path of the text of the last user turn before the answer; None when there is none."""
    key = _turns_key(row)
    if key is None:
        return None
    turns = row.value[key]
    last = len(turns) - (1 if row.kind == "chat" else 0)
    for index in range(last - 1, -1, -1):
        if turns[index].get("role") == "user":
            is_text = isinstance(turns[index].get("content"), str)
            return (key, index, "content") if is_text else None
    return None


def context_paths(row: Row) -> list[tuple[str, int, str]]:
    """Paths of the texts that may hold context: all system turns and the last user turn."""
    key = _turns_key(row)
    if key is None:
        return []
    found: list[tuple[str, int, str]] = [
        (key, index, "content")
        for index, turn in enumerate(row.value[key])
        if turn.get("role") == "system" and isinstance(turn.get("content"), str)
    ]
    question = question_path(row)
    return [*found, question] if question else found


def answers_raw(row: Row) -> list[str]:
    """The exact characters of everything that is learned or checked, in order."""
    if row.kind != "chat":
        return [raw_at(row.text, (name,)) for name in _ANSWERS[row.kind]]
    return [
        raw_at(row.text, ("messages", index))
        for index, turn in enumerate(row.value["messages"])
        if turn.get("role") in ("assistant", "tool")
    ]


def asks(text: str) -> bool:
    """Whether a text is plainly a question or a request, by its first word or its end."""
    words = text.split(maxsplit=1)
    first = words[0].strip("\"'([,:").casefold() if words else ""
    return text.rstrip().endswith("?") or first in _ASKING


def question_span(text: str) -> tuple[int, int] | None:
    """Start and end of the question within a turn that may also hold context.

    A whole turn of one paragraph; what follows the last label such as `Question:`; else the last
    paragraph, or the first, when it plainly asks. None when nothing can be told for sure.
    """
    labels = list(_LABEL.finditer(text))
    if labels:
        start = labels[-1].end()
        line_end = text.find("\n", start)
        return _trimmed(text, start, len(text) if line_end < 0 else line_end)
    paragraphs = [(m.start(), m.end()) for m in re.finditer(r"\S(?:.|\n(?!\s*\n))*", text)]
    if not paragraphs:
        return None
    if len(paragraphs) == 1 and "\n" not in text.strip():
        return _trimmed(text, *paragraphs[0])
    lines = [m.span() for m in re.finditer(r"[^\n]+", text) if not m[0].isspace()]
    for start, end in (lines[-1], lines[0]):
        if asks(text[start:end]):
            return _trimmed(text, start, end)
    return None


def _trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None


def remade(row: Row, changes: Mapping[tuple[str | int, ...], Any]) -> Row:
    """The row with other values at some paths; all other characters are the same."""
    text = row.text
    for path, value in changes.items():
        text = replaced(text, path, as_json(value))
    return Row(row.where, row.kind, text, json.loads(text))


def with_origin(row: Row, origin: Mapping[str, Any]) -> Row:
    """The row with `meta.origin`; what stood there before becomes the origin's `parent`."""
    before = row.meta.get("origin")
    said = dict(origin) if before is None else {**origin, "parent": before}
    text = put(row.text, ("meta", "origin"), as_json(said))
    return Row(row.where, row.kind, text, json.loads(text))
