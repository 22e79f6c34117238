"""JSON text cut into its parts without changing a character of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from tunesmith.data.rows import Field

__all__ = ["as_field", "fields_of", "inner", "items_of", "json_text", "listed_as", "object_of"]

_SPACE = re.compile(r"[ \t\n\r]*")
_LINE_ENDS = str.maketrans("\n\r", "  ")

# For text that was read before, which is JSON without doubled keys.
_decode = json.JSONDecoder().raw_decode

json_text: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False).encode
"""A value as JSON, for what has no text of its own yet."""


def as_field(value: str) -> Field:
    """A new text, with its JSON."""
    return Field(value, "", json_text(value))


def fields_of(text: str) -> dict[str, Field]:
    """The fields of valid JSON text that is one object, each with its exact characters."""
    found: dict[str, Field] = {}
    at = _after(text, _after(text, 0) + 1)
    while text[at] != "}":
        key_at = at
        key, at = _decode(text, at)
        raw_key = text[key_at:at]
        at = _after(text, _after(text, at) + 1)
        value, end = _decode(text, at)
        found[key] = Field(value, raw_key, text[at:end])
        at = _after(text, end)
        if text[at] == ",":
            at = _after(text, at + 1)
    return found


def items_of(text: str) -> list[Field]:
    """The items of valid JSON text that is one list, each with its exact characters."""
    found: list[Field] = []
    at = _after(text, _after(text, 0) + 1)
    while text[at] != "]":
        value, end = _decode(text, at)
        found.append(Field(value, "", text[at:end]))
        at = _after(text, end)
        if text[at] == ",":
            at = _after(text, at + 1)
    return found


def listed_as(items: Iterable[Field]) -> Field:
    """Values as one list."""
    found = list(items)
    return Field([one.value for one in found], "", f"[{', '.join(one.raw for one in found)}]")


def object_of(fields: Mapping[str, Field]) -> Field:
    """Fields as one object; a key keeps the spelling that it came with."""
    text = ", ".join(
        f"{field.raw_key or json_text(name)}: {field.raw}" for name, field in fields.items()
    )
    return Field({name: field.value for name, field in fields.items()}, "", f"{{{text}}}")


def inner(field: Field) -> Field | None:
    """The list or object that a text spells in JSON; the field itself when it is no text.

    Tables hold nested values this way, and files that must keep tool descriptions from being
    filled with nulls. None when the text is no JSON list or object.
    """
    if not isinstance(field.value, str):
        return field
    text = field.value.strip()
    if not text.startswith(("[", "{")):
        return None
    try:
        value, end = _STRICT.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    # A line end in valid JSON is white space between values, so this changes none of them.
    return Field(value, field.raw_key, text.translate(_LINE_ENDS)) if end == len(text) else None


def _after(text: str, at: int) -> int:
    if text[at] > " ":
        return at
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


_STRICT = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_refuse)
