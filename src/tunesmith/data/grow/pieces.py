"""Edits of one value inside a row's JSON text; every other character stays as it is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["Path", "as_json", "put", "raw_at", "replaced", "value_at"]

Path = Sequence[str | int]
"""Keys and indexes from the row down to a value: `("messages", 1, "content")`."""

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

_ENCODE: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False).encode
_HALVES = re.compile("[\ud800-\udfff]")


def as_json(value: object) -> str:
    """A value as JSON on one line; half of a surrogate pair, which has no UTF-8, as its escape."""
    return _HALVES.sub(lambda half: f"\\u{ord(half[0]):04x}", _ENCODE(value))


def raw_at(text: str, path: Path) -> str:
    """The exact characters of a value.

    Raises:
        KeyError: there is none at `path`.
    """
    start, end = _span(text, path)
    return text[start:end]


def value_at(text: str, path: Path) -> Any:
    """The parsed value.

    Raises:
        KeyError: there is none at `path`.
    """
    return json.loads(raw_at(text, path))


def replaced(text: str, path: Path, raw: str) -> str:
    """The row with other characters for one value.

    Raises:
        KeyError: there is none at `path`.
    """
    start, end = _span(text, path)
    return f"{text[:start]}{raw}{text[end:]}"


def put(text: str, path: Path, raw: str) -> str:
    """The row with a field set: replaced where it is, else added at the end of its object.

    Raises:
        KeyError: the object that should hold it is not there.
    """
    *parents, last = path
    start, end = _span(text, parents)
    if any(key == last for key, _, _ in _fields(text, start)):
        return replaced(text, path, raw)
    is_empty = _after_space(text, start + 1) == end - 1
    comma = "" if is_empty else ", "
    return f"{text[: end - 1]}{comma}{as_json(last)}: {raw}{text[end - 1 :]}"


def _span(text: str, path: Path) -> tuple[int, int]:
    start = _after_space(text, 0)
    end = len(text.rstrip(" \t\r\n"))
    for step in path:
        found = _fields(text, start) if isinstance(step, str) else _items(text, start)
        for key, value_start, value_end in found:
            if key == step:
                start, end = value_start, value_end
                break
        else:
            raise KeyError(step)
    return start, end


def _fields(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Key, start and end of each value of the object at `start`; nothing when it is none."""
    if text[start : start + 1] != "{":
        return
    at = _after_space(text, start + 1)
    while text[at] != "}":
        key, at = _DECODER.raw_decode(text, at)
        value_start = _after_space(text, _after_space(text, at) + 1)
        _, value_end = _DECODER.raw_decode(text, value_start)
        yield key, value_start, value_end
        at = _after_space(text, value_end)
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _items(text: str, start: int) -> Iterator[tuple[int, int, int]]:
    """Index, start and end of each item of the list at `start`; nothing when it is none."""
    if text[start : start + 1] != "[":
        return
    at, index = _after_space(text, start + 1), 0
    while text[at] != "]":
        _, end = _DECODER.raw_decode(text, at)
        yield index, at, end
        at, index = _after_space(text, end), index + 1
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
