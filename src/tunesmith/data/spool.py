"""Rows on disk while the stage decides about them, with a few numbers a row in memory.

The spool lies in the run's own scratch folder and is removed when the block ends, however it ends.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from tunesmith.data.check.finding import Finding
from tunesmith.data.problems import Problems
from tunesmith.data.rows import Row
from tunesmith.data.schemas import parse_sealed
from tunesmith.data.unreadable import Unread
from tunesmith.errors import EnvironmentProblem
from tunesmith.store import Run, reach, storage_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.data.check import Checker

__all__ = ["FACTS", "Digest", "Spool", "numpy", "spooling"]

FOLDER = "scratch/rows"

FACTS = [
    ("prompt", "u1", (32,)),
    ("whole", "<u8"),
    ("template", "<u8"),
    ("group", "<u8"),
    ("stratum", "<u8"),
    ("time", "<f8"),
    ("file", "<u4"),
    ("line", "<u8"),
    ("size", "<u4"),
    ("split", "u1"),
]
"""A row's numbers: SHA-256 of its prompt; 64-bit hashes of its conversation and what the split goes by; seconds since
1970; its file and line; the bytes of its text; the split that its file was given for. What nothing asks for is 0."""


def numpy() -> ModuleType:
    """numpy, which the base install does not bring.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        import numpy
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "building a dataset needs the package 'numpy', which is not installed",
            why="rows are compared as arrays of numbers",
            fix="pip install 'tunesmith[data]'",
        ) from error
    return numpy


@dataclass
class Digest:
    """What a chunk of a file became.

    Attributes:
        file: number of its file in the plan.
        n_bytes: of the file, about; for the progress bar.
        rows: kept rows, one line of JSON each.
        facts: (rows,) of dtype `FACTS`.
        sketches: (rows, `WIDTH`), as `sketch` makes them, when they are asked for.
        sides: file name -> lines for it: "dropped".
        findings: what the checks found in single rows, a line of JSON each.
        found_in: for each of them the place of its row among the kept ones.
        changed: places of the kept rows that a rule changed.
        before: two lines for each of them: the row as it came; rule and reason as a JSON object.
        counts: what -> number of rows; always "read", and one for each rule that dropped rows.
        problems: what is wrong with the file, or with rows where that refuses it.
        unread: the rows that cannot be read.
        kinds: kinds of the rows.
        meta_fields: names of the kept rows' other fields.
        named: those of the fields that the user mapped which stand in any row.
        checker: what the checks saw, to be merged in order.
    """

    file: int
    n_bytes: int
    rows: bytes
    facts: NDArray[Any]
    sketches: NDArray[np.uint32] | None = None
    sides: dict[str, bytes] = field(default_factory=dict)
    findings: bytes = b""
    found_in: list[int] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    before: bytes = b""
    counts: Counter[str] = field(default_factory=Counter)
    problems: Problems = field(default_factory=Problems)
    unread: Unread = field(default_factory=Unread)
    kinds: set[str] = field(default_factory=set)
    meta_fields: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    checker: Checker | None = None


class Spool:
    """Rows, facts and sketches of one build. Get one by `spooling`.

    Append with `add`; after `close` read with the others.

    Attributes:
        names: the files' names, by their numbers.
        facts: (rows,) of dtype `FACTS`, after `close`.
        sketches: (rows, `WIDTH`), mapped from the disk; None without any.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []
        self.facts: NDArray[Any]
        self.sketches: NDArray[np.uint32] | None = None
        self._offsets: NDArray[np.int64]
        self._open: dict[str, IO[bytes]] = {}
        self._width = 0
        self._n_rows = 0
        self._changed = array("q")
        self._found_in = array("q")
        self._files = ExitStack()
        self._reader: IO[bytes]

    def add(self, digest: Digest) -> None:
        """Append a chunk's rows.

        Raises:
            StorageError: the disk refuses.
        """
        with storage_errors(self.folder):
            reach("data-spool")
            self._write("rows", digest.rows)
            self._write("before", digest.before)
            self._write("found", digest.findings)
            self._changed.extend(self._n_rows + place for place in digest.changed)
            self._found_in.extend(self._n_rows + place for place in digest.found_in)
            self._n_rows += len(digest.facts)
            self._write("facts", digest.facts.tobytes())
            if digest.sketches is not None:
                self._width = digest.sketches.shape[1]
                self._write("sketches", digest.sketches.astype("<u4", copy=False).tobytes())
        for name, lines in digest.sides.items():
            self.add_side(name, lines)

    def add_side(self, name: str, lines: bytes) -> None:
        """Append lines to a side file.

        Raises:
            StorageError: the disk refuses.
        """
        with storage_errors(self.folder / name):
            self._write(f"side-{name}", lines)

    def close(self) -> None:
        """Open what was written for reading; side files may still grow.

        Raises:
            StorageError: the disk refuses.
        """
        np = numpy()
        with storage_errors(self.folder):
            facts, sketches = self.folder / "facts", self.folder / "sketches"
            self.facts = (
                np.fromfile(facts, dtype=FACTS) if facts.is_file() else np.zeros(0, dtype=FACTS)
            )
            if self._width and len(self.facts):
                self.sketches = np.memmap(
                    sketches, dtype="<u4", mode="r", shape=(len(self.facts), self._width)
                )
        sizes = self.facts["size"].astype(np.int64) + 1
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        if len(self.facts):
            self._reader = self._files.enter_context((self.folder / "rows").open("rb"))

    def text(self, index: int) -> str:
        """A row's line, without its end."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1]) - 1
        self._reader.seek(start)
        return self._reader.read(end - start).decode("utf-8", "surrogatepass")

    def row(self, index: int) -> Row:
        """A row."""
        return parse_sealed(self.where(index), self.text(index))

    def where(self, index: int) -> str:
        """ "file:line" of a row."""
        fact = self.facts[index]
        return f"{self.names[int(fact['file'])]}:{int(fact['line'])}"

    def lines(self) -> Iterator[bytes]:
        """All rows in order, each with its line end."""
        if len(self.facts):
            with (self.folder / "rows").open("rb") as stream:
                yield from stream

    def changes(self) -> Iterator[tuple[int, str, dict[str, str]]]:
        """Each row that a rule changed: its number, its text as it came, and the rule and the reason."""
        if not self._changed:
            return
        with (self.folder / "before").open("rb") as stream:
            for index in self._changed:
                text = stream.readline().decode("utf-8", "surrogatepass").rstrip("\n")
                yield index, text, json.loads(stream.readline())

    def findings(self) -> Iterator[tuple[int, Finding]]:
        """What the checks found in single rows, with each row's number, in the order of the rows."""
        if not self._found_in:
            return
        with (self.folder / "found").open("rb") as stream:
            for index, line in zip(self._found_in, stream, strict=True):
                yield index, Finding(**json.loads(line))

    def side(self, name: str) -> Path | None:
        """A side file; None when nothing was written to it."""
        path = self.folder / f"side-{name}"
        return path if path.is_file() else None

    def end(self) -> None:
        """Close all files and remove them."""
        self.sketches = None
        try:
            for stream in self._open.values():
                stream.close()
        finally:
            self._files.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, name: str, data: bytes) -> None:
        if name not in self._open:
            # Unbuffered: pieces are whole chunks, and an error belongs to the chunk that met it.
            self._open[name] = (self.folder / name).open("wb", buffering=0)
        view = memoryview(data)
        while view:
            view = view[self._open[name].write(view) :]


@contextmanager
def spooling(at: Run) -> Iterator[Spool]:
    """A spool in the run's scratch folder; what a killed build left there is removed first.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder = at.path(f"{FOLDER}/rows").parent
    with storage_errors(folder):
        shutil.rmtree(folder)
        folder.mkdir()
    spool = Spool(folder)
    try:
        yield spool
    finally:
        spool.end()
