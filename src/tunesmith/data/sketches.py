"""A row's sketch: 512 bytes by which rows that may be near-duplicates find each other.

It holds exact keys of short questions (a hash of their words in no order; of all words but one; of all sentences but
one), 64 MinHash values (Broder 1997) of the row's words and neighbouring pairs, and a hash of its answer. A sketch
depends on its row alone, so rows may be sketched in chunks of any size, by any number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from types import ModuleType
from typing import TYPE_CHECKING

from tunesmith.data.near import DOCUMENT_WORDS, LEAST_ANSWER_WORDS, LONG_WORDS, Said
from tunesmith.data.wording import Wording, folded, is_code, symbols_of, wording
from tunesmith.errors import EnvironmentProblem

if TYPE_CHECKING:
    from numpy import uint32
    from numpy.typing import NDArray

__all__ = [
    "ANSWER",
    "GUARD",
    "KEYS",
    "PERMUTATIONS",
    "SLIPPED",
    "SWAPPED",
    "WIDTH",
    "WITH_ANSWER",
    "hash_word",
    "numpy",
    "sketch",
]

WIDTH = 128
"""Numbers of 32 bits in a sketch."""
KEYS = slice(0, 60)
"""Columns of the exact keys: 30 of 64 bits, 0 where unused."""
WITH_ANSWER = slice(2, 4)
"""Columns of the key of all words with the answer."""
SWAPPED = slice(4, 28)
"""Columns of the keys without one word, with the answer."""
SLIPPED = slice(28, 52)
"""Columns of the keys without one word but for its first letter: of short questions alone."""
GUARD = slice(60, 62)
"""Columns of a hash of what must not differ; 0 for documents, in which it may."""
PERMUTATIONS = slice(62, 126)
"""Columns of the MinHash values; all 0 in a row of few words."""
ANSWER = slice(126, 128)
"""Columns of the answer's hash; 0 for a missing answer. It is odd where the answer is near to equal ones alone."""

_MOST_SENTENCES = 4
_LEAST_WORDS = 8
"""Rows of fewer words, answer included, are found by their keys alone."""
_MOST_FEATURES = 1 << 19
_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15


def numpy() -> ModuleType:
    """numpy, which the base install does not bring.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        import numpy
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "finding near-duplicates needs the package 'numpy', which is not installed",
            fix="pip install 'tunesmith[data]'",
        ) from error
    return numpy


@lru_cache(maxsize=1 << 18)
def hash_word(word: str) -> int:
    """64 bits that are the same in every process; always odd."""
    digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") | 1


def _mixed(*parts: int) -> int:
    """One hash of several, by splitmix64's finaliser (Steele, Lea and Flood 2014); never 0."""
    value = 0
    for part in parts:
        value = (value * _ODD + part) & _MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
        value ^= value >> 31
    return value or 1


def sketch(rows: Sequence[Said]) -> NDArray[uint32]:
    """Sketches of rows: (rows, WIDTH), each the same whatever rows stand beside it.

    Raises:
        EnvironmentProblem: numpy is not installed.
    """
    np = numpy()
    made: NDArray[uint32] = np.zeros((len(rows), WIDTH), dtype="<u4")
    texts = _Texts(made)
    for index, row in enumerate(rows):
        question = wording(row.question)
        words, answer = _answer(row.answer)
        exact = [*_keys(question, answer), _guard(question), answer]
        columns = np.array(exact, dtype="<u8").view("<u4")
        made[index, : GUARD.stop] = columns[:-2]
        made[index, ANSWER] = columns[-2:]
        if len(question.words) + len(words) >= _LEAST_WORDS:
            texts.add(index, question.words, words)
    texts.fill()
    return made


def _answer(answer: str) -> tuple[Sequence[str], int]:
    """An answer's words, and its hash; 0 for a missing one."""
    if not answer:
        return (), 0
    symbols = symbols_of(answer)
    if is_code(answer):
        return symbols, hash_word(" ".join(symbols))
    value = hash_word(folded(answer))
    # With fewer words than this, some of which may not count, only an equal answer is near.
    return symbols, value if len(symbols) < LEAST_ANSWER_WORDS else value ^ 1


def _guard(question: Wording) -> int:
    if len(question.tokens) > DOCUMENT_WORDS:
        return 0
    return hash_word("\0".join(sorted(question.guarded)))


def _keys(question: Wording, answer: int) -> list[int]:
    """Exact keys of a question, 0 where there is none: rows that share one are compared.

    All words; the same with the answer; without one word, with the answer (a word was swapped); without one
    word but for its first letter (a typing error); without one sentence, with the answer (a sentence was added).
    """
    hashes = [hash_word(word) for word in question.words]
    whole = sum(hashes)
    swapped, slipped = [0] * LONG_WORDS, [0] * LONG_WORDS
    if len(hashes) <= LONG_WORDS:
        for at, (word, value) in enumerate(zip(question.words, hashes, strict=True)):
            if word in question.guarded:
                continue
            rest = (whole - value) & _MASK
            swapped[at] = _mixed(rest, answer) if answer and len(hashes) > 1 else 0
            slipped[at] = _mixed(rest, hash_word(word[0]), 1)
    parts = [0] * _MOST_SENTENCES
    if answer and len(question.sentences) <= _MOST_SENTENCES:
        for at, sentence in enumerate(question.sentences):
            rest = whole - sum(hash_word(word) for word in sentence)
            parts[at] = _mixed(rest & _MASK, answer)
    first = _mixed(whole & _MASK)
    with_answer = _mixed(whole & _MASK, answer) if answer else 0
    return [first, with_answer, *swapped, *slipped, *parts]


class _Texts:
    """Words of rows on their way to MinHash values, some thousand rows at a time."""

    def __init__(self, made: NDArray[uint32]) -> None:
        self.made = made
        self._clear()

    def _clear(self) -> None:
        self.rows: list[int] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.hashes: list[int] = []

    def add(self, row: int, *parts: Sequence[str]) -> None:
        """Take a row's texts; pairs of neighbours do not cross from one to the next."""
        self.rows.append(row)
        self.starts.append(len(self.hashes))
        for words in parts:
            if words:
                self.hashes += [hash_word(word) for word in words]
                self.ends.append(len(self.hashes) - 1)
        if len(self.hashes) > _MOST_FEATURES:
            self.fill()

    def fill(self) -> None:
        """Write the MinHash values of the rows taken.

        The hash functions are multiply-shift (Dietzfelbinger et al. 1997) over hashes of 64 bits.
        """
        np = numpy()
        if not self.rows:
            return
        words = np.array(self.hashes, dtype=np.uint64)
        pairs = words * np.uint64(_ODD)
        pairs[:-1] += words[1:]
        pairs[self.ends] = words[self.ends]  # The last word of a text has no neighbour.
        for k in range(PERMUTATIONS.stop - PERMUTATIONS.start):
            factor, add = np.uint64(_mixed(k, 1) | 1), np.uint64(_mixed(k, 2))
            lowest = np.minimum(words * factor + add, pairs * factor + add)
            values = np.minimum.reduceat(lowest, self.starts) >> np.uint64(32)
            self.made[self.rows, PERMUTATIONS.start + k] = values
        self._clear()
