"""What two datasets differ in: rows that came, went, changed, or moved to another split."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.data.look.places import Place
from tunesmith.data.rows import Row
from tunesmith.data.split import prompt_key

__all__ = ["Change", "Difference", "Found", "Word", "diff", "words"]

NEAR = 0.6
"""From which share of equal words on two prompts count as one that was changed (Ratcliff and Obershelp 1988)."""
_RARE = 50
"""A word in more rows than this says too little to look for a row by it."""
_CANDIDATES = 8

Word = tuple[str, str]
"""("=", "-" or "+", text)."""


@dataclass(frozen=True)
class Found:
    """A row of one side."""

    split: str
    where: str
    question: str
    answer: str
    text: str

    @classmethod
    def of(cls, split: str, row: Row) -> Found:
        """The parts of a row that are shown."""
        answer = row.answer
        if row.rejected:
            answer += "\n(rejected) " + str(row.rejected[0].get("content") or "")
        return cls(split, row.where, row.question, answer, row.text)


@dataclass(frozen=True)
class Change:
    """A row and what it became.

    Attributes:
        by: "prompt" when the prompts are equal, "likeness" when only nearly.
    """

    old: Found
    new: Found
    by: str


@dataclass(frozen=True)
class Difference:
    """All of it.

    Attributes:
        rows: split -> (rows of the first, rows of the second).
        moved: "from -> to" -> equal rows that stand in another split.
        equal: rows that are the same on both sides, moved ones included.
    """

    rows: dict[str, tuple[int, int]]
    added: tuple[Found, ...]
    removed: tuple[Found, ...]
    changed: tuple[Change, ...]
    moved: dict[str, int]
    equal: int

    @property
    def is_empty(self) -> bool:
        """Whether both sides hold the same rows in the same splits; their order does not count."""
        return not (self.added or self.removed or self.changed or self.moved)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "equal_rows": self.equal,
            "is_empty": self.is_empty,
            "rows": {split: {"old": a, "new": b} for split, (a, b) in self.rows.items()},
            "moved": self.moved,
            "added": [asdict(row) for row in self.added],
            "removed": [asdict(row) for row in self.removed],
            "changed": [asdict(change) for change in self.changed],
        }


def diff(old: Place, new: Place) -> Difference:
    """Compare the rows of two places, whatever their order. Both are gone through twice.

    A row is matched by its content, else by its prompt, else by a nearly equal prompt.

    Raises:
        DataError: raw rows cannot be read.
        ArtifactError: a sealed file was changed.
    """
    keys = [_count(place) for place in (old, new)]
    for place in (old, new):
        place.problems.raise_any("mend the lines named, or compare sealed datasets")
    contents = [_contents(counts) for counts in keys]
    with old.with_bar("comparing"):
        removed = list(_left_over(old, *contents))
    with new.with_bar("comparing"):
        added = list(_left_over(new, *reversed(contents)))
    changed, removed, added = _by_prompt(removed, added)
    likely, removed, added = _by_likeness(removed, added)
    sizes = [_sizes(counts) for counts in keys]
    return Difference(
        rows={
            split: (sizes[0][split], sizes[1][split])
            for split in dict.fromkeys([*old.splits, *new.splits])
        },
        added=tuple(found for found, _ in added),
        removed=tuple(found for found, _ in removed),
        changed=(*changed, *likely),
        moved=_moved(*keys),
        equal=(contents[0] & contents[1]).total(),
    )


_Kept = tuple[Found, str]
"""A row and the key of its prompt."""


def _key(row: Row) -> bytes:
    """Hash of what a row says: equal for two spellings of the same JSON values."""
    said = json.dumps(row.value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _count(place: Place) -> Counter[tuple[str, bytes]]:
    with place.with_bar():
        return Counter((split, _key(row)) for split, row in place.all_rows())


def _contents(counts: Counter[tuple[str, bytes]]) -> Counter[bytes]:
    """How often each content stands in any split."""
    found: Counter[bytes] = Counter()
    for (_, key), n in counts.items():
        found[key] += n
    return found


def _sizes(counts: Counter[tuple[str, bytes]]) -> Counter[str]:
    """Rows of each split."""
    found: Counter[str] = Counter()
    for (split, _), n in counts.items():
        found[split] += n
    return found


def _left_over(place: Place, mine: Counter[bytes], other: Counter[bytes]) -> Iterator[_Kept]:
    """The rows that the other side lacks: of equal rows the last ones."""
    matched = Counter(mine & other)
    if mine.total() == matched.total():
        return
    for split, row in place.all_rows():
        key = _key(row)
        if matched[key]:
            matched[key] -= 1
        else:
            yield Found.of(split, row), prompt_key(row)


def _moved(old: Counter[tuple[str, bytes]], new: Counter[tuple[str, bytes]]) -> dict[str, int]:
    """Equal rows that stand in another split on the other side."""
    gone, came = old - new, new - old
    targets: dict[bytes, list[str]] = defaultdict(list)
    for split, key in came.elements():
        targets[key].append(split)
    moved: Counter[str] = Counter()
    for split, key in gone.elements():
        if targets[key]:
            moved[f"{split} -> {targets[key].pop(0)}"] += 1
    return dict(sorted(moved.items()))


_Rest = tuple[list[Change], list[_Kept], list[_Kept]]
"""What was matched, and what is left of both sides."""


def _by_prompt(removed: list[_Kept], added: list[_Kept]) -> _Rest:
    """Match rows with equal prompts, in their order."""
    came: dict[str, list[int]] = defaultdict(list)
    for place, (_, key) in enumerate(added):
        came[key].append(place)
    pairs = {place: came[key].pop(0) for place, (_, key) in enumerate(removed) if came[key]}
    return _matched(pairs, removed, added, "prompt")


def _by_likeness(removed: list[_Kept], added: list[_Kept]) -> _Rest:
    """Match rows with nearly equal prompts, the likeliest first."""
    texts = [_words(found) for found, _ in added]
    index: dict[str, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        for word in dict.fromkeys(text):
            index[word].append(place)
    likely: list[tuple[float, int, int]] = []
    for place, (found, _) in enumerate(removed):
        mine = _words(found)
        rare = [word for word in dict.fromkeys(mine) if len(index.get(word, ())) <= _RARE]
        shared = Counter(other for word in rare for other in index.get(word, ()))
        for other, _ in shared.most_common(_CANDIDATES):
            likeness = difflib.SequenceMatcher(None, mine, texts[other], autojunk=False).ratio()
            if likeness >= NEAR:
                likely.append((-likeness, place, other))
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, place, other in sorted(likely):
        if place not in pairs and other not in taken:
            pairs[place] = other
            taken.add(other)
    return _matched(pairs, removed, added, "likeness")


def _matched(pairs: Mapping[int, int], removed: list[_Kept], added: list[_Kept], by: str) -> _Rest:
    taken = set(pairs.values())
    return (
        [Change(removed[place][0], added[pairs[place]][0], by) for place in sorted(pairs)],
        [row for place, row in enumerate(removed) if place not in pairs],
        [row for place, row in enumerate(added) if place not in taken],
    )


_WORD = re.compile(r"\w+|[^\w\s]|\s+")


def _words(found: Found) -> list[str]:
    """Words of a row's question; of plain text, of the text."""
    return [word for word in _WORD.findall(found.question or found.answer) if not word.isspace()]


def words(old: str, new: str) -> list[Word]:
    """One text made from the other: what stays, goes and comes, word by word."""
    a, b = _WORD.findall(old), _WORD.findall(new)
    made: list[Word] = []
    for kind, low, high, start, end in difflib.SequenceMatcher(
        None, a, b, autojunk=False
    ).get_opcodes():
        if kind == "equal":
            made.append(("=", "".join(a[low:high])))
            continue
        made += [("-", "".join(a[low:high]))] if high > low else []
        made += [("+", "".join(b[start:end]))] if end > start else []
    return made
