"""Training rows that hold what a benchmark or a test set asks.

Two ways, because either alone is easy to slip past: a passage of 13 words in a row (Brown et al. 2020, arXiv
2005.14165, appendix C), and a question near to one of the benchmark's (`near`), which finds short and reworded ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data.near import THRESHOLD, Said, said
from tunesmith.data.rows import Row
from tunesmith.data.similar import matches, sketch
from tunesmith.data.sketches import hash_word, numpy
from tunesmith.data.wording import is_code

if TYPE_CHECKING:
    from numpy import uint32, uint64
    from numpy.typing import NDArray

__all__ = ["COMMON_ROWS", "Benchmark", "Found", "hashes_of", "passages_of", "texts_of"]

COMMON_ROWS = 10
"""A passage that more training rows than this hold is boilerplate; as in Brown et al. 2020."""
_SHORTEST = 8
"""A benchmark text of fewer words is no passage; it is found as a near question."""
_WORD = re.compile(r"\w+")
_ODD = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Found:
    """A training row and the benchmark row that it repeats."""

    row_index: int
    benchmark_row: Row
    reason: str


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
        passages: dict[int, dict[int, int]] = {}
        counts: Counter[int] = Counter()
        for index in range(len(self.rows)):
            own: set[int] = set()
            for text in texts_of(self._said[index]):
                hashes = hashes_of(text)
                size = min(n_words, len(hashes))
                if size >= _SHORTEST:
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
        hits: list[tuple[int, int, int]] = []
        counts: Counter[int] = Counter()
        for index in range(n_rows):
            row = said(row_of(index))
            own: dict[int, int] = {}
            for text in texts_of(row):
                own |= dict(self._hits(text))
            counts.update(own.keys())
            hits += [(index, value, size) for value, size in own.items()]
        first: dict[int, tuple[int, int]] = {}
        for index, value, size in hits:
            if counts[value] <= COMMON_ROWS:
                first.setdefault(index, (self._passages[size][value], size))
        return first

    def _hits(self, text: str) -> Iterator[tuple[int, int]]:
        np = numpy()
        if not self._known:
            return
        hashes = hashes_of(text)
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
