"""JSON documents, read piece by piece: a list of objects, an object that holds one such list, or
objects one after the other."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain

from tunesmith.data.read.chunk import Chunk, Form, Job, Record, Stream, Unreadable, gathered
from tunesmith.data.read.limits import in_words
from tunesmith.data.read.lines import BOM
from tunesmith.data.read.objects import Refused, fields_of
from tunesmith.data.read.stream import full_read
from tunesmith.data.rows import BadRow, RawRow, bad_text

__all__ = ["FORM", "TURN_LISTS"]

TURN_LISTS = frozenset(
    ["messages", "conversations", "conversation", "turns", "prompt", "completion", "chosen"],
).union(["rejected", "tools", "functions", "tool_calls"])
"""Names of lists of objects that belong to one row, and are no rows."""

_SPACE = re.compile(r"[ \t\n\r]*")
_SCAN = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
"""Finds where a value ends. Numbers stay text: their size and NaN are judged when rows are parsed."""
_LONGEST_WORD = 16
"""Characters that a word or an escape may lack at the end of what was read so far."""


class _Window:
    """The part of a document that is being looked at."""

    def __init__(self, stream: Stream, job: Job) -> None:
        self._stream = stream
        self._limits = job.limits
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._n_bytes = 0
        self._is_end = False
        self._text = ""
        self._at = 0
        self._line, self._counted = 1, 0

    def line(self) -> int:
        """Number of the line that the window stands at."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def next(self) -> str:
        """The next character that is no white space, not taken; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> bool:
        """Whether the next character is `wanted`; it is taken then."""
        if self.next() != wanted:
            return False
        self._at += 1
        return True

    def value(self) -> str:
        """The text of the value that begins here.

        Raises:
            Unreadable: it is no valid JSON, has no end, or is longer than a row may be.
        """
        self.next()
        while True:
            try:
                _, end = _SCAN.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._is_wrong(error) or not self._more():
                    column = error.pos - self._at + 1
                    what = f"{error.msg}, {column} characters after the row's begin"
                    raise self._refusal(
                        f"not valid JSON in the row that starts here: {what}"
                    ) from error
            except RecursionError as error:
                raise self._refusal("nested too deeply") from error
            else:
                # A number that ends with what was read so far may go on.
                if end < len(self._text) or not self._more():
                    found = self._text[self._at : end]
                    self._at = end
                    return found

    def _is_wrong(self, error: json.JSONDecodeError) -> bool:
        """Whether no text that follows could mend it."""
        is_open = error.msg.startswith("Unterminated string")
        return not is_open and error.pos + _LONGEST_WORD < len(self._text)

    def _more(self) -> bool:
        """Read on, at least as much as is held, so that a long value is not tried too often."""
        if self._is_end:
            return False
        self.line()
        self._text, self._at, self._counted = self._text[self._at :], 0, 0
        if len(self._text) > self._limits.max_row_bytes:
            most = in_words(self._limits.max_row_bytes)
            raise self._refusal(f"the row that starts here is longer than {most}")
        data = full_read(self._stream, max(self._limits.chunk_bytes, len(self._text)))
        self._is_end = not data
        self._text += self._decoded(data)
        return bool(data)

    def _decoded(self, data: bytes) -> str:
        if self._n_bytes == 0 and data.startswith(BOM):
            self._n_bytes, data = len(BOM), data[len(BOM) :]
        if b"\0" in data:
            at = data.index(0)
            self._line += data.count(b"\n", 0, at) + self._text.count("\n")
            raise self._refusal(f"a NUL byte at byte {self._n_bytes + at} of the file")
        begun: bytes = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = self._n_bytes - len(begun) + error.start
            bad = error.object[error.start]
            before = (begun + data)[: error.start]
            self._line += before.count(b"\n") + self._text.count("\n")
            raise self._refusal(f"not UTF-8: byte 0x{bad:02x} at byte {at} of the file") from error
        self._n_bytes += len(data)
        return text

    def _refusal(self, what: str) -> Unreadable:
        return Unreadable(what, line=self.line())


def divide(stream: Stream, job: Job) -> Iterator[Chunk]:
    """The texts of the rows, some at a time.

    Raises:
        Unreadable: at the first fault of the document. The rows before it were yielded.
    """
    return gathered(_numbered(_rows(_Window(stream, job), job)), job)


def _numbered(rows: Iterator[Record]) -> Iterator[Record]:
    """Rows with their lines; where the first two begin on one line, which then tells no row from the next, with
    their own numbers."""
    held: list[Record] = []
    try:
        held += [next(rows)]
        held += [next(rows)]
    except StopIteration:
        yield from held
        return
    except Unreadable:
        yield from held
        raise
    if held[0][0] != held[1][0]:
        yield from held
        yield from rows
        return
    for number, (_, texts) in enumerate(chain(held, rows), 1):
        yield number, texts


def _rows(window: _Window, job: Job) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and text of each row."""
    if window.next() == "[":
        yield from _elements(window, job)
        end = "list"
    elif job.container:
        yield from _contained(window, job)
        end = "object"
    else:
        while window.next():
            yield window.line(), (_row(window, job),)
        return
    if window.next():
        raise Unreadable(f"text follows after the {end}'s end", line=window.line())


def _elements(window: _Window, job: Job) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The elements of the list that begins here."""
    window.take("[")
    if window.take("]"):
        return
    while True:
        window.next()
        yield window.line(), (_row(window, job),)
        if window.take("]"):
            return
        if not window.take(","):
            what = "the list does not end here as it should: cut off?"
            raise Unreadable(what, line=window.line())
        if window.next() == "]":
            raise Unreadable("a comma stands before the list's end", line=window.line())


def _contained(window: _Window, job: Job) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The elements of the list under `container`; a second list of objects is refused."""
    window.take("{")
    seen: list[str] = []
    while window.next() == '"':
        name = _SCAN.decode(window.value())
        if not window.take(":"):
            break
        if name == job.container and window.next() == "[" and name not in seen:
            yield from _elements(window, job)
            seen.append(name)
        else:
            _refuse_second_list(window, name, job)
        if window.take("}"):
            return
        if not window.take(","):
            break
    raise Unreadable("the object does not end here as it should: cut off?", line=window.line())


def _refuse_second_list(window: _Window, name: str, job: Job) -> None:
    """Pass over a value beside the rows, unless it could be rows as well."""
    begins_at, text = window.line(), window.value()
    if name == job.container or (name not in TURN_LISTS and _is_list_of_objects(text)):
        what = (
            f"the object holds more than one list of rows: {job.container!r} and {name!r}; "
            "write each to a file of its own"
        )
        raise Unreadable(what, line=begins_at)


def _is_list_of_objects(text: str) -> bool:
    """Whether the text of a JSON value begins as a list of objects."""
    return text.startswith("[") and text[1:64].lstrip().startswith("{")


def _row(window: _Window, job: Job) -> str:
    line = window.line()
    text = window.value()
    if len(text) > job.limits.max_row_bytes:
        most = in_words(job.limits.max_row_bytes)
        raise Unreadable(f"the row that starts here is longer than {most}", line=line)
    return text


def parse(chunk: Chunk) -> Iterator[RawRow | BadRow]:
    """A row for each object; every other element is bad."""
    for line, (text,) in chunk.records:
        try:
            fields = fields_of(text, chunk.limits.max_depth)
        except Refused as error:
            yield BadRow(chunk.file, line, (str(error),), bad_text(text))
        else:
            yield RawRow(chunk.file, line, fields)


FORM = Form(divide, parse)
