"""Files of rows from one schema and form to another; what cannot be kept is counted and named."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from tunesmith.data.named import fields_in, idle_fields, once
from tunesmith.data.problems import Problems
from tunesmith.data.rows import RawRow, Row
from tunesmith.data.schemas import HEAD_ROWS, Options, Told, from_row, tell, to_row
from tunesmith.data.schemas.instruction import parts_of
from tunesmith.data.schemas.slices import object_of
from tunesmith.data.schemas.told import schema_named
from tunesmith.data.tables import FORMS, TABLES, Columns, form_of, unfit_for_table, write_rows
from tunesmith.errors import ConfigError, DataError, counted
from tunesmith.registry import nearest
from tunesmith.store import storage_errors, writing

if TYPE_CHECKING:
    from tunesmith.data.read import Source

__all__ = ["STANDARD", "Conversion", "Loss", "Target", "convert"]

STANDARD = "-"
"""Stands for stdin and stdout."""
_LONG_BYTES = 8_000_000
_FIX = "mend the lines named, or say what they are: --from SCHEMA, --field prompt=NAME --field completion=NAME"


@dataclass(frozen=True)
class Target:
    """What files are converted to.

    Attributes:
        schema: one of `SCHEMAS`.
        out: the file, or "-" for stdout.
        form: one of `FORMS`; by the name of the file when empty, JSONL on stdout.
        strict: refuse when anything would be lost.
        rest: file for the rows that the schema cannot hold, as JSON lines with `where`, `reason` and
            `row`; without it they are refused.
    """

    schema: str
    out: str = STANDARD
    form: str = ""
    strict: bool = False
    rest: str = ""

    def settled_form(self) -> str:
        """The form, checked.

        Raises:
            ConfigError: there is no such form, or the file's name says none.
        """
        if self.form and self.form not in FORMS:
            raise ConfigError(
                f"no form is called {self.form!r}{nearest(self.form, FORMS)}",
                fix=f"use one of: {', '.join(FORMS)}",
            )
        if not self.form and self.out == STANDARD:
            return "jsonl"
        return self.form or form_of(Path(self.out))


@dataclass
class Loss:
    """What could not be kept in some rows.

    Attributes:
        rows: how many.
        first: "file:line" of the first.
        example: that row as it was, cut to 160 characters.
    """

    rows: int
    first: str
    example: str


@dataclass
class Conversion:
    """What was done.

    Attributes:
        schema: what was written.
        form: its form.
        files: path, schema, reason, mapping and rows of each file that was read.
        read: rows read.
        written: rows written.
        rest: rows that the schema cannot hold, which went to the file for them.
        lost: what was lost -> in how many rows, with the first.
    """

    schema: str
    form: str
    files: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    written: int = 0
    rest: int = 0
    lost: dict[str, Loss] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def convert(
    files: Sequence[str | Path],
    target: Target,
    *,
    form: str = "auto",
    options: Options | None = None,
) -> Conversion:
    """Convert files; everything is read and checked before anything is written.

    Args:
        files: files, folders, or "-" for stdin.
        target: what they are converted to.
        form: of the files; told by their content when "auto".
        options: their schema and fields, where these are not to be told from the content.

    Raises:
        ConfigError: the target's schema or form is unknown, or a file is named twice.
        MissingError: a file is not there.
        DataError: rows are wrong, the schema cannot hold some (and there is no file for them), or
            `strict` and something would be lost. All are named or counted.
        StorageError: the disk refuses.
    """
    schema_named(target.schema)
    same = os.path.realpath(target.rest) == os.path.realpath(target.out)
    if target.rest and (same or target.rest == STANDARD):
        raise ConfigError(
            f"--rest {target.rest} is where the converted rows go",
            fix="name another file for the rows that the schema cannot hold",
        )
    made = Conversion(target.schema, target.settled_form())
    # Outermost, since a full disk is met once more when the files are closed.
    with (
        storage_errors(Path(tempfile.gettempdir())),
        tempfile.TemporaryFile() as spool,
        tempfile.TemporaryFile() as rest,
    ):
        work = _Work(target, options or Options(), made, spool, rest)
        work.take_all(files, form)
        work.refuse()
        _write(work, target)
    return made


class _Work:
    """Rows on their way into the spool."""

    def __init__(
        self,
        target: Target,
        options: Options,
        made: Conversion,
        spool: IO[bytes],
        rest: IO[bytes],
    ) -> None:
        self.target, self.options, self.made = target, options, made
        self.spool, self.rest = spool, rest
        self.columns = Columns()
        self.told: list[Told] = []
        self.named: set[str] = set()
        self.problems, self.unheld = Problems(), Problems()

    def take_all(self, files: Sequence[str | Path], form: str) -> None:
        """Read, convert and spool the rows of all files."""
        from tunesmith.data.read import open_source

        named = [str(file) for file in files]
        paths = once([p for one in named for p in _files_of(one)])
        with _bar(paths) as advance:
            for path in paths:
                self._take_file(open_source(path, form=form), advance())
        for setting, why in idle_fields(self.options.mapping, self.told, self.named):
            self.problems.add(setting, why)

    def _take_file(self, source: Source, advance: Callable[[int], None]) -> None:
        rows = source.rows(self.problems)
        head = list(islice(rows, HEAD_ROWS))
        told = tell(head, self.options)
        self.told.append(told)
        if head and not told.schema:
            self.problems.add(source.name, told.why)
        n_rows = 0
        for n_rows, raw in enumerate(chain(head, rows), start=1):
            if told.schema:
                self._take(raw, told)
            if n_rows % HEAD_ROWS == 0:
                advance(source.n_bytes)
        advance(source.n_bytes)
        self.made.read += n_rows
        facts = {
            "path": str(source.path),
            "schema": told.schema,
            "why": told.why,
            "mapping": dict(told.mapping),
        }
        self.made.files.append({**facts, "rows": n_rows})

    def _take(self, raw: RawRow, told: Told) -> None:
        self.named.update(fields_in(raw, self.options.mapping))
        row = to_row(raw, told, self.options, self.problems)
        if row is None:
            return
        written = from_row(row, self.target.schema, parts_of(raw, self.options))
        is_table = self.made.form in TABLES
        refused = written.refused or (unfit_for_table(written.text) if is_table else "")
        if refused:
            self._leave(raw, row, refused)
            return
        for what in written.lost:
            self._lose(what, row.where, raw)
        if is_table:
            self.columns.see(written.text, row.where)
        self.spool.write(written.text.encode() + b"\n")
        self.made.written += 1

    def _leave(self, raw: RawRow, row: Row, reason: str) -> None:
        if not self.target.rest:
            self.unheld.add(row.where, reason)
            return
        head = json.dumps({"where": row.where, "reason": reason}, ensure_ascii=False)
        line = f'{head[:-1]}, "row": {object_of(raw.fields).raw}}}\n'
        self.rest.write(line.encode())
        self.made.rest += 1

    def _lose(self, what: str, where: str, raw: RawRow) -> None:
        found = self.made.lost.get(what)
        if found is None:
            text = object_of(raw.fields).raw
            example = text if len(text) <= 160 else f"{text[:160]}..."
            self.made.lost[what] = Loss(1, where, example)
        else:
            found.rows += 1

    def refuse(self) -> None:
        """Stop when rows are wrong, cannot be held, or would lose something against the wish."""
        self.problems.raise_any(_FIX)
        if self.unheld.n_problems:
            self.unheld.raise_any(
                f"choose another schema than {self.target.schema}, JSON lines where a table cannot hold "
                "them, or name a file for these rows (--rest FILE)"
            )
        for what, seen in self.columns.lost(self.made.form).items():
            self.made.lost[what] = Loss(seen.rows, seen.first, "")
        if self.target.strict and self.made.lost:
            lines = [
                f"{what}: {counted(loss.rows, 'row')}, first {loss.first}"
                for what, loss in self.made.lost.items()
            ]
            raise DataError(
                f"{self.target.schema} as {self.made.form} cannot keep:\n  " + "\n  ".join(lines),
                why="--strict refuses to lose anything",
                fix="choose another schema or form, or leave --strict out",
            )

    def lines(self) -> Iterator[str]:
        """The converted rows."""
        self.spool.seek(0)
        for line in self.spool:
            yield line[:-1].decode()


def _files_of(place: str) -> list[Path]:
    from tunesmith.data.read import expand

    return [Path(place)] if place == STANDARD else expand([place])


@contextmanager
def _bar(paths: Sequence[Path]) -> Iterator[Callable[[], Callable[[int], None]]]:
    """A bar on stderr when there is much to read. Call it for each file, and that with its bytes read so far."""
    from tunesmith.telemetry import progress

    n_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    if n_bytes < _LONG_BYTES:
        yield lambda: lambda _n_bytes: None
        return
    with progress("converting", n_bytes // 1_000, unit="kB") as bar:

        def of_file() -> Callable[[int], None]:
            before = bar.done
            return lambda n: bar.advance(min(before + n // 1_000, bar.total) - bar.done)

        yield of_file


def _write(work: _Work, target: Target) -> None:
    """The spooled rows to their file, and what cannot be held to the file for it: both or none."""
    with ExitStack() as files:
        if target.rest:
            part = files.enter_context(writing(Path(target.rest)))
            with part.open("wb") as stream:
                work.rest.seek(0)
                shutil.copyfileobj(work.rest, stream)
        if target.out != STANDARD:
            path = Path(target.out)
            part = files.enter_context(writing(path))
            with _opened(part, packs=path.suffix.lower() == ".gz") as stream:
                write_rows(work.lines(), work.columns, work.made.form, stream)
            return
        with tempfile.TemporaryFile() as whole:
            write_rows(work.lines(), work.columns, work.made.form, whole)
            whole.seek(0)
            with storage_errors(Path("stdout")):
                shutil.copyfileobj(whole, sys.stdout.buffer)
                sys.stdout.buffer.flush()


@contextmanager
def _opened(path: Path, *, packs: bool) -> Iterator[BinaryIO]:
    """A file to write to; compressed without name and time, so that equal rows give equal bytes."""
    with path.open("wb") as file:
        if not packs:
            yield file
            return
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
            yield packed  # type: ignore[misc]
