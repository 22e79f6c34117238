"""Near-duplicates among many rows: pairs that look alike, the rule, clusters.

Rows that share an exact key of their sketches, or a band of four MinHash values (locality-sensitive hashing; Indyk and
Motwani 1998), are compared by the rule in `near`, on the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from tunesmith.data.near import THRESHOLD, Answers, Prepared, Said, decide, prepared, said
from tunesmith.data.sketches import (
    ANSWER,
    GUARD,
    KEYS,
    PERMUTATIONS,
    SLIPPED,
    SWAPPED,
    WIDTH,
    WITH_ANSWER,
    numpy,
    sketch,
)

if TYPE_CHECKING:
    from numpy import bool_, float32, int64, uint32, uint64
    from numpy.typing import NDArray

__all__ = ["THRESHOLD", "WIDTH", "Said", "clusters", "matches", "said", "sketch"]

COMMON_ROWS = 20
"""An answer that more rows than this share is a class's label, not an answer of its own."""
MOST_FILLERS = 3
"""With a class's label for an answer: where rows that are otherwise equal have more different words than these in one
place, the place is a template's slot, and its words are no synonyms."""
WINDOW = 8
"""Neighbours in a bucket that a row is compared with, beside the bucket's first; equal answers are neighbours."""
MOST_PAIRS = 16
"""Rows that one row is compared with: so many by keys, the first ones, and so many by MinHash, the most alike."""
MOST_IN_A_CROWD = 4
"""The same for a row that MinHash finds alike to more rows than that."""

_BAND = 4
_LEAST_ALIKE = 0.45
_LOW = 0xFFFFFFFF
_KEPT_PREPARED = 2048


def clusters(
    sketches: NDArray[uint32],
    row_of: Callable[[int], Said],
    threshold: float = THRESHOLD,
    *,
    answers: Answers = "needed",
    by: Literal["first", "chain"] = "first",
) -> NDArray[int64]:
    """For each row the lowest row of its cluster, itself where it is near to none.

    Args:
        sketches: (rows, WIDTH); may be mapped from the disk.
        row_of: a row by its index; asked only for rows that look alike.
        threshold: see `near.are_near`.
        answers: see `near.are_near`.
        by: `first`: each row is near to the first of its cluster itself, so no chain of small steps joins rows
            that differ: for dropping. `chain`: rows that any chain connects are together: for splits, where no two
            near rows may be apart.

    Memory beside the sketches: at most about 400 bytes a row, where all rows look alike.
    """
    np = numpy()
    first: NDArray[int64] = np.arange(len(sketches), dtype=np.int64)
    judge = _Judge(sketches, row_of, threshold, answers)
    for high, low in judge.pairs():
        if by == "first":
            leader = int(first[low])
            if first[high] == high and judge.near(leader, high):
                first[high] = leader
        else:
            one, other = _root(first, low), _root(first, high)
            if one != other and judge.near(low, high):
                first[max(one, other)] = min(one, other)
    for index in range(len(first)):
        first[index] = first[first[index]]
    return first


def _root(first: NDArray[int64], index: int) -> int:
    while first[index] != index:
        first[index] = first[first[index]]
        index = int(first[index])
    return index


def matches(
    queries: NDArray[uint32],
    targets: NDArray[uint32],
    query_of: Callable[[int], Said],
    target_of: Callable[[int], Said],
    threshold: float = THRESHOLD,
    *,
    answers: Answers = "help",
) -> Iterator[tuple[int, int]]:
    """(query, target) for each query that is near to a target, in order of the queries.

    Args:
        queries: (rows, WIDTH).
        targets: (rows, WIDTH).
        query_of: a query's row by its index.
        target_of: a target's row by its index.
        threshold: see `near.are_near`.
        answers: see `near.are_near`.
    """
    np = numpy()
    n_targets = len(targets)

    def row_of(index: int) -> Said:
        return target_of(index) if index < n_targets else query_of(index - n_targets)

    judge = _Judge(np.concatenate([targets, queries]), row_of, threshold, answers, n_targets)
    done = -1
    for high, low in judge.pairs():
        if high != done and judge.near(low, high):
            done = high
            yield high - n_targets, low


class _Judge:
    """Proposes pairs of rows and decides about them.

    Args:
        n_targets: when not 0, rows before it are compared only with rows from it on.
    """

    def __init__(
        self,
        sketches: NDArray[uint32],
        row_of: Callable[[int], Said],
        threshold: float,
        answers: Answers,
        n_targets: int = 0,
    ) -> None:
        np = numpy()
        self._sketches = sketches
        self._threshold = threshold
        self._how: Answers = answers
        self._n_targets = n_targets
        self._answers = np.ascontiguousarray(sketches[:, ANSWER]).view("<u8").ravel()
        self._guards = np.ascontiguousarray(sketches[:, GUARD]).view("<u8").ravel()
        self._is_short: NDArray[bool_] = np.asarray(sketches[:, SLIPPED].any(axis=1))
        known, counts = np.unique(self._answers, return_counts=True)
        common = known[(counts > COMMON_ROWS) & (known != 0)]
        self._is_common: NDArray[bool_] = np.isin(self._answers, common)
        self._slots = self._slot_keys()
        self._refused = (-1, -1)

        def read(index: int) -> Prepared:
            return prepared(row_of(index))

        self._row = lru_cache(maxsize=_KEPT_PREPARED)(read)

    def near(self, low: int, high: int) -> bool:
        """The rule, on the rows themselves."""
        if self._refused == (low, high):
            return False
        found = decide(
            self._row(low),
            self._row(high),
            threshold=self._threshold,
            answers=self._how,
            common_answer=bool(self._is_common[high]),
            in_slot=self._in_slot(low, high),
        )
        if not found:
            self._refused = (low, high)
        return found

    def _in_slot(self, low: int, high: int) -> bool:
        """Whether two rows differ in a word of a place where many words stand."""
        if not self._slots:
            return False
        shared = self._forms(low) & self._forms(high)
        return not self._slots.isdisjoint(shared)

    def _forms(self, index: int) -> set[int]:
        """A question's keys with the answer: as it is, and without one word."""
        whole: list[int] = self._sketches[index, WITH_ANSWER].view("<u8").tolist()
        return {*whole, *self._sketches[index, SWAPPED].view("<u8").tolist()} - {0}

    def _slot_keys(self) -> set[int]:
        """Keys of questions without one word, with a common answer, that several different questions share."""
        np = numpy()
        (rows,) = np.nonzero(self._is_common)
        if not len(rows):
            return set()
        whole = np.ascontiguousarray(self._sketches[:, :2][rows]).view("<u8").ravel()
        rest = np.ascontiguousarray(self._sketches[:, SWAPPED][rows]).view("<u8")
        found = [np.zeros(0, dtype=np.uint64)]
        for part in range(16):
            at, columns = np.nonzero(((rest >> np.uint64(60)) == part) & (rest != 0))
            keys, fillers = rest[at, columns], whole[at]
            order = np.lexsort((fillers, keys))
            keys, fillers = keys[order], fillers[order]
            is_new = np.ones(len(keys), dtype=bool)
            is_new[1:] = (keys[1:] != keys[:-1]) | (fillers[1:] != fillers[:-1])
            known, counts = np.unique(keys[is_new], return_counts=True)
            found.append(known[counts > MOST_FILLERS])
        self._slot_array: NDArray[uint64] = np.concatenate(found)
        return set(self._slot_array.tolist())

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(higher, lower) row of each pair that may be near, in order; each once."""
        np = numpy()
        codes = np.union1d(self._by_keys(), self._by_bands())
        for start in range(0, len(codes), 1 << 16):
            for code in codes[start : start + (1 << 16)].tolist():
                yield code >> 32, code & _LOW

    def _by_keys(self) -> NDArray[uint64]:
        """Pairs that share an exact key, a sixteenth of all keys at a time."""
        np = numpy()
        found: NDArray[uint64] = np.zeros(0, dtype=np.uint64)
        for part in range(16):
            parts = [self._keys_of(start, part) for start in range(0, len(self._answers), 1 << 16)]
            if parts:
                keys = np.concatenate([keys for keys, _ in parts])
                rows = np.concatenate([rows for _, rows in parts])
                found = np.union1d(found, self._allowed(self._neighbours(keys, rows)))
                found = found[_rank(found) < MOST_PAIRS]
        return found

    def _keys_of(self, start: int, part: int) -> tuple[NDArray[uint64], NDArray[int64]]:
        """Keys of 65,536 rows that begin with the four bits `part`, and their rows."""
        np = numpy()
        block = np.ascontiguousarray(self._sketches[start : start + (1 << 16), KEYS]).view("<u8")
        rows, columns = np.nonzero(((block >> np.uint64(60)) == part) & (block != 0))
        keys = block[rows, columns]
        if self._slots:
            kept = ~np.isin(keys, self._slot_array)
            keys, rows = keys[kept], rows[kept]
        return keys, rows + start

    def _by_bands(self) -> NDArray[uint64]:
        """Pairs of longer rows that share a band of MinHash values and look alike in all of them."""
        np = numpy()
        found: NDArray[uint64] = np.zeros(0, dtype=np.uint64)
        first = PERMUTATIONS.start
        (rows,) = np.nonzero(self._sketches[:, first : first + _BAND].any(axis=1))
        for band in range(first, PERMUTATIONS.stop, _BAND):
            keys = np.zeros(len(rows), dtype=np.uint64)
            for column in range(band, band + _BAND):
                keys = (keys ^ self._sketches[rows, column]) * np.uint64(0x9E3779B97F4A7C15)
                keys ^= keys >> np.uint64(29)
            codes = self._possible(self._neighbours(keys, rows))
            found = np.union1d(found, codes[self._agreement(codes) >= _LEAST_ALIKE])
            if band == PERMUTATIONS.stop - _BAND or len(found) > 2 * MOST_PAIRS * len(rows):
                order = np.lexsort((-self._agreement(found), found >> np.uint64(32)))
                found = np.sort(found[order][_most_alike(found[order])])
        pairs: NDArray[uint64] = found
        return pairs

    def _neighbours(self, keys: NDArray[uint64], rows: NDArray[int64]) -> NDArray[uint64]:
        """Pairs among rows of equal keys: each row with its neighbours by answer, and with two firsts.

        The firsts are the lowest row of the key, and the lowest of those with the same answer.
        """
        np = numpy()
        codes: NDArray[uint64] = np.zeros(0, dtype=np.uint64)
        if not len(keys):
            return codes
        order = np.lexsort((rows, self._answers[rows], keys))
        keys, rows = keys[order], rows[order]
        new_key = np.concatenate([[True], keys[1:] != keys[:-1]])
        answers = self._answers[rows]
        new_answer = new_key | np.concatenate([[True], answers[1:] != answers[:-1]])
        found = [
            self._codes(rows, np.repeat(lowest, sizes))
            for starts in (np.flatnonzero(new_key), np.flatnonzero(new_answer))
            for lowest in (np.minimum.reduceat(rows, starts),)
            for sizes in (np.diff(np.append(starts, len(rows))),)
        ]
        for step in range(1, WINDOW + 1):
            (at,) = np.nonzero(keys[:-step] == keys[step:])
            if not len(at):
                break
            found.append(self._codes(rows[at], rows[at + step]))
        codes = np.unique(np.concatenate(found))
        return codes

    def _codes(self, ones: NDArray[int64], others: NDArray[int64]) -> NDArray[uint64]:
        """Pairs as numbers, the higher row in the upper half; pairs that need no comparison are left out."""
        np = numpy()
        low, high = np.minimum(ones, others), np.maximum(ones, others)
        kept = low != high
        if self._n_targets:
            kept &= (low < self._n_targets) & (high >= self._n_targets)
        low, high = low[kept].astype(np.uint64), high[kept].astype(np.uint64)
        codes: NDArray[uint64] = (high << np.uint64(32)) | low
        return codes

    def _allowed(self, codes: NDArray[uint64]) -> NDArray[uint64]:
        """Pairs without those that the rule refuses by what must not differ, or by short answers."""
        np = numpy()
        low, high = codes & np.uint64(_LOW), codes >> np.uint64(32)
        one, other = self._guards[low], self._guards[high]
        kept: NDArray[bool_] = (one == other) | (one == 0) | (other == 0)
        if self._how == "needed":
            kept &= self._answers_may_be_near(low, high)
        allowed: NDArray[uint64] = codes[kept]
        return allowed

    def _possible(self, codes: NDArray[uint64]) -> NDArray[uint64]:
        """The same for pairs found by MinHash; short questions that are alike are found by their keys."""
        np = numpy()
        codes = self._allowed(codes)
        low, high = codes & np.uint64(_LOW), codes >> np.uint64(32)
        both_short: NDArray[bool_] = self._is_short[low] & self._is_short[high]
        own_answer = self._answers_may_be_near(low, high) & ~self._is_common[low]
        possible: NDArray[uint64] = codes[~both_short | own_answer]
        return possible

    def _answers_may_be_near(self, low: NDArray[uint64], high: NDArray[uint64]) -> NDArray[bool_]:
        np = numpy()
        one, other = self._answers[low], self._answers[high]
        differs_freely = ((one | other) & np.uint64(1) == 0) & (one != 0) & (other != 0)
        may_be: NDArray[bool_] = (one == other) | differs_freely
        return may_be

    def _agreement(self, codes: NDArray[uint64]) -> NDArray[float32]:
        """Share of equal MinHash values of each pair: an estimate of its Jaccard similarity."""
        np = numpy()
        made: NDArray[float32] = np.zeros(len(codes), dtype=np.float32)
        for start in range(0, len(codes), 1 << 16):
            block = codes[start : start + (1 << 16)]
            low, high = block & np.uint64(_LOW), block >> np.uint64(32)
            equal = self._sketches[low, PERMUTATIONS] == self._sketches[high, PERMUTATIONS]
            made[start : start + len(block)] = equal.mean(axis=1)
        return made


def _most_alike(codes: NDArray[uint64]) -> NDArray[bool_]:
    """Which pairs to keep of each higher row's, the most alike of which stand first.

    Where a row looks like many others they share boilerplate, and only the closest few can be near.
    """
    np = numpy()
    _, places, counts = np.unique(codes >> np.uint64(32), return_inverse=True, return_counts=True)
    most = np.where(counts > MOST_PAIRS, MOST_IN_A_CROWD, MOST_PAIRS)
    kept: NDArray[bool_] = _rank(codes) < most[places]
    return kept


def _rank(codes: NDArray[uint64]) -> NDArray[int64]:
    """The place of each pair among those of its higher row; pairs of one row stand together."""
    np = numpy()
    high = codes >> np.uint64(32)
    ranks: NDArray[int64] = np.arange(len(codes)) - np.searchsorted(high, high)
    return ranks
