"""Whether one answer, by itself, was meant to be SQL: also misspelt, and where it turns into prose.

"Select the blue button from the menu" is an instruction. What tells them apart is the second keyword, how
both are written, and signs that no sentence has.
"""

from __future__ import annotations

import re

__all__ = ["is_attempt", "is_instruction"]

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
_WORD = re.compile(r"[A-Za-z']+|\*|[^\sA-Za-z']")
_FIRST = re.compile(r"\s*([A-Za-z']{5,7})(?![A-Za-z'])")
_MAX_CHARACTERS = 2_000
_SECOND_WORDS = {
    "select": ("from",),
    "insert": ("into",),
    "delete": ("from",),
    "update": ("set",),
    "create": ("table", "view", "index"),
}
"""Word that begins a statement -> words one of which follows."""
_ENGLISH_LIST = (
    "selects elect insect inserts crate creates created updates updated deletes deleted "
    "dilate relate berate desert invert assert insets inset upstate form forms frame firm "
    "farm foam prom fro unto onto info see sit sat bet get let met net pet wet yet sent seat"
)
_ENGLISH = frozenset(_ENGLISH_LIST.split())
"""Words that are one edit from a keyword, and words."""
_PROSE_LIST = (
    "the a an your this that these those any each please then to you i we my our it its is are be have will can "
    "cannot more one"
)
_PROSE = frozenset(_PROSE_LIST.split())
"""Words that no name of a table or column is."""
_REFUSAL = re.compile(
    r"\s*select\s+(?:i\s+(?:am|can|cannot|can't|do|don't|will|won't|have|apologi[sz]e)\b|i'm\b|i’m\b|i can’t\b|"
    r"sorry\b|unfortunately\b|as\s+an\s+ai\b)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"(?<![\w.])(?:\w+\.)?\w+\s*(?:=|<=|>=|<>|!=)\s*['\"\w(]|\b(?:group|order)\s+by\s+\w|\bwhere\s+\w+\s*[=<>]|"
    r"\b(?:count|sum|avg|min|max)\(",
    re.IGNORECASE,
)
"""What stands in a query, and in no sentence."""
_LISTED = re.compile(
    r"\binto\b[^.]*\bvalues\s*\(|\(\s*\w+\s+(?:int|integer|text|varchar|real|char|date)\b|;\s*\Z",
    re.IGNORECASE,
)
"""The same in statements that write, and the end of any."""


def is_attempt(answer: str) -> bool:
    """Whether an answer was meant to be an SQL statement, right or wrong.

    The words that make a statement must be there, each within one edit (a swap of neighbours is one), and
    either be in capitals, or come with what no sentence has. A refusal behind SELECT is enough.
    """
    begins = _FIRST.match(answer)
    first = begins[1] if begins else ""
    keyword = next((known for known in _SECOND_WORDS if _is_near(first.lower(), known)), "")
    if not keyword:
        return False
    text = answer[:_MAX_CHARACTERS]
    if _REFUSAL.match(text):
        return True
    words = _WORD.findall(_QUOTED.sub(" x ", text))
    has_clause = _CLAUSE.search(text) is not None
    at = _second(words, keyword, has_clause=has_clause)
    if at is None:
        has_sign = has_clause or words[1:2] == ["*"]
        return first.isupper() and has_sign and not any(w.lower() in _PROSE for w in words)
    between, after = words[1:at], words[at + 1 : at + 2]
    if after and not _may_name(after[0]):
        return False
    if first.lower() in _ENGLISH and not first.isupper() and "*" not in between[:1]:
        return False
    if any(word.lower() in _PROSE for word in between):
        return False
    is_misspelt = first.lower() != keyword and first.lower() not in _ENGLISH
    in_capitals = first.isupper() and words[at].isupper()
    return (
        in_capitals
        or (is_misspelt and words[at].lower() in _SECOND_WORDS[keyword])
        or "*" in between[:1]
        or has_clause
        or _LISTED.search(text) is not None
    )


def is_instruction(answer: str, *, alone: bool = False) -> bool:
    """Whether what begins as SQL does is a sentence that tells somebody what to do.

    Args:
        alone: nothing else tells that the rows are SQL, so that a capital alone makes it a sentence.
    """
    text = answer[:_MAX_CHARACTERS]
    words = _WORD.findall(_QUOTED.sub(" x ", text))
    if not words or is_attempt(answer) or _CLAUSE.search(text):
        return False
    is_prose = any(word.lower() in _PROSE for word in words)
    if alone:
        return words[0].istitle() or is_prose
    return is_prose and not words[0].isupper()


def _second(words: list[str], keyword: str, *, has_clause: bool) -> int | None:
    """Where the second word of the statement stands."""
    wanted = _SECOND_WORDS[keyword]
    farthest = {"select": 40, "update": 6}.get(keyword, 4)
    exact = [at for at in range(1, min(farthest, len(words))) if words[at].lower() in wanted]
    if exact:
        return exact[0]
    return next(
        (
            at
            for at in range(1, min(farthest, len(words)))
            if any(_is_near(words[at].lower(), known) for known in wanted)
            and (
                has_clause
                or words[at].isupper()
                or words[at].lower() not in _ENGLISH
                or words[1:2] == ["*"]
            )
        ),
        None,
    )


def _may_name(word: str) -> bool:
    """Whether a table may be called so."""
    return (word[0].isalpha() or word in ("(", "[")) and word.lower() not in _PROSE


def _is_near(word: str, known: str) -> bool:
    """Whether a word is a known one, or one edit or one swap of neighbours away."""
    if word == known:
        return True
    if abs(len(word) - len(known)) > 1 or len(word) < 3:
        return False
    start = 0
    while start < min(len(word), len(known)) and word[start] == known[start]:
        start += 1
    rest, wanted = word[start:], known[start:]
    return (
        rest[1:] == wanted[1:]
        or rest[1:] == wanted
        or rest == wanted[1:]
        or (rest[:2] == wanted[1::-1] and rest[2:] == wanted[2:])
    )
