"""A bar while rows are read: how far, by the bytes of their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.telemetry import progress

__all__ = ["reading"]

_LONG_BYTES = 2_000_000


@contextmanager
def reading(files: Iterable[Path], title: str = "reading") -> Iterator[Callable[[Path, int], None]]:
    """A bar on stderr when there is much to read. Call it with a file and its bytes that were read so far."""
    n_bytes = sum(file.stat().st_size for file in files if file.is_file())
    if n_bytes < _LONG_BYTES:
        yield lambda _file, _n_bytes: None
        return
    read: dict[Path, int] = {}
    with progress(title, n_bytes // 1_000, unit="kB") as bar:

        def seen(file: Path, n: int) -> None:
            read[file] = n
            bar.advance(min(sum(read.values()) // 1_000, bar.total) - bar.done)

        yield seen
