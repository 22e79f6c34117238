"""CSV and TSV (RFC 4180; the separator is told from the content): every cell is a string."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.data.read.cells import parse
from tunesmith.data.read.chunk import Chunk, Faults, Form, Job, Record, Stream, Unreadable, gathered
from tunesmith.data.read.limits import in_words
from tunesmith.data.read.lines import TextLines
from tunesmith.data.read.objects import first_twice

__all__ = ["DELIMITERS", "FORM", "Dialect", "dialect_of"]

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
_SNIFFED_RECORDS = 50

Dialect = tuple[str, str]
"""What stands between cells, and around them ("" when quotation marks mean nothing)."""


def divide(stream: Stream, job: Job) -> Iterator[Chunk]:
    """Records under the heading in the first line, some at a time.

    Raises:
        Unreadable: the heading is not fit, or the stream breaks off.
    """
    faults = Faults()
    lines = TextLines(stream, job, faults)
    records = _records(lines, job, faults)
    first = next(records, None)
    if first is None:
        yield from gathered((), job, (), faults)
        return
    _refuse_heading(*first)
    yield from gathered(records, job, first[1], faults)


def _refuse_heading(line: int, names: Sequence[str]) -> None:
    if (twice := first_twice(names)) is not None:
        raise Unreadable(f"the name {twice!r} stands twice in the heading", line=line)
    if "" in (name.strip() for name in names):
        which = [name.strip() for name in names].index("") + 1
        raise Unreadable(f"column {which} has no name in the heading", line=line)


def _records(lines: TextLines, job: Job, faults: Faults) -> Iterator[Record]:
    """The line where each record begins, and its cells."""
    bounded = _Bounded(lines, job)
    reader = _reader(bounded, (job.delimiter, job.quote))
    while True:
        begins_at = bounded.begin()
        before = csv.field_size_limit(job.limits.max_row_bytes)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            faults.add(f"{job.file}:{begins_at}", _in_words(error, job))
            continue
        finally:
            csv.field_size_limit(before)  # it is the whole process's
        if cells:
            yield begins_at, tuple(cells)


class _Bounded:
    """Lines for one record after the other: no record may take more than a row may."""

    def __init__(self, lines: TextLines, job: Job) -> None:
        self._all = lines
        self._lines = iter(lines)
        self._most = job.limits.max_row_bytes
        self._begins_at, self._n_before = 1, 0

    def begin(self) -> int:
        """The next record begins; the number of its first line."""
        self._begins_at, self._n_before = self._all.number + 1, self._all.n_chars
        return self._begins_at

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        # A single line has a limit of its own, and a single cell one of Python's reader.
        if self._all.n_chars - self._n_before > 2 * self._most:
            what = f"the record that starts here is longer than {in_words(self._most)}"
            raise Unreadable(what, line=self._begins_at)
        return line


def _reader(lines: Iterator[str], dialect: Dialect) -> Any:
    """Python's reader, which also counts the lines that it took."""
    delimiter, quote = dialect
    if quote:
        return csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=True)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)


def _in_words(error: csv.Error, job: Job) -> str:
    """What Python's reader says, for people who write no Python."""
    text = str(error)
    if "unexpected end of data" in text:
        return "a quoted cell of the record that starts here never ends"
    if "field larger than" in text:
        return "a cell is longer than a row may be: does a quotation mark lack its partner?"
    if "new-line character" in text:
        return "a carriage return inside a cell without quotation marks"
    if "expected after" in text:
        return (
            "text follows after a cell's closing quotation mark; "
            "inside of quoted cells write quotation marks twice"
        )
    return text


def dialect_of(head: str, *, is_whole: bool, wanted: str = "") -> tuple[Dialect, int]:
    """The dialect by which the first records have equally many cells, and how many; 1 for none.

    Args:
        head: the begin of the file.
        is_whole: the head is all of the file.
        wanted: the separator to prefer where several fit.
    """
    best: tuple[int, int, Dialect] = (0, 1, (wanted or ",", '"'))
    for delimiter in sorted(DELIMITERS, key=lambda delimiter: delimiter != wanted):
        for quote in ('"', "") if delimiter == "\t" else ('"',):
            n_cells = _width(head, (delimiter, quote), is_whole=is_whole)
            if n_cells < 2:
                continue
            rank = 1 if delimiter == wanted else 0
            if (rank, n_cells) > best[:2]:
                best = (rank, n_cells, (delimiter, quote))
    return (best[2], best[1]) if best[1] > 1 else ((_by_heading(head, wanted), '"'), 1)


def _by_heading(head: str, wanted: str) -> str:
    """The separator that stands in the first line most often."""
    first = head.split("\n", 1)[0]
    counts = {delimiter: first.count(delimiter) for delimiter in DELIMITERS}
    most = max(counts.values())
    if not most or counts.get(wanted) == most:
        return wanted or ","
    return next(delimiter for delimiter, count in counts.items() if count == most)


def _width(head: str, dialect: Dialect, *, is_whole: bool) -> int:
    """Cells of each of the first records; 0 where they differ or there are fewer than two."""
    lines = head.split("\n")
    if not is_whole:
        lines = lines[:-1]
    widths: list[int] = []
    reader = _reader((f"{line}\n" for line in lines), dialect)
    try:
        for record in reader:
            if record:
                widths.append(len(record))
            if len(widths) == _SNIFFED_RECORDS:
                break
    except csv.Error as error:
        if is_whole or "unexpected end" not in str(error):
            return 0
    return widths[0] if len(widths) > 1 and len(set(widths)) == 1 else 0


FORM = Form(divide, parse)
