"""One JSON object to its fields: parsed once, each value kept as it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NoReturn

from tunesmith.data.rows import Field, json_kind

__all__ = ["Refused", "fields_of", "first_twice", "flat", "value_of"]

_SPACE = re.compile(r"[ \t\n\r]*")
_KEY = r'[ \t\n\r]*"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*'
_FIRST_KEY = re.compile(rf"[ \t\n\r]*\{{{_KEY}")
_NEXT_KEY = re.compile(rf"[ \t\n\r]*,{_KEY}")
_END = re.compile(r"[ \t\n\r]*\}[ \t\n\r]*")
# Possessive, and a string may lack its end: linear in time and flat in memory, whatever stands there.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


class Refused(ValueError):
    """The text is no row; the message says why.

    Attributes:
        is_cut: it is valid up to its end, where something is missing.
    """

    def __init__(self, what: str, *, is_cut: bool = False) -> None:
        super().__init__(what)
        self.is_cut = is_cut


class _Odd(Exception):
    """The quick way met what it does not know: the slow one names it."""


def fields_of(text: str, max_depth: int) -> dict[str, Field]:
    """The top-level fields of a JSON object, in order.

    Each value is decoded once; its raw text is cut out of `text`, line feeds between values turned
    to spaces (in valid JSON they are white space, so this changes no value).

    Raises:
        Refused: not valid JSON, not an object, a key that stands twice, NaN, nested too deeply.
    """
    if text.count("{") + text.count("[") > max_depth and _depth(text, max_depth) > max_depth:
        raise Refused(f"nested too deeply: more than {max_depth} levels")
    try:
        return _sliced(text)
    except Refused:
        raise
    except (_Odd, StopIteration, ValueError, RecursionError):
        pass  # wrong, or written in an unusual way
    try:
        return _slowly(text)
    except Refused:
        raise
    except (_Odd, IndexError, StopIteration, ValueError, RecursionError) as error:
        raise _refusal(text) from error


def value_of(text: str, max_depth: int) -> Any:
    """The JSON value that a text holds.

    Raises:
        Refused: as `fields_of`.
    """
    if text.count("{") + text.count("[") > max_depth and _depth(text, max_depth) > max_depth:
        raise Refused(f"nested too deeply: more than {max_depth} levels")
    try:
        return DECODER.decode(text)
    except Refused:
        raise
    except (ValueError, RecursionError) as error:
        raise _refusal(text) from error


def flat(raw: str) -> str:
    """Valid JSON on one line: a line feed there is always white space between values."""
    return raw.replace("\n", " ").replace("\r", " ")


def _sliced(text: str) -> dict[str, Field]:
    found: dict[str, Field] = {}
    is_flat = "\n" not in text and "\r" not in text
    n_fields = 0
    begin = _FIRST_KEY.match(text)
    while begin is not None:
        key, at = begin[1], begin.end()
        value, end = _SCAN(text, at)
        raw = text[at:end] if is_flat else flat(text[at:end])
        # A key of plain characters is its own text; any other is decoded by the slow way.
        found[key] = Field(value, f'"{key}"', raw)
        n_fields += 1
        begin = _NEXT_KEY.match(text, end)
    if n_fields == 0 or _END.fullmatch(text, end) is None or len(found) < n_fields:
        raise _Odd
    return found


def _slowly(text: str) -> dict[str, Field]:
    """The same for every valid object."""
    found: dict[str, Field] = {}
    at = _after_space(text, 0)
    if text[at] != "{":
        raise _Odd
    at = _after_space(text, at + 1)
    n_fields = 0
    while text[at] == '"':
        key, end = scanstring(text, at + 1)
        raw_key = text[at:end]
        at = _after_space(text, end)
        if text[at] != ":":
            raise _Odd
        at = _after_space(text, at + 1)
        value, end = _SCAN(text, at)
        found[key] = Field(value, raw_key, flat(text[at:end]))
        n_fields += 1
        at = _after_space(text, end)
        if text[at] != ",":
            break
        at = _after_space(text, at + 1)
        if text[at] != '"':
            raise _Odd
    if text[at] != "}" or _after_space(text, at + 1) != len(text) or len(found) < n_fields:
        raise _Odd
    return found


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _depth(text: str, enough: int) -> int:
    """How deep the text nests; counting stops past `enough`."""
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        first = token[0][0]
        if first in "[{":
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > enough:
                    break
        elif first in "]}":
            depth -= 1
    return deepest


def _refusal(text: str) -> Refused:
    """What is wrong with a text that has no fields."""
    try:
        value = DECODER.decode(text)
    except Refused as error:
        return error
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        what = f"not valid JSON at character {error.pos + 1}: {error.msg}"
        if text[error.pos : error.pos + 1] == "'":
            what += ", and these are single ones: is it Python's notation? json.dumps writes JSON"
        return Refused(what, is_cut=is_cut)
    except RecursionError:
        return Refused("nested too deeply")
    except ValueError as error:
        if "integer string conversion" in str(error):
            return Refused("a number of more than 4,300 digits: write it as a text")
        return Refused(f"not valid JSON: {error}")
    return Refused(f"a row is a JSON object, this is {json_kind(value)}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = first_twice(key for key, _ in pairs)
        raise Refused(f"the key {twice!r} stands twice in one object")
    return found


def first_twice(names: Iterable[str]) -> str | None:
    """The first name that was there before; None when all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _not_json(name: str) -> NoReturn:
    raise Refused(f"{name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_not_json)
_SCAN = DECODER.scan_once  # type: ignore[attr-defined]
