"""Texts inside a row changed in place: every other character of the row's JSON stays as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from tunesmith.data.rows import Row

__all__ = ["Place", "edited", "strings", "strings_said"]

Place = tuple[str | int, ...]
"""Keys and indexes that lead to a value: ("messages", 0, "content")."""

_SCALAR = re.compile(r"[^,\]}\s]+")
_SPACE = " \t\r\n"
_HALVES = re.compile("[\ud800-\udfff]")
_TURNS = frozenset(("messages", "prompt", "chosen", "rejected", "completion"))


def strings(text: str) -> Iterator[tuple[Place, int, int, str]]:
    """(place, start, end, value) of each string value of valid JSON; quotes stand at `start` and `end - 1`."""
    path: list[str | int] = []
    at, is_key = 0, False
    while at < len(text):
        mark = text[at]
        if mark in _SPACE or mark == ":":
            at += 1
        elif mark in "{[":
            is_key = mark == "{"
            path.append("" if is_key else 0)
            at += 1
        elif mark in "}]":
            path.pop()
            is_key = False
            at += 1
        elif mark == ",":
            last = path[-1]
            is_key = isinstance(last, str)
            if isinstance(last, int):
                path[-1] = last + 1
            at += 1
        elif mark == '"':
            value, end = scanstring(text, at + 1, False)
            if is_key:
                path[-1], is_key = value, False
            else:
                yield tuple(path), at, end, value
            at = end
        else:
            at = _SCALAR.match(text, at).end()  # type: ignore[union-attr]


def strings_said(kind: str, place: Place) -> bool:
    """Whether a string is a text that somebody says: a turn's content, the text of a text row, a problem's answer."""
    match place:
        case ("text",):
            return kind == "text"
        case ("answer",):
            return kind == "problem"
        case (str() as field, int(), "content") | (str() as field, int(), "content", int(), "text"):
            return field in _TURNS
        case _:
            return False


def edited(
    row: Row,
    change: Callable[[str], str],
    chosen: Callable[[str, Place], bool] = strings_said,
) -> Row:
    """The row with its chosen strings changed; the very same object when none changes.

    Args:
        change: new text for a text.
        chosen: which strings, by the row's kind and their place.
    """
    pieces: list[str] = []
    done = 0
    for place, start, end, value in strings(row.text):
        if not chosen(row.kind, place):
            continue
        new = change(value)
        if new != value:
            raw = row.text[start:end]
            # Half of a surrogate pair can only be written as its escape.
            ascii_only = (raw.isascii() and not value.isascii()) or _HALVES.search(new) is not None
            pieces += [row.text[done:start], json.dumps(new, ensure_ascii=ascii_only)]
            done = end
    if not pieces:
        return row
    text = "".join([*pieces, row.text[done:]])
    value_now: Any = json.loads(text)
    return Row(row.where, row.kind, text, value_now)
