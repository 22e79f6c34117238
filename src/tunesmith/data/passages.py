"""Passages of held-out rows in the rows before them: so many words in a row, as in `clean.contamination`."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tunesmith.data.clean.contamination import COMMON_ROWS, hashes_of, passages_of, texts_of
from tunesmith.data.near import said
from tunesmith.data.rows import Row
from tunesmith.data.spool import numpy

if TYPE_CHECKING:
    from numpy import int64, uint64
    from numpy.typing import NDArray

__all__ = ["MOST", "Passages"]

MOST = 1 << 23
"""Passages that are kept: with all that sorting them takes, under half a gigabyte."""

Numbered = Iterable[tuple[int, Row]]


class Passages:
    """Passages of some rows, by their hashes, in bounded memory.

    Of more than `most` passages every second, fourth, eighth ... is kept, the same ones of every row: a shared text of
    many words still has some of them, one that is hardly longer than a passage may have none and be missed. What more
    than ten rows share is their form.

    Args:
        rows: the rows, each with its number.
        n_words: length of a passage.
    """

    def __init__(self, rows: Numbered, n_words: int, most: int = MOST) -> None:
        np = numpy()
        self.n_words = n_words
        self._below = np.uint64(2**64 - 1)
        parts: list[NDArray[uint64]] = []
        owners: list[NDArray[int64]] = []
        n_kept = 0
        for number, row in rows:
            own = self._of(row)
            if not len(own):
                continue
            parts.append(own)
            owners.append(np.full(len(own), number, dtype=np.int32))
            n_kept += len(own)
            if n_kept > most:
                self._below //= np.uint64(2)
                whole, owner = np.concatenate(parts), np.concatenate(owners)
                stays = whole <= self._below
                parts, owners = [whole[stays]], [owner[stays]]
                n_kept = len(parts[0])
        whole = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)
        owner = np.concatenate(owners) if owners else np.zeros(0, dtype=np.int32)
        self._known, first, counts = np.unique(whole, return_index=True, return_counts=True)
        self._owner = owner[first]
        rare = counts <= COMMON_ROWS
        self._known, self._owner = self._known[rare], self._owner[rare]

    def find(self, rows: Numbered) -> Iterator[tuple[int, int]]:
        """Each of the rows that holds a passage, with the first row that it is from, in order."""
        np = numpy()
        if not len(self._known):
            return
        counts = np.zeros(len(self._known), dtype=np.uint8)
        numbers, places = array("i"), array("i")
        for number, row in rows:
            own = self._of(row)
            at = np.minimum(np.searchsorted(self._known, own), len(self._known) - 1)
            here = at[self._known[at] == own]
            # What too many rows hold is not found in the end: the first of them are enough to know it.
            here = here[counts[here] <= COMMON_ROWS]
            counts[here] += 1
            numbers.extend([number] * len(here))
            places.extend(here.tolist())
        last = -1
        for number, place in zip(numbers, places, strict=True):
            if number != last and counts[place] <= COMMON_ROWS:
                last = number
                yield number, int(self._owner[place])

    def _of(self, row: Row) -> NDArray[uint64]:
        """The hashes of a row's passages, each once."""
        np = numpy()
        texts = [hashes_of(text) for text in texts_of(said(row))]
        found = [passages_of(text, self.n_words) for text in texts if len(text) >= self.n_words]
        if not found:
            return hashes_of("")
        own: NDArray[uint64] = np.unique(np.concatenate(found))
        kept: NDArray[uint64] = own[own <= self._below]
        return kept
