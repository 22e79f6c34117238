"""Passages of held-out rows in the rows before them: so many words in a row, as in `clean.contamination`."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tunesmith.data.clean.contamination import (
    COMMON_ROWS,
    Boilerplate,
    hashes_of,
    own_passages,
    passages_of,
    texts_of,
)
from tunesmith.data.near import said
from tunesmith.data.rows import Row
from tunesmith.data.spool import numpy

if TYPE_CHECKING:
    from numpy import bool_, int64, uint64
    from numpy.typing import NDArray

__all__ = ["MOST", "Passages"]

MOST = 1 << 23
"""Passages that are kept: with all that sorting them takes, under half a gigabyte."""

Numbered = Iterable[tuple[int, Row]]


class Passages:
    """Passages of some rows, by their hashes, in bounded memory.

    Of more than `most` passages every second, fourth, eighth ... is kept, the same ones of every row: a shared text of
    many words still has some of them, one that is hardly longer than a passage may have none and be missed. What more
    than ten rows share is their form, and so is a passage that is made of such parts for more than half.

    Args:
        rows: the rows, each with its number.
        row_of: one of them by its number, to look at it again.
        n_words: length of a passage.
    """

    def __init__(
        self, rows: Numbered, row_of: Callable[[int], Row], n_words: int, most: int = MOST
    ) -> None:
        np = numpy()
        self.n_words = n_words
        self._row_of = row_of
        self._boilerplate = Boilerplate()
        self._below = np.uint64(2**64 - 1)
        parts: list[NDArray[uint64]] = []
        owners: list[NDArray[int64]] = []
        n_kept = 0
        for number, row in rows:
            texts = _hashed(row)
            self._boilerplate.see(texts)
            own = self._of(texts)
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
        boilerplate = Boilerplate()
        for number, row in rows:
            texts = _hashed(row)
            boilerplate.see(texts)
            own = self._of(texts)
            at = np.minimum(np.searchsorted(self._known, own), len(self._known) - 1)
            here = at[self._known[at] == own]
            # What too many rows hold is not found in the end: the first of them are enough to know it.
            here = here[counts[here] <= COMMON_ROWS]
            counts[here] += 1
            numbers.extend([number] * len(here))
            places.extend(here.tolist())
        (rare,) = np.nonzero((counts > 0) & (counts <= COMMON_ROWS))
        is_leak = self._own(rare, boilerplate)
        last = -1
        for number, place in zip(numbers, places, strict=True):
            if number != last and is_leak[place]:
                last = number
                yield number, int(self._owner[place])

    def _own(self, places: NDArray[int64], boilerplate: Boilerplate) -> NDArray[bool_]:
        """Of each passage kept: whether it is at one of the places and not mostly boilerplate."""
        np = numpy()
        own: NDArray[bool_] = np.zeros(len(self._known), dtype=np.bool_)
        places = places[np.argsort(self._owner[places], kind="stable")]
        next_owner = np.flatnonzero(np.diff(self._owner[places])) + 1
        for here in np.split(places, next_owner) if len(places) else ():
            texts = _hashed(self._row_of(int(self._owner[here[0]])))
            kept = self._of(texts, (self._boilerplate, boilerplate))
            own[here] = np.isin(self._known[here], kept)
        return own

    def _of(
        self, texts: Sequence[NDArray[uint64]], boilerplates: Sequence[Boilerplate] = ()
    ) -> NDArray[uint64]:
        """The hashes of a row's passages, each once; without those of boilerplate."""
        np = numpy()
        found = [self._cut(text, boilerplates) for text in texts if len(text) >= self.n_words]
        if not found:
            return hashes_of("")
        own: NDArray[uint64] = np.unique(np.concatenate(found))
        kept: NDArray[uint64] = own[own <= self._below]
        return kept

    def _cut(self, text: NDArray[uint64], boilerplates: Sequence[Boilerplate]) -> NDArray[uint64]:
        if len(text) > self.n_words and boilerplates:
            return own_passages(text, self.n_words, boilerplates)
        return passages_of(text, self.n_words)


def _hashed(row: Row) -> list[NDArray[uint64]]:
    return [hashes_of(text) for text in texts_of(said(row))]
