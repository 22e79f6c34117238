"""A file of rows: what it is, its rows one after the other, and its hash when they have been read."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

from tunesmith.data.problems import Problems
from tunesmith.data.read.chunk import Chunk, Form, Job, Unreadable
from tunesmith.data.read.limits import DEFAULTS, Limits
from tunesmith.data.read.stream import STDIN, Disk, expanded
from tunesmith.data.read.told import HEAD_BYTES, Told, tell
from tunesmith.data.rows import BadRow, RawRow
from tunesmith.errors import DataError
from tunesmith.registry import Table

__all__ = [
    "AUTO",
    "FORMS",
    "Source",
    "open_source",
    "parse_chunk",
    "parse_each",
    "parse_rows",
]

AUTO = "auto"
_HERE = "tunesmith.data.read"
FORMS = Table(
    "form",
    {
        "jsonl": f"{_HERE}.jsonl:FORM",
        "json": f"{_HERE}.document:FORM",
        "csv": f"{_HERE}.delimited:FORM",
        "tsv": f"{_HERE}.delimited:FORM",
        "parquet": f"{_HERE}.parquet:FORM",
        "txt": f"{_HERE}.paragraphs:FORM",
        "markdown": f"{_HERE}.markdown:FORM",
    },
    extra="data",
)
"""Name of a form -> how its files are divided and parsed."""


class Source:
    """A file, opened for reading its rows. Get one by `open_source`.

    Attributes:
        path: the file; `-` is stdin.
        form: a name of `FORMS`; empty where the file cannot be read, and every way to read it
            then gives the one problem that says why.
        compression: "", "gzip" or "zstd".
        encoding: of its text; empty for Parquet.
        why: what the form was told from, in words.
        container: name of the list of rows in a JSON object; empty when there is none.
        delimiter: between the cells of a table; empty for other forms.
        sha256: of the file's bytes on the disk; empty before reading came to its end.
        n_bytes: the file's bytes on the disk that were read so far.
    """

    def __init__(self, path: Path, told: Told, limits: Limits, disk: Disk | None) -> None:
        self.path = path
        self.form = told.form
        self.compression = told.compression
        self.encoding = told.encoding
        self.why = told.why
        self.container = told.container
        self.delimiter = told.delimiter if told.form in ("csv", "tsv") else ""
        self.sha256 = ""
        self.n_bytes = 0
        self._told = told
        self._limits = limits
        self._once = disk
        self._is_spent = False

    @property
    def name(self) -> str:
        """The file's name in messages."""
        return "stdin" if str(self.path) == STDIN else str(self.path)

    def rows(self, problems: Problems) -> Generator[RawRow, None, None]:
        """The rows that can be read, in order; everything else goes to `problems`.

        Raises:
            DataError: the file changed while it was read, or is a pipe that was read before.
            MissingError: it can no longer be opened.
            EnvironmentProblem: a package that its form needs is not installed.
        """
        for chunk in self.chunks():
            yield from parse_rows(chunk, problems)

    def chunks(self) -> Iterator[Chunk]:
        """The file in pieces, in order, for `parse_chunk`: the same pieces whoever parses them.

        Raises:
            As `rows`.
        """
        self.sha256, self.n_bytes = "", 0
        disk = self._disk()
        try:
            yield from self._chunks(disk)
        finally:
            self.n_bytes = disk.n_bytes
            disk.close()

    def _chunks(self, disk: Disk) -> Iterator[Chunk]:
        told = self._told
        if told.refused:
            yield self._problem(self.name, told.refused)
            self.sha256 = disk.finish()
            return
        form = _form(told.form)
        job = Job(self.name, told.form, self._limits, told.delimiter, told.quote, told.container)
        is_empty = True
        try:
            for chunk in form.divide(expanded(disk, told.compression, self._limits), job):
                is_empty = False
                self.n_bytes = disk.n_bytes
                yield chunk
        except Unreadable as error:
            is_empty = False
            where = f"{self.name}:{error.line}" if error.line else self.name
            yield self._problem(where, str(error))
        self.sha256 = disk.finish()
        if is_empty:
            yield self._problem(self.name, _EMPTY if disk.n_bytes == 0 else _NO_ROWS[told.form])

    def _problem(self, where: str, what: str) -> Chunk:
        return Chunk(self.name, self.form, limits=self._limits, problems=((where, what),))

    def _disk(self) -> Disk:
        if self._once is None:
            return Disk(self.path)
        if self._is_spent:
            raise DataError(
                f"{self.name} was read already",
                why="a pipe gives its bytes only once",
                fix="save it to a file first",
            )
        self._is_spent = True
        return self._once


_EMPTY = "empty file"
_NO_ROWS = {
    "jsonl": "no rows, only blank lines",
    "json": "no rows: the list is empty",
    "csv": "no rows under the heading",
    "tsv": "no rows under the heading",
    "parquet": "no rows",
    "txt": "no rows, only blank lines",
    "markdown": "no rows: no text, only headings or blank lines",
}


def open_source(path: Path | str, *, form: str = AUTO, limits: Limits = DEFAULTS) -> Source:
    """Look at a file and say what it is; its rows are not read yet.

    Args:
        path: a file, or `-` for stdin.
        form: a name of `FORMS`, when the content does not tell it.

    Raises:
        ConfigError: no form has that name.
        MissingError: the file is not there or may not be read.
        EnvironmentProblem: it is compressed with zstd and the package for that is not installed.
    """
    if form != AUTO:
        _form(form)
    place = Path(path)
    disk = Disk(place)
    try:
        told = tell(disk.peek(HEAD_BYTES), str(place), form=form, limits=limits)
    except BaseException:
        disk.close()
        raise
    if not disk.is_once:
        disk.close()
    return Source(place, told, limits, disk if disk.is_once else None)


def parse_chunk(chunk: Chunk) -> tuple[list[RawRow], Problems]:
    """The rows of a piece of a file, and what is wrong in it; in any process.

    Raises:
        EnvironmentProblem: a package that the form needs is not installed.
    """
    problems = Problems()
    return list(parse_rows(chunk, problems)), problems


def parse_rows(chunk: Chunk, problems: Problems) -> Iterator[RawRow]:
    """As `parse_chunk`, row by row, with the problems noted in between."""
    for row in parse_each(chunk, problems):
        if isinstance(row, BadRow):
            for what in row.what:
                problems.add(row.where, what)
        else:
            yield row


def parse_each(chunk: Chunk, problems: Problems) -> Iterator[RawRow | BadRow]:
    """The rows of a piece of a file in order, those that cannot be read among them.

    Args:
        problems: gets what damages the file as a whole.

    Raises:
        EnvironmentProblem: a package that the form needs is not installed.
    """
    for where, what in chunk.problems:
        problems.add(where, what)
    if chunk.content:
        yield from _form(chunk.form).parse(chunk)


@cache
def _form(name: str) -> Form:
    """A form of the table, which asks all installed packages for their rows at each look."""
    found: Form = FORMS.load(name)
    return found
