"""Whether two rows say the same: the rule that near-duplicates are judged by.

It is asked only of pairs that `similar` proposes. Definition, in short: the questions are near and the answers
are near. See docs/data/cleaning.md for examples.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Literal

from tunesmith.data.rows import Row
from tunesmith.data.wording import (
    Wording,
    folded,
    is_code,
    is_unspaced,
    same_word,
    symbols_of,
    wording,
)

__all__ = [
    "DOCUMENT_WORDS",
    "LABELS",
    "LEAST_ANSWER_WORDS",
    "LONG_WORDS",
    "THRESHOLD",
    "Answers",
    "Likeness",
    "Prepared",
    "Said",
    "are_near",
    "decide",
    "label_of",
    "likeness",
    "prepared",
    "said",
]

THRESHOLD = 0.7
"""Jaccard similarity of words and neighbouring pairs from which longer texts are near."""
LONG_WORDS = 12
"""More words that count than this, and similarity is taken of the whole text."""
DOCUMENT_WORDS = 100
"""Texts of more words are near although a number in them differs."""
CLOSE = 0.6
"""Jaccard similarity of all words, small ones included, that short questions need where no answer vouches for them."""
CLOSE_VOUCHED = 0.5
"""The same where the answer is equal and few rows have it. Below are paraphrases, which teach something."""
CLOSE_PART = 0.8
"""Part of the shorter question's words that the longer one must hold, likewise, where sentences were added."""
LEAST_ANSWER_WORDS = 4
"""Answers of fewer words are near only when they are equal: a typing error cannot be told from another answer."""
_MOST_SLIPS = 8
"""Texts in which more words differ than these are not searched for typing errors."""
_SWAP_NEEDS = 2
"""Words that two short questions must share when one word of theirs differs."""

LABELS = ("label", "category", "class", "intent", "sentiment", "topic")
"""Fields that hold the class of a text."""

Answers = Literal["needed", "help"]
"""`needed`: rows are near when both question and answer are. `help`: also when the questions are worded
alike, whatever the answers: what a leak between splits is."""


class Likeness(IntEnum):
    """How alike two texts are: the same but for writing; but for added sentences or a small part of a longer
    text; but for one word of a short text; not at all."""

    NONE = 0
    SWAP = 1
    MOST = 2
    SAME = 3


@dataclass(frozen=True, slots=True)
class Said:
    """What a row asks and answers; for plain text `question` is the text and `answer` its class, if it has one."""

    question: str
    answer: str = ""


def said(row: Row) -> Said:
    """A row as it is compared: without its system message, with its database, tool calls as JSON.

    A pair's answers are both taken.
    """
    if row.kind == "text":
        return Said(row.answer, label_of(row))
    turns = list(row.messages)
    if row.kind == "problem":
        return Said(_asked(row, turns), row.answer)
    answers = [_spoken(turn) for turn in (*turns[-1:], *row.rejected)]
    if row.kind == "feedback":
        answers.append(f'"{row.value["label"]}"')  # In quotes: the same answer, judged otherwise.
    return Said(_asked(row, turns[:-1]), "\n".join(answers))


def label_of(row: Row) -> str:
    """The class that a row of plain text is given in one of its other fields; empty when it has none."""
    values = (row.meta.get(name) for name in LABELS)
    return next(
        (str(value) for value in values if isinstance(value, str | int) and value != ""), ""
    )


def _asked(row: Row, turns: Iterable[object]) -> str:
    texts = [_spoken(turn) for turn in turns if _role(turn) != "system"]
    database = row.meta.get("database")
    if isinstance(database, str) and database:
        # In quotes: the same question about another database is another question.
        texts.append(f'"{database}"')
    return "\n".join(texts)


def _role(turn: object) -> object:
    return turn.get("role") if isinstance(turn, dict) else None


def _spoken(turn: object) -> str:
    if not isinstance(turn, dict):
        return ""
    content = turn.get("content")
    parts = [content] if isinstance(content, str) else []
    if turn.get("tool_calls"):
        parts.append(json.dumps(turn["tool_calls"], ensure_ascii=False, sort_keys=True))
    return "\n".join(parts)


@dataclass(frozen=True)
class Prepared:
    """A row as the rule reads it."""

    question: Wording
    answer: str

    @cached_property
    def answer_wording(self) -> Wording:
        """The answer by what it says."""
        return wording(self.answer)

    @cached_property
    def answer_is_code(self) -> bool:
        """Whether symbols carry meaning in the answer."""
        return is_code(self.answer)


def prepared(row: Said) -> Prepared:
    """Read a row once, to compare it several times."""
    return Prepared(wording(row.question), row.answer)


def are_near(
    one: Said,
    other: Said,
    *,
    threshold: float = THRESHOLD,
    answers: Answers = "needed",
    common_answer: bool = False,
    in_slot: bool = False,
) -> bool:
    """Whether two rows are near-duplicates; symmetric.

    Args:
        threshold: Jaccard similarity from which longer texts are near, above 0 and up to 1.
        answers: what the answers decide.
        common_answer: many rows share this answer, as a class's label: that it is equal says little, so short
            questions must be worded closely as well.
        in_slot: with a common answer: the word that differs stands where many other rows have yet other words
            ("return my shoes", "return my lamp", ...), so it is no synonym.
    """
    return decide(
        prepared(one),
        prepared(other),
        threshold=threshold,
        answers=answers,
        common_answer=common_answer,
        in_slot=in_slot,
    )


def decide(
    one: Prepared,
    other: Prepared,
    *,
    threshold: float,
    answers: Answers,
    common_answer: bool,
    in_slot: bool,
) -> bool:
    """`are_near` of rows that are prepared."""
    if not _answers_near(one, other, threshold):
        return answers == "help" and _say_the_same(one.question, other.question)
    alike = likeness(one.question, other.question, threshold)
    if alike is Likeness.NONE or (alike is Likeness.SAME and answers == "help"):
        return alike is Likeness.SAME
    vouched = bool(one.answer) and not common_answer
    if vouched and answers == "help":
        return True
    least = CLOSE_VOUCHED if vouched else CLOSE
    match alike:
        case Likeness.SAME:
            return _closeness(one, other) >= least
        case Likeness.SWAP:
            may_be = bool(one.answer) and not (common_answer and in_slot)
            return may_be and _closeness(one, other) >= least
        case _:
            n_words = min(len(one.question.words), len(other.question.words))
            if n_words > LONG_WORDS:
                return True
            return bool(one.answer) and _closeness(one, other, of_shorter=True) >= CLOSE_PART


def _closeness(one: Prepared, other: Prepared, *, of_shorter: bool = False) -> float:
    """Jaccard similarity of all words but courtesies, those with a typing error counted as equal.

    Args:
        of_shorter: the shared part of the shorter text instead.
    """
    mine, theirs = Counter(one.question.tokens), Counter(other.question.tokens)
    n_same = (mine & theirs).total()
    left, right = list((mine - theirs).elements()), list((theirs - mine).elements())
    if max(len(left), len(right)) <= 2 * _MOST_SLIPS:
        for word in left:
            twin = next((found for found in right if same_word(word, found)), None)
            if twin is not None:
                right.remove(twin)
                n_same += 1
    n_mine, n_theirs = mine.total(), theirs.total()
    if not n_mine and not n_theirs:
        return 1.0
    return n_same / max(1, min(n_mine, n_theirs) if of_shorter else n_mine + n_theirs - n_same)


def likeness(one: Wording, other: Wording, threshold: float = THRESHOLD) -> Likeness:
    """How alike two texts are; symmetric."""
    if not _guards_allow(one, other):
        return Likeness.NONE
    extra, missing = _differing(one, other)
    if not extra and not missing:
        return Likeness.SAME if _same_turns(one, other) else Likeness.NONE
    if _has_unspaced(extra) and _has_unspaced(missing) and not _are_documents(one, other):
        # Each character is a part of a word there, and nothing tells a name: 東京 is not 大阪.
        return Likeness.NONE
    is_long = min(len(one.words), len(other.words)) > LONG_WORDS
    if _is_added(one, other, extra, missing) or (is_long and jaccard(one, other) >= threshold):
        return Likeness.MOST
    return Likeness.SWAP if _is_swap(one, other, extra, missing) else Likeness.NONE


def _say_the_same(one: Wording, other: Wording) -> bool:
    """Whether `likeness` is `SAME`."""
    if abs(len(one.words) - len(other.words)) > 3 or not _guards_allow(one, other):
        return False
    return _differing(one, other) == ([], []) and _same_turns(one, other)


def _guards_allow(one: Wording, other: Wording) -> bool:
    return _are_documents(one, other) or one.guarded == other.guarded


def _are_documents(one: Wording, other: Wording) -> bool:
    return min(len(one.tokens), len(other.tokens)) > DOCUMENT_WORDS


def _has_unspaced(words: Sequence[str]) -> bool:
    return any(map(is_unspaced, words))


def jaccard(one: Wording, other: Wording) -> float:
    """Exact Jaccard similarity of two texts' words and neighbouring pairs."""
    mine, theirs = one.grams, other.grams
    return len(mine & theirs) / max(1, len(mine | theirs))


def _differing(one: Wording, other: Wording) -> tuple[list[str], list[str]]:
    """Words that only one of both has, those with a typing error paired away."""
    mine, theirs = one.counts, other.counts
    extra, missing = sorted((mine - theirs).elements()), sorted((theirs - mine).elements())
    if len(extra) > _MOST_SLIPS or len(missing) > _MOST_SLIPS:
        return extra, missing
    left = []
    for word in extra:
        twin = next((found for found in missing if same_word(word, found)), None)
        if twin is None:
            left.append(word)
        else:
            missing.remove(twin)
    return _no_slips(left, one, other), _no_slips(missing, other, one)


def _no_slips(words: list[str], own: Wording, other: Wording) -> list[str]:
    """Those words that are no small word of the other text with a typing error: "pleare"."""
    if not words or len(words) > 3:
        return words
    small = set(other.tokens) - set(own.tokens) - set(other.words)
    return [word for word in words if not any(same_word(word, found) for found in small)]


def _same_turns(one: Wording, other: Wording) -> bool:
    """Whether what follows "from", "to" and the like is the same, where both have these words."""
    shared = {turn for turn, _ in one.bound} & {turn for turn, _ in other.bound}
    mine = {pair for pair in one.bound if pair[0] in shared}
    theirs = {pair for pair in other.bound if pair[0] in shared}
    return all(_has_bound(pair, theirs) for pair in mine - theirs) and all(
        _has_bound(pair, mine) for pair in theirs - mine
    )


def _has_bound(pair: tuple[str, str], pairs: Iterable[tuple[str, str]]) -> bool:
    return any(pair[0] == turn and same_word(pair[1], word) for turn, word in pairs)


def _is_swap(one: Wording, other: Wording, extra: list[str], missing: list[str]) -> bool:
    """One word more, less or other, which is no name."""
    if len(extra) > 1 or len(missing) > 1:
        return False
    names = one.names | other.names
    n_shared = min(len(one.words), len(other.words)) - max(len(extra), len(missing))
    return n_shared >= _SWAP_NEEDS - (not (extra and missing)) and not any(
        word in names for word in (*extra, *missing)
    )


def _is_added(one: Wording, other: Wording, extra: list[str], missing: list[str]) -> bool:
    """Whether one text is the other with whole sentences added."""
    if extra and missing:
        return False
    longer, added = (one, extra) if extra else (other, missing)
    left = Counter(added)
    for sentence in longer.sentences:
        words = Counter(sentence)
        if words <= left:
            left -= words
    return not left and 2 * len(added) <= 3 * (len(longer.words) - len(added))


def _answers_near(one: Prepared, other: Prepared, threshold: float) -> bool:
    if one.answer == other.answer:
        return True
    if not one.answer or not other.answer:
        return False
    if one.answer_is_code or other.answer_is_code:
        return symbols_of(one.answer) == symbols_of(other.answer)
    if folded(one.answer) == folded(other.answer):
        return True
    mine, theirs = one.answer_wording, other.answer_wording
    n_words = min(len(mine.words), len(theirs.words))
    n_shared = len(mine.counts.keys() & theirs.counts.keys())
    if n_words < LEAST_ANSWER_WORDS or 2 * n_shared < min(len(mine.counts), len(theirs.counts)):
        return False
    alike = likeness(mine, theirs, threshold)
    return alike is Likeness.SAME or (alike is Likeness.MOST and n_words > LONG_WORDS)
