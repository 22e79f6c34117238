"""Rows of a sealed dataset's folder or of raw files, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunesmith.data.problems import Problems
from tunesmith.data.read import AUTO, STDIN, expand, open_source, reading
from tunesmith.data.rows import Row
from tunesmith.data.schemas import HEAD_ROWS, Options, parse_sealed, tell, to_row
from tunesmith.data.split import SPLITS
from tunesmith.errors import MissingError
from tunesmith.store import MANIFEST, Artifact

__all__ = ["RAW", "Place", "open_place"]

RAW = "rows"
"""The split of rows that are not split."""


@dataclass
class Place:
    """Where rows lie.

    Attributes:
        name: as the user named it.
        splits: names of its splits; `RAW` alone for files that are not split.
        report: a sealed dataset's `report.json`; None for raw files.
        problems: what kept raw rows from being read, once `rows` went through.
        schemas: raw file -> its schema, once `rows` went through; "" when none fits.
        told_by: raw file -> what its schema was told by.
    """

    name: str
    splits: tuple[str, ...]
    report: Mapping[str, Any] | None = None
    problems: Problems = field(default_factory=Problems)
    schemas: dict[str, str] = field(default_factory=dict)
    told_by: dict[str, str] = field(default_factory=dict)
    _artifact: Artifact | None = None
    _files: tuple[Path, ...] = ()
    _options: Options = field(default_factory=Options)
    _form: str = AUTO
    _seen: Callable[[Path, int], None] = lambda _file, _n_bytes: None

    @contextmanager
    def with_bar(self, title: str = "reading") -> Iterator[None]:
        """A bar on stderr while all rows are gone through in the block, when there are many."""
        files = self._files
        if self._artifact is not None:
            files = tuple(self._artifact.dir / f"{split}.jsonl" for split in self.splits)
        before = self._seen
        try:
            with reading(files, title) as self._seen:
                yield
        finally:
            self._seen = before

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of one split, in order.

        Raises:
            ArtifactError: a sealed file was changed.
            DataError: a file cannot be read at all. Rows that cannot are noted in `problems`.
        """
        if self._artifact is not None:
            yield from self._sealed(self._artifact.path(f"{split}.jsonl"))
            return
        for path in self._files:
            yield from self._raw(path)

    def all_rows(self) -> Iterator[tuple[str, Row]]:
        """Split and row, for all rows."""
        for split in self.splits:
            for row in self.rows(split):
                yield split, row

    def _raw(self, path: Path) -> Iterator[Row]:
        source = open_source(path, form=self._form)
        raws = source.rows(self.problems)
        head = list(islice(raws, HEAD_ROWS))
        told = tell(head, self._options)
        self.schemas[str(path)], self.told_by[str(path)] = told.schema, told.why
        if head and not told.schema:
            # Each of its rows would be a problem of its own, and the same one.
            self.problems.add(str(path), told.why)
            return
        for number, raw in enumerate(chain(head, raws)):
            row = to_row(raw, told, self._options, self.problems)
            if number % HEAD_ROWS == 0:
                self._seen(path, source.n_bytes)
            if row is not None:
                yield row
        self._seen(path, source.n_bytes)

    def _sealed(self, path: Path) -> Iterator[Row]:
        read = 0
        with path.open(encoding="utf-8", errors="surrogatepass", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                yield parse_sealed(f"{path}:{number}", line)
                read += len(line)
                if number % HEAD_ROWS == 0:
                    self._seen(path, read)
        self._seen(path, path.stat().st_size)


def open_place(place: str | Path, options: Options | None = None, form: str = AUTO) -> Place:
    """A sealed dataset's folder, a file, `-` for stdin, or a folder of raw files.

    Args:
        options: how raw rows are read.
        form: of raw files; told by their content when "auto".

    Raises:
        MissingError: there is no such file or folder, or it has no files with rows.
        ArtifactError: the folder is an artifact of another stage, or damaged.
    """
    path = Path(place)
    if (path / MANIFEST).is_file():
        artifact = Artifact.open(path, "data")
        splits = tuple(name for name in SPLITS if f"{name}.jsonl" in artifact.files)
        return Place(str(place), splits, artifact.read_json("report.json"), _artifact=artifact)
    if str(place) != STDIN and not path.exists():
        raise MissingError(
            f"no dataset at {str(place)!r}",
            why="there is no such file or folder",
            fix="name a sealed dataset's folder, a recipe, or a file with rows",
        )
    files = (path,) if str(place) == STDIN else tuple(expand([path]))
    return Place(str(place), (RAW,), _files=files, _options=options or Options(), _form=form)
