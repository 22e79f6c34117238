"""What a file is divided into: pieces that any process can parse by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from tunesmith.data.read.limits import DEFAULTS, Limits
from tunesmith.data.rows import BadRow, RawRow

__all__ = ["Chunk", "Faults", "Form", "Job", "Record", "Stream", "Unreadable", "gathered"]

Record = tuple[int, tuple[str, ...]]
"""A line, and the texts that begin there: cells, or one element of a JSON list."""


class Unreadable(ValueError):
    """The rest of a file cannot be read; the message says why, `line` where (0: not known)."""

    def __init__(self, what: str, *, line: int = 0) -> None:
        super().__init__(what)
        self.line = line


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a file with whole rows; small, and made to be sent to another process.

    Attributes:
        file: the file's name, for messages.
        form: name of the form whose `parse` reads it.
        first_line: number of the first line (row, for Parquet), from 1.
        content: bytes of whole lines, records, or an Arrow stream, by the form.
        offset: where `content` begins in the (expanded) file, in bytes.
        heading: names of the cells of each record.
        limits: bounds of reading.
        problems: what was wrong where the file was divided: (where, what), before the rows' own.
    """

    file: str
    form: str
    first_line: int = 1
    content: bytes | tuple[Record, ...] = b""
    offset: int = 0
    heading: tuple[str, ...] = ()
    limits: Limits = DEFAULTS
    problems: tuple[tuple[str, str], ...] = ()

    @property
    def records(self) -> tuple[Record, ...]:
        """The content of forms that are divided into records."""
        assert not isinstance(self.content, bytes)
        return self.content

    @property
    def data(self) -> bytes:
        """The content of forms that are divided into bytes."""
        assert isinstance(self.content, bytes)
        return self.content


class Stream(Protocol):
    """Bytes of a file, expanded where they were compressed."""

    def read(self, n_bytes: int) -> bytes:
        """At most `n_bytes`; nothing at the end.

        Raises:
            Unreadable: the rest of the file cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Job:
    """What a form needs to know of the file it divides.

    Attributes:
        file: its name, for messages.
        delimiter: between cells.
        quote: around cells; empty when quotation marks mean nothing.
        container: name of the list of rows in a JSON object; empty when there is none.
    """

    file: str
    form: str
    limits: Limits
    delimiter: str = ","
    quote: str = '"'
    container: str = ""


@dataclass
class Faults:
    """Problems found while a file is divided, until a chunk carries them away."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        """Note a problem; `where` is "file" or "file:line"."""
        self.found.append((where, what))

    def taken(self) -> tuple[tuple[str, str], ...]:
        """All of them; none are left."""
        found, self.found = tuple(self.found), []
        return found


def gathered(
    records: Iterable[Record], job: Job, heading: tuple[str, ...] = (), faults: Faults | None = None
) -> Iterator[Chunk]:
    """Chunks of about `chunk_bytes` characters each; what the faults held goes with the next one.

    Raises:
        Unreadable: as `records` does, once the chunk with the records before it was yielded.
    """
    faults = faults or Faults()
    held: list[Record] = []
    n_chars = 0
    broken: Unreadable | None = None
    following = iter(records)
    while broken is None:
        try:
            record = next(following)
        except StopIteration:
            break
        except Unreadable as error:
            broken = error
            break
        held.append(record)
        n_chars += sum(map(len, record[1]))
        if n_chars >= job.limits.chunk_bytes:
            yield _chunk(job, held, heading, faults)
            held, n_chars = [], 0
    if held or faults.found:
        yield _chunk(job, held, heading, faults)
    if broken is not None:
        raise broken


def _chunk(job: Job, held: list[Record], heading: tuple[str, ...], faults: Faults) -> Chunk:
    return Chunk(
        job.file,
        job.form,
        held[0][0] if held else 1,
        tuple(held),
        heading=heading,
        limits=job.limits,
        problems=faults.taken(),
    )


@dataclass(frozen=True)
class Form:
    """How files of one form are read: divided in one process, parsed in any.

    Attributes:
        divide: the pieces of a file; what it notes as a problem damages the file as a whole.
        parse: the rows of a piece, in order, those that cannot be read among them.
    """

    divide: Callable[[Stream, Job], Iterator[Chunk]]
    parse: Callable[[Chunk], Iterator[RawRow | BadRow]]
