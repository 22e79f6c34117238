"""ROUGE-L of two texts (Lin 2004), fast enough to compare with a whole pool."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["RougePool", "lcs_length", "rouge_l", "words_of"]

_WORD = re.compile(r"\w+")


def words_of(text: str) -> tuple[str, ...]:
    """Words in any script, casefolded. (The package rouge-score keeps a-z and 0-9 only.)"""
    return tuple(_WORD.findall(text.casefold()))


def lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, one bit a word of `left` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << place
    ones = (1 << len(left)) - 1
    row = ones
    for word in right:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & ones
    return len(left) - row.bit_count()


def rouge_l(left: Sequence[str], right: Sequence[str]) -> float:
    """The F1 of ROUGE-L: 0 without common words, 1 for equal texts; 0 when one has no words."""
    if not left or not right:
        return 0.0
    return 2 * lcs_length(left, right) / (len(left) + len(right))


class RougePool:
    """Texts against which new ones are compared.

    Args:
        texts: the first members.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._members: list[tuple[str, tuple[str, ...], frozenset[str]]] = []
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._members)

    def add(self, text: str) -> None:
        """Let a text in."""
        words = words_of(text)
        self._members.append((text, words, frozenset(words)))

    def nearest(self, text: str, at_least: float) -> tuple[float, str] | None:
        """The member with the highest ROUGE-L of `at_least` or more, and that value."""
        words = words_of(text)
        known = set(words)
        best: tuple[float, str] | None = None
        floor = at_least
        for member, other, other_set in self._members:
            total = len(words) + len(other)
            if not total or 2 * min(len(words), len(other)) < floor * total:
                continue
            # A common subsequence has no word that only one text has.
            if 2 * sum(word in known for word in other) < floor * total:
                continue
            if not known & other_set:
                continue
            value = rouge_l(words, other)
            if value >= floor and (best is None or value > best[0]):
                best, floor = (value, member), value
        return best
