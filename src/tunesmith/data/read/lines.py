"""Blocks of whole lines, and lines as text: what cannot be text is named with its byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tunesmith.data.read.chunk import Faults, Job, Stream
from tunesmith.data.read.limits import Limits, in_words
from tunesmith.data.read.stream import full_read

__all__ = ["BOM", "Block", "TextLines", "blocks", "decoded", "too_long"]

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines. `offset` counts bytes from the begin of the (expanded) file.

    Attributes:
        is_cut: it is only the begin of a line that is longer than the limit; the rest was skipped.
    """

    first_line: int
    offset: int
    data: bytes
    is_cut: bool = False


def blocks(stream: Stream, limits: Limits) -> Iterator[Block]:
    """Whole lines, about `chunk_bytes` at a time; the last one may lack its line feed.

    Raises:
        Unreadable: the stream breaks off. What came before was yielded.
    """
    line, offset, rest = 1, 0, b""
    while data := full_read(stream, limits.chunk_bytes):
        cut = data.rfind(b"\n") + 1
        if cut:
            whole = rest + data[:cut]
            yield Block(line, offset, whole)
            line, offset, rest = line + whole.count(b"\n"), offset + len(whole), data[cut:]
            continue
        rest += data
        if len(rest) > limits.max_row_bytes:
            yield Block(line, offset, rest[:80], is_cut=True)
            offset, rest, line = offset + len(rest), b"", line + 1
            while data := full_read(stream, limits.chunk_bytes):
                cut = data.find(b"\n") + 1
                offset += cut or len(data)
                if cut:
                    rest = data[cut:]
                    break
            if b"\n" in rest:
                cut = rest.rfind(b"\n") + 1
                yield Block(line, offset, rest[:cut])
                line, offset, rest = line + rest.count(b"\n"), offset + cut, rest[cut:]
    if rest:
        yield Block(line, offset, rest)


Fault = Callable[[int, str, bytes], None]
"""Takes the number of a line that is no text, why it is none, and its bytes."""


def decoded(block: Block, limits: Limits, fault: Fault) -> Iterator[tuple[int, str]]:
    """Line number and text (without the line feed) of each line that is text.

    Every other line goes to `fault`, in its turn: not UTF-8, with a NUL byte, or too long.
    """
    if block.is_cut:
        fault(block.first_line, too_long(limits), block.data)
        return
    if block.offset == 0 and block.data.startswith(BOM):
        block = replace(block, data=block.data[len(BOM) :], offset=len(BOM))
    texts: list[str] = []
    if b"\0" not in block.data and len(block.data) <= limits.max_row_bytes:
        try:
            texts = block.data.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            texts = []  # the slow way below names the line and the byte
    if not texts:
        yield from _one_by_one(block, limits, fault)
        return
    if not texts[-1]:
        texts.pop()
    yield from enumerate(texts, block.first_line)


def _one_by_one(block: Block, limits: Limits, fault: Fault) -> Iterator[tuple[int, str]]:
    at, number = 0, block.first_line
    while at < len(block.data):
        end = block.data.find(b"\n", at)
        end = len(block.data) if end < 0 else end
        line = block.data[at:end]
        if (what := _not_text(line, block.offset + at, limits)) is not None:
            fault(number, what, line)
        else:
            yield number, line.decode("utf-8")
        at, number = end + 1, number + 1


def _not_text(line: bytes, offset: int, limits: Limits) -> str | None:
    """Why a line is not text; None when it is."""
    if len(line) > limits.max_row_bytes:
        return too_long(limits)
    if b"\0" in line:
        return f"a NUL byte at byte {offset + line.index(0)} of the file"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = line[error.start]
        return f"not UTF-8: byte 0x{bad:02x} at byte {offset + error.start} of the file"
    return None


def too_long(limits: Limits) -> str:
    """What is said of a line that is longer than a row may be."""
    return f"the line is longer than {in_words(limits.max_row_bytes)}"


class TextLines:
    """All lines of a stream, one after the other, each with its line feed.

    A line that is no text is a fault, and an empty line here, so that the lines after it keep
    their numbers.

    Attributes:
        number: of the line that was given last.
        n_chars: characters given so far.
    """

    def __init__(self, stream: Stream, job: Job, faults: Faults) -> None:
        self.number = 0
        self.n_chars = 0
        self._blocks = blocks(stream, job.limits)
        self._job = job
        self._faults = faults

    def __iter__(self) -> Iterator[str]:
        """The lines.

        Raises:
            Unreadable: the stream breaks off.
        """
        for block in self._blocks:
            is_open = not block.is_cut and not block.data.endswith(b"\n")
            n_lines = block.data.count(b"\n") + (1 if is_open or block.is_cut else 0)
            last = block.first_line + n_lines - 1
            for number, text in decoded(block, self._job.limits, self._fault):
                yield from self._empty_until(number)
                yield self._given(text if is_open and number == last else f"{text}\n")
            yield from self._empty_until(last + 1)

    def _fault(self, number: int, what: str, line: bytes) -> None:
        self._faults.add(f"{self._job.file}:{number}", what)

    def _empty_until(self, number: int) -> Iterator[str]:
        while self.number < number - 1:
            yield self._given("\n")

    def _given(self, line: str) -> str:
        self.number += 1
        self.n_chars += len(line)
        return line
