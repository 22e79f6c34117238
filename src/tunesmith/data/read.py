"""Files to raw rows: bytes, lines and JSON, with every problem at its file and line.

A row stays JSON text: each field keeps the exact characters of its value beside the parsed value,
so what is written out is what was read in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tunesmith.data.problems import Problems
from tunesmith.data.rows import Field, RawRow

__all__ = ["RawFile", "read_file"]

MAX_LINE_BYTES = 32 * 2**20
BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass
class RawFile:
    """What a file held.

    Attributes:
        sha256: of the bytes that were read; empty when reading stopped early, at a problem.
    """

    path: Path
    rows: list[RawRow] = field(default_factory=list)
    n_bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class _Line:
    number: int
    offset: int
    data: bytes
    is_whole: bool


class _Refused(ValueError):
    """Valid for Python's parser, but not for us."""


def read_file(path: Path, problems: Problems) -> RawFile:
    """Read a JSONL file, or a `.json` file that holds one list of objects.

    A byte order mark and blank lines are skipped. What is wrong goes to `problems`; the rows that
    are right are returned all the same.
    """
    found = RawFile(path)
    n_before = problems.n_problems
    if path.suffix.lower() == ".json" and _first_byte(path) == b"[":
        _read_list(found, problems)
    else:
        _read_lines(found, problems)
    if not found.rows and problems.n_problems == n_before:
        problems.add(str(path), "empty file" if found.n_bytes == 0 else "no rows, only blank lines")
    return found


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(4096).removeprefix(BOM).lstrip()[:1]


def _read_lines(found: RawFile, problems: Problems) -> None:
    digest = hashlib.sha256()
    for line in _lines(found.path):
        digest.update(line.data)
        found.n_bytes += len(line.data)
        where = f"{found.path}:{line.number}"
        if line.number == 1 and _is_utf16(line.data):
            problems.add(str(found.path), "not UTF-8: it looks like UTF-16; save it as UTF-8")
            return
        if len(line.data) > MAX_LINE_BYTES:
            problems.add(where, f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB")
            return
        text = _text(line, where, problems)
        if text is None or not text.strip():
            continue
        fields = _fields(text, where, problems, is_whole=line.is_whole)
        if fields is not None:
            found.rows.append(RawRow(str(found.path), line.number, fields))
    found.sha256 = digest.hexdigest()


def _lines(path: Path) -> Iterator[_Line]:
    offset = 0
    with path.open("rb") as stream:
        number = 0
        while data := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            yield _Line(number, offset, data, data.endswith(b"\n"))
            offset += len(data)


def _is_utf16(data: bytes) -> bool:
    return data.startswith((b"\xff\xfe", b"\xfe\xff")) or data.count(b"\0") > len(data) // 4


def _text(line: _Line, where: str, problems: Problems) -> str | None:
    """The line as text, or None when it cannot be."""
    data = line.data.removeprefix(BOM) if line.number == 1 else line.data
    skipped = line.offset + len(line.data) - len(data)
    if b"\0" in data:
        at = skipped + data.index(b"\0")
        problems.add(where, f"a NUL byte at byte {at} of the file")
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = data[error.start]
        at = skipped + error.start
        problems.add(where, f"not UTF-8: byte 0x{bad:02x} at byte {at} of the file")
        return None


def _fields(
    text: str, where: str, problems: Problems, *, is_whole: bool
) -> dict[str, Field] | None:
    """The top-level fields of one JSON object, or None when the line is not one."""
    try:
        value = _DECODER.decode(text)
        if isinstance(value, dict):
            return dict(_slices(text, 0))
        hint = "; name the file .json if it is one list" if isinstance(value, list) else ""
        problems.add(where, f"a row is a JSON object, this is {_kind(value)}{hint}")
    except _Refused as error:
        problems.add(where, str(error))
    except json.JSONDecodeError as error:
        cut = "the last line is cut off: " if not is_whole else ""
        problems.add(where, f"{cut}not valid JSON at character {error.pos + 1}: {error.msg}")
    except RecursionError:
        problems.add(where, "nested too deeply")
    except ValueError as error:
        problems.add(where, f"not valid JSON: {error}")
    return None


def _slices(text: str, start: int) -> Iterator[tuple[str, Field]]:
    """The fields of the valid JSON object that starts at `start` (after spaces)."""
    at = _after_space(text, _after_space(text, start) + 1)
    while text[at] != "}":
        key_start = at
        key, at = _DECODER.raw_decode(text, at)
        raw_key = text[key_start:at]
        at = _after_space(text, _after_space(text, at) + 1)
        value, end = _DECODER.raw_decode(text, at)
        # A line feed in valid JSON is always white space between values, so this changes no value.
        yield key, Field(value, raw_key, text[at:end].replace("\n", " ").replace("\r", " "))
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _read_list(found: RawFile, problems: Problems) -> None:
    data = found.path.read_bytes()
    found.n_bytes, found.sha256 = len(data), hashlib.sha256(data).hexdigest()
    text = _text(_Line(1, 0, data, is_whole=True), str(found.path), problems)
    if text is None:
        return
    at, counted, line = _after_space(text, _after_space(text, 0) + 1), 0, 1
    while at < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        end = _element(found, text, at, line, problems)
        if end is None:
            return
        at = _after_space(text, end)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            break
    if text[at : at + 1] != "]" or text[at + 1 :].strip():
        line += text.count("\n", counted, at)
        problems.add(f"{found.path}:{line}", "the list does not end here as it should: cut off?")


def _element(found: RawFile, text: str, at: int, line: int, problems: Problems) -> int | None:
    """Read one element of the list; returns where it ends, or None when it has no end."""
    where = f"{found.path}:{line}"
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (json.JSONDecodeError, RecursionError, ValueError) as error:
        problems.add(where, f"not valid JSON in the row that starts here: {error}")
        return None
    if isinstance(value, dict):
        found.rows.append(RawRow(str(found.path), line, dict(_slices(text, at))))
    else:
        problems.add(where, f"a row is a JSON object, this is {_kind(value)}")
    return int(end)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f"the key {twice!r} stands twice in one object")
    return found


def _not_json(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_not_json)
