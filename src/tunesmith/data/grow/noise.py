"""Rule `noise`: slips of the keyboard and of case in the question, where nothing depends on the letters."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from random import Random

from tunesmith.data.grow.rule import Draw, Made, Unfit
from tunesmith.data.grow.turns import answers_raw, question_path, question_span, remade
from tunesmith.data.rows import Row

__all__ = ["Noise", "open_words", "vocabulary"]

_WORD = re.compile(r"[^\W\d_]+")
_QUOTED = re.compile(r"""'[^'\n]*'(?!\w)|"[^"\n]*"|`[^`\n]*`|“[^“”\n]*”|‘[^‘’\n]*’|«[^«»\n]*»""")
_CLOSED = re.compile(r"[\d@#/\\_<>{}\[\]=$%&*+^~|]|\w[.:]\w")
"""In words with digits or signs (numbers, dates, names of columns, markup) and in addresses."""
_SHORTEST = 4
_MEANING_HANGS_ON_TEXT = (
    "about above after again against before below between both different down each either "
    "equal every except exactly fewer fewest first from greater have highest into largest last "
    "least less longest lowest more most neither never next none only other over past same shortest "
    "smallest still than that then there these this those through twice under until with within "
    "without zero three four five seven eight nine eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred "
    "thousand million billion half third fourth fifth"
)
_MEANING_HANGS_ON = frozenset(_MEANING_HANGS_ON_TEXT.split())
"""Small words and numbers that one slip may turn into another word, or whose loss changes what is asked."""
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_TRIES = 8


def _neighbours() -> dict[str, str]:
    """Letter -> the letters beside it on a QWERTY keyboard, also one row up and down."""
    found: dict[str, str] = {}
    for line, letters in enumerate(_ROWS):
        for place, letter in enumerate(letters):
            near = [letters[p] for p in (place - 1, place + 1) if 0 <= p < len(letters)]
            for other in (line - 1, line + 1):
                if 0 <= other < len(_ROWS) and place < len(_ROWS[other]):
                    near.append(_ROWS[other][place])
            found[letter] = "".join(near)
    return found


_NEAR = _neighbours()


def vocabulary(rows: Iterable[Row]) -> frozenset[str]:
    """Every word of the rows' questions: a slip must not make one of them out of another."""
    words: set[str] = set()
    for row in rows:
        words.update(word.casefold() for word in _WORD.findall(row.question))
    return frozenset(words)


def open_words(question: str, answer: str) -> list[tuple[int, int]]:
    """Where words stand whose letters may change.

    Not those that occur in the answer (also as a part of a word), not quoted values, numbers, names
    (a capital inside the sentence), words with signs in them, short words, and small words on which
    the meaning hangs.
    """
    closed = [match.span() for match in _QUOTED.finditer(question)]
    closed += [m.span() for m in re.finditer(r"\S+", question) if _CLOSED.search(m[0])]
    said = answer.casefold()
    is_closed = bytearray(len(question))
    for start, end in closed:
        is_closed[start:end] = b"\1" * (end - start)
    found: list[tuple[int, int]] = []
    for match in _WORD.finditer(question):
        word, (start, end) = match[0], match.span()
        folded = word.casefold()
        if len(word) < _SHORTEST or folded in said or folded in _MEANING_HANGS_ON:
            continue
        if not word.isascii() or not word[1:].islower():
            continue
        if word[0].isupper() and not _opens_sentence(question, start):
            continue
        if folded.endswith("s") and len(folded) > _SHORTEST and folded[:-1] in said:
            continue
        if not any(is_closed[start:end]):
            found.append((start, end))
    return found


def _opens_sentence(text: str, at: int) -> bool:
    before = text[:at].rstrip()
    return not before or before[-1] in ".!?:\n"


def _swap(word: str, rng: Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _drop(word: str, rng: Random) -> str:
    at = rng.randrange(1, len(word))
    return word[:at] + word[at + 1 :]


def _double(word: str, rng: Random) -> str:
    at = rng.randrange(1, len(word))
    return word[:at] + word[at] + word[at:]


def _neighbour(word: str, rng: Random) -> str:
    at = rng.randrange(1, len(word))
    near = _NEAR.get(word[at].lower(), "")
    return word[:at] + rng.choice(near) + word[at + 1 :] if near else word


_SLIPS: dict[str, Callable[[str, Random], str]] = {
    "swap": _swap,
    "drop": _drop,
    "double": _double,
    "neighbour": _neighbour,
}
_CASES: dict[str, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower}


class Noise:
    """One or two slips (two letters swapped, one dropped, doubled or hit beside), or another case.

    The first letter of a word stays. No slip makes a word that any question of the file uses.

    Args:
        known: those words.
    """

    name = "noise"

    def __init__(self, known: Collection[str]) -> None:
        self._known = known

    def make(self, row: Row, draw: Draw) -> Made | Unfit:
        """The row with slips in its question."""
        path = question_path(row)
        if path is None:
            return Unfit("it has no question of a user")
        text = str(row.value[path[0]][path[1]]["content"])
        span = question_span(text)
        if span is None:
            return Unfit("it cannot be told which part of the user's turn is the question")
        question = text[slice(*span)]
        # Both forms: the answer as it reads, and as JSON has it.
        places = open_words(question, f"{row.answer}\n" + "\n".join(answers_raw(row)))
        if not places:
            return Unfit("no word of the question may change")
        changed, slips = self._slipped(question, places, draw.rng)
        if changed == question:
            return Unfit("every slip tried makes another word")
        new = f"{text[: span[0]]}{changed}{text[span[1] :]}"
        return Made(remade(row, {path: new}), {"slips": slips})

    def _slipped(
        self, question: str, places: list[tuple[int, int]], rng: Random
    ) -> tuple[str, list[str]]:
        chosen = sorted(rng.sample(places, min(len(places), rng.choice((1, 1, 2)))), reverse=True)
        slips: list[str] = []
        for start, end in chosen:
            word = question[start:end]
            kind, new = self._slip(word, rng)
            if new != word:
                slips.append(f"{kind}: {word} > {new}")
                question = f"{question[:start]}{new}{question[end:]}"
        return question, slips[::-1]

    def _slip(self, word: str, rng: Random) -> tuple[str, str]:
        if rng.random() < 0.15:
            kind = rng.choice(sorted(_CASES))
            return kind, _CASES[kind](word)
        for _ in range(_TRIES):
            kind = rng.choice(sorted(_SLIPS))
            new = _SLIPS[kind](word, rng)
            if new != word and not self._is_word(new.casefold()):
                return kind, new
        return "none", word

    def _is_word(self, new: str) -> bool:
        return new in self._known or new in _MEANING_HANGS_ON

    def close(self) -> None:
        """Nothing to give back."""
