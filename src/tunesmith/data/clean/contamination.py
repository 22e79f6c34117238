"""Training rows that hold what a benchmark or a test set asks.

Two ways, because either alone is easy to slip past: a passage of 13 words in a row (Brown et al. 2020, arXiv
2005.14165, appendix C), and a question near to one of the benchmark's (`near`), which finds short and reworded ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data.near import THRESHOLD, Said, said
from tunesmith.data.rows import Row
from tunesmith.data.similar import matches, sketch
from tunesmith.data.sketches import hash_word, numpy
from tunesmith.data.wording import is_code

if TYPE_CHECKING:
    from numpy import bool_, uint32, uint64
    from numpy.typing import NDArray

__all__ = [
    "COMMON_ROWS",
    "Benchmark",
    "Boilerplate",
    "Found",
    "hashes_of",
    "own_passages",
    "passages_of",
    "texts_of",
]

COMMON_ROWS = 10
"""A passage that more training rows than this hold is boilerplate; as in Brown et al. 2020."""
_SHORTEST = 8
"""A benchmark text of fewer words is no passage; it is found as a near question."""
_SHORT = 5
"""Words of the short passages by which boilerplate is told."""
_COUNTERS = 26
"""Bits of the number of counters of short passages: 64 MiB, some for each of the passages of a million rows."""
_WORD = re.compile(r"\w+")
_ODD = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Found:
    """A training row and the benchmark row that it repeats."""

    row_index: int
    benchmark_row: Row
    reason: str


class Boilerplate:
    """Words that many rows of one side share, told by passages of five: an instruction, a template, a schema.

    A longer passage is no measure of them: twelve words of an instruction and one of the row are rare together.
    """

    def __init__(self) -> None:
        np = numpy()
        self._counts: NDArray[Any] = np.zeros(1 << _COUNTERS, dtype=np.uint8)

    def see(self, texts: Sequence[NDArray[uint64]]) -> None:
        """Count a row, given the hashes of its texts' words."""
        np = numpy()
        places = [_places(text) for text in texts if len(text) >= _SHORT]
        if places:
            # A place that comes twice is set twice to the same: a row counts once.
            at = np.concatenate(places)
            self._counts[at] += self._counts[at] <= COMMON_ROWS

    def holds(self, text: NDArray[uint64]) -> NDArray[bool_]:
        """Which words of a text are boilerplate; call it when all rows are seen."""
        np = numpy()
        held: NDArray[bool_] = np.zeros(len(text), dtype=np.bool_)
        if len(text) >= _SHORT:
            (starts,) = np.nonzero(self._counts[_places(text)] > COMMON_ROWS)
            for step in range(_SHORT):
                held[starts + step] = True
        return held


def _places(text: NDArray[uint64]) -> NDArray[uint64]:
    """The counter of each short passage of a text: the leading bits of its hash."""
    places: NDArray[uint64] = passages_of(text, _SHORT) >> numpy().uint64(64 - _COUNTERS)
    return places


def own_passages(
    text: NDArray[uint64], size: int, boilerplates: Iterable[Boilerplate]
) -> NDArray[uint64]:
    """A hash of each `size` words in a row, half of which, rounded down, or more are no boilerplate."""
    np = numpy()
    is_own = np.ones(len(text), dtype=np.bool_)
    for boilerplate in boilerplates:
        is_own &= ~boilerplate.holds(text)
    n_own = np.concatenate([[0], np.cumsum(is_own)])
    made: NDArray[uint64] = passages_of(text, size)[n_own[size:] - n_own[:-size] >= size // 2]
    return made


class Benchmark:
    """Texts that must not occur in training.

    Args:
        rows: of the benchmark; all are kept in memory.
        n_words: length of a passage. Shorter benchmark texts of eight words or more count as one passage.
        threshold: as in `near.are_near`.
    """

    def __init__(
        self, rows: Iterable[Row], n_words: int = 13, threshold: float = THRESHOLD
    ) -> None:
        np = numpy()
        self.rows = list(rows)
        self._n_words = n_words
        self._threshold = threshold
        self._said = [said(row) for row in self.rows]
        self._sketches = sketch(self._said)
        self._boilerplate = Boilerplate()
        passages: dict[int, dict[int, int]] = {}
        counts: Counter[int] = Counter()
        for index, row in enumerate(self._said):
            own: set[int] = set()
            texts = [hashes_of(text) for text in texts_of(row)]
            self._boilerplate.see(texts)
            for hashes in texts:
                size = min(n_words, len(hashes))
                if size >= min(n_words, _SHORTEST):
                    for value in passages_of(hashes, size).tolist():
                        own.add(value)
                        passages.setdefault(size, {}).setdefault(value, index)
            counts.update(own)
        # What many rows of the benchmark share is its form, such as a schema in every prompt.
        self._passages = {
            size: {value: at for value, at in found.items() if counts[value] <= COMMON_ROWS}
            for size, found in passages.items()
        }
        self._known = {
            size: np.sort(np.fromiter(found, dtype=np.uint64, count=len(found)))
            for size, found in self._passages.items()
        }

    def find(
        self, n_rows: int, row_of: Callable[[int], Row], sketches: NDArray[uint32] | None = None
    ) -> Iterator[Found]:
        """Rows that repeat the benchmark, in order, each once with the first row that it repeats.

        Args:
            n_rows: training rows.
            row_of: a training row by its index; read once or twice, in order.
            sketches: (n_rows, WIDTH) when they are there already.
        """
        if not self.rows:
            return
        passages = self._by_passage(n_rows, row_of)
        near = self._by_nearness(n_rows, row_of, sketches)
        for index in sorted({*passages, *near}):
            if index in near:
                row = self.rows[near[index]]
                yield Found(index, row, f"nearly the question of {row.where}")
            else:
                at, size = passages[index]
                row = self.rows[at]
                yield Found(index, row, f"{size} words in a row as in {row.where}")

    def _by_passage(self, n_rows: int, row_of: Callable[[int], Row]) -> dict[int, tuple[int, int]]:
        """Row -> (benchmark row, words) of its first passage that is no boilerplate."""
        if not self._known:
            return {}
        hits: list[tuple[int, int, int]] = []
        counts: Counter[int] = Counter()
        boilerplate = Boilerplate()
        for index in range(n_rows):
            texts = [hashes_of(text) for text in texts_of(said(row_of(index)))]
            boilerplate.see(texts)
            held = dict(hit for text in texts for hit in self._hits(text))
            counts.update(held.keys())
            hits += [(index, value, size) for value, size in held.items()]
        own = self._own({self._passages[size][value] for _, value, size in hits}, boilerplate)
        first: dict[int, tuple[int, int]] = {}
        for index, value, size in hits:
            if counts[value] <= COMMON_ROWS and value in own:
                first.setdefault(index, (self._passages[size][value], size))
        return first

    def _own(self, indices: Iterable[int], boilerplate: Boilerplate) -> set[int]:
        """Passages of some benchmark rows that are not mostly boilerplate; a text that is one passage counts whole."""
        own: set[int] = set()
        for index in indices:
            for text in map(hashes_of, texts_of(self._said[index])):
                if len(text) > self._n_words:
                    both = (boilerplate, self._boilerplate)
                    own.update(own_passages(text, self._n_words, both).tolist())
                elif len(text) >= min(self._n_words, _SHORTEST):
                    own.update(passages_of(text, len(text)).tolist())
        return own

    def _hits(self, hashes: NDArray[uint64]) -> Iterator[tuple[int, int]]:
        np = numpy()
        for size, known in self._known.items():
            if len(known) and len(hashes) >= size:
                values = passages_of(hashes, size)
                at = np.minimum(np.searchsorted(known, values), len(known) - 1)
                for value in values[known[at] == values].tolist():
                    yield value, size

    def _by_nearness(
        self, n_rows: int, row_of: Callable[[int], Row], sketches: NDArray[uint32] | None
    ) -> dict[int, int]:
        """Row -> benchmark row with a near question, a block of rows at a time."""
        found: dict[int, int] = {}
        block = 1 << 16
        for start in range(0, n_rows, block):
            end = min(n_rows, start + block)
            part = (
                sketch([said(row_of(index)) for index in range(start, end)])
                if sketches is None
                else sketches[start:end]
            )

            def query_of(index: int, start: int = start) -> Any:
                return said(row_of(start + index))

            pairs = matches(part, self._sketches, query_of, self._said.__getitem__, self._threshold)
            found |= {start + query: target for query, target in pairs}
        return found


def texts_of(row: Said) -> Iterator[str]:
    """Texts in which passages are looked for: not answers in code, whose forms many rows share."""
    yield row.question
    if not is_code(row.answer):
        yield row.answer


def hashes_of(text: str) -> NDArray[uint64]:
    """A hash of each word, case aside."""
    np = numpy()
    words = _WORD.findall(text.casefold())
    made: NDArray[uint64] = np.array([hash_word(word) for word in words], dtype=np.uint64)
    return made


def passages_of(hashes: NDArray[uint64], size: int) -> NDArray[uint64]:
    """A hash of each `size` words in a row."""
    np = numpy()
    made: NDArray[uint64] = np.zeros(len(hashes) - size + 1, dtype=np.uint64)
    for step in range(size):
        made = made * np.uint64(_ODD) + hashes[step : len(hashes) - size + 1 + step]
    return made
