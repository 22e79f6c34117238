"""Rows on disk while it is decided what becomes of them, with a few numbers a row in memory."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from tunesmith.data.rows import Kind, Row
from tunesmith.data.sketches import numpy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Kept", "Ruling"]

Step = tuple[str, str, str]
"""Action ("change" or "drop"), rule, reason."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """A row as it came, as it is now, and what was done.

    Attributes:
        text: the row as it came, one line of JSON.
        now: the row as it goes on, where it was changed; else empty.
        steps: what was done, in order.
    """

    where: str
    kind: Kind
    text: str
    now: str
    steps: tuple[Step, ...]

    @property
    def dropped_by(self) -> tuple[str, str] | None:
        """The rule that dropped the row, and its reason; None when it is kept."""
        if self.steps and self.steps[-1][0] == "drop":
            return self.steps[-1][1:]
        return None


class Kept:
    """All rows of a cleaning in a temporary file that has no name; gone when the block ends.

    Attributes:
        live: places of the rows that no rule dropped while they were added, ascending.
        keys: 64-bit numbers of the live rows, when they were given.
    """

    def __init__(self) -> None:
        self.live = array("q")
        self.keys = array("Q")
        self._starts = array("q")
        self._sizes = array("q")
        self._late: dict[int, Step] = {}
        self._sketches: list[NDArray[np.uint32]] = []
        self._file: IO[bytes]

    def __enter__(self) -> Kept:
        self._file = tempfile.TemporaryFile()
        self._end = 0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, ruling: Ruling) -> None:
        """Append a row.

        Raises:
            OSError: the disk refuses.
        """
        head = json.dumps([ruling.where, ruling.kind, ruling.steps])
        # JSON texts of one line each hold no line feed.
        data = f"{head}\n{ruling.text}\n{ruling.now}".encode("utf-8", "surrogatepass")
        if ruling.dropped_by is None:
            self.live.append(len(self._starts))
        self._starts.append(self._end)
        self._sizes.append(len(data))
        self._file.write(data)
        self._end += len(data)

    def add_numbers(self, keys: Sequence[int], sketches: NDArray[np.uint32] | None) -> None:
        """Numbers of the live rows added last."""
        self.keys.extend(keys)
        if sketches is not None and len(sketches):
            self._sketches.append(sketches)

    def sketches(self) -> NDArray[np.uint32] | None:
        """Sketches of all live rows, when they were given."""
        if not self._sketches:
            return None
        if len(self._sketches) > 1:
            # Taken over piece by piece, so that they are never held twice.
            made = numpy().empty((len(self.live), self._sketches[0].shape[1]), dtype="<u4")
            at = 0
            self._sketches.reverse()
            while self._sketches:
                part = self._sketches.pop()
                made[at : at + len(part)] = part
                at += len(part)
            self._sketches = [made]
        return self._sketches[0]

    def drop(self, index: int, rule: str, reason: str) -> None:
        """Drop a live row after all."""
        self._late[index] = ("drop", rule, reason)

    def ruling(self, index: int) -> Ruling:
        """A row with everything that was done with it."""
        self._file.seek(self._starts[index])
        data = self._file.read(self._sizes[index]).decode("utf-8", "surrogatepass")
        head, text, now = data.split("\n")
        where, kind, steps = json.loads(head)
        done = tuple((action, rule, reason) for action, rule, reason in steps)
        late = self._late.get(index)
        return Ruling(where, kind, text, now, (*done, late) if late else done)

    def rulings(self) -> Iterator[Ruling]:
        """All rows, in order."""
        for index in range(len(self)):
            yield self.ruling(index)

    def row(self, index: int) -> Row:
        """A row as it goes on."""
        found = self.ruling(index)
        text = found.now or found.text
        value: Any = json.loads(text)
        return Row(found.where, found.kind, text, value)

    def where(self, index: int) -> str:
        """Where a row came from."""
        return self.ruling(index).where
