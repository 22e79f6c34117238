"""Plain text: a row for each paragraph. Blank lines stand between paragraphs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tunesmith.data.read.cells import parse
from tunesmith.data.read.chunk import Chunk, Faults, Form, Job, Record, Stream, gathered
from tunesmith.data.read.limits import in_words
from tunesmith.data.read.lines import TextLines

__all__ = ["FORM", "Gathering"]

HEADING = ("text",)


class Gathering:
    """Lines on their way to one text, within the limit of a row."""

    def __init__(self, job: Job, faults: Faults) -> None:
        self.begins_at = 1
        self._job = job
        self._faults = faults
        self._lines: list[str] = []
        self._n_chars = 0

    def add(self, number: int, line: str) -> None:
        """One more line, with its line feed; past the limit it is left out."""
        if not self._lines:
            self.begins_at = number
        self._n_chars += len(line)
        if self._n_chars <= self._job.limits.max_row_bytes:
            self._lines.append(line)

    def taken(self) -> str | None:
        """The lines as they stand in the file, without the last line feed; None when too long."""
        n_chars, lines = self._n_chars, self._lines
        self._lines, self._n_chars = [], 0
        if n_chars > self._job.limits.max_row_bytes:
            most = in_words(self._job.limits.max_row_bytes)
            self._faults.add(
                f"{self._job.file}:{self.begins_at}", f"the text that starts here is over {most}"
            )
            return None
        return "".join(lines).rstrip("\r\n")

    def __bool__(self) -> bool:
        """Whether any line waits."""
        return bool(self._n_chars)


def divide(stream: Stream, job: Job) -> Iterator[Chunk]:
    """Paragraphs, some at a time.

    Raises:
        Unreadable: the stream breaks off.
    """
    faults = Faults()
    lines = TextLines(stream, job, faults)
    return gathered(_paragraphs(lines, Gathering(job, faults), lines), job, HEADING, faults)


def _paragraphs(lines: Iterable[str], held: Gathering, at: TextLines) -> Iterator[Record]:
    for line in lines:
        if line.strip():
            held.add(at.number, line)
        elif held and (text := held.taken()) is not None:
            yield held.begins_at, (text,)
    if held and (text := held.taken()) is not None:
        yield held.begins_at, (text,)


FORM = Form(divide, parse)
