"""Figures about rows: counts, lengths, labels, turns, languages, repeats. One pass, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tunesmith.data.check.language import told as language_of
from tunesmith.data.look.places import Place
from tunesmith.data.rows import Row
from tunesmith.data.split import prompt_key

__all__ = ["Lengths", "Stats", "Values", "stats"]

SAMPLE_ROWS = 2_000
"""Rows whose tokens are counted and whose language is told, drawn at random from all."""
_MOST_VALUES = 1_000
_SHOWN_VALUES = 20
_N_BINS = 24


@dataclass(frozen=True)
class Lengths:
    """How long things are.

    Attributes:
        n: how many were measured.
        p95: 95 of 100 are at most as long.
        bins: (from, below, how many) for a histogram.
    """

    n: int
    least: int
    mean: float
    median: int
    p95: int
    most: int
    bins: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> Lengths | None:
        """From length -> how often; None when nothing was measured."""
        n = sum(counts.values())
        if not n:
            return None
        ordered = sorted(counts)
        total = sum(length * counts[length] for length in ordered)
        at = _ranks(counts, ordered, (0.5, 0.95), n)
        return cls(n, ordered[0], round(total / n, 2), at[0], at[1], ordered[-1], _bins(counts))


def _ranks(
    counts: Mapping[int, int], ordered: Sequence[int], shares: Sequence[float], n: int
) -> list[int]:
    """The smallest length that so large a share does not exceed, for each share."""
    found, passed, places = [], 0, iter(ordered)
    length = ordered[0]
    for share in shares:
        while passed < math.ceil(share * n):
            length = next(places)
            passed += counts[length]
        found.append(length)
    return found


def _bins(counts: Mapping[int, int]) -> tuple[tuple[int, int, int], ...]:
    """At most 24 bins of one round width; what is longer than nearly all is in the last one.

    They begin at 0, or where the lengths do when these are all far from it.
    """
    ordered = sorted(counts)
    n = sum(counts.values())
    top = _ranks(counts, ordered, (0.99,), n)[0]
    least = ordered[0] if 2 * ordered[0] > top else 0
    # One bin less, since the first begins at a round number.
    width = _round_width(math.ceil((top - least + 1) / (_N_BINS - 1)))
    start = least // width * width
    n_bins = (top - start) // width + 1
    sums = [0] * n_bins
    for length, count in counts.items():
        sums[min((length - start) // width, n_bins - 1)] += count
    ends = [start + (at + 1) * width for at in range(n_bins)]
    ends[-1] = max(ends[-1], ordered[-1] + 1)
    return tuple((start + at * width, ends[at], sums[at]) for at in range(n_bins))


def _round_width(least: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least this."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= least:
                return step * scale
        scale *= 10


@dataclass(frozen=True)
class Values:
    """The values of one field.

    Attributes:
        distinct: how many there are; None when more than a thousand.
        top: the most frequent ones, with how often.
    """

    name: str
    distinct: int | None
    top: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Stats:
    """Everything that `tunesmith data stats` shows.

    Attributes:
        rows: split -> rows.
        kinds: kind -> rows.
        unreadable: problems that kept raw rows from being read.
        question, answer: characters; a plain text has no question.
        tokens, trained: tokens of whole rows and of what the loss counts, of a sample of rows; None
            when they were not counted, for the reason in `tokens_note`.
        turns: turns of a conversation -> rows.
        tools: rows with tools or calls of them.
        fields: fields of `meta` (and the answers, where they are few) with few values.
        languages: code, "unknown" where no language could be told -> rows of the sample.
        repeats: rows whose prompt and answer stand in an earlier row; repeated_prompts: whose prompt does.
        report: of a sealed dataset; None for raw files.
    """

    name: str
    rows: Mapping[str, int]
    kinds: Mapping[str, int]
    unreadable: int
    schemas: Mapping[str, str]
    question: Lengths | None
    answer: Lengths | None
    tokens: Lengths | None
    trained: Lengths | None
    tokens_note: str
    turns: Mapping[int, int]
    tools: int
    fields: tuple[Values, ...]
    languages: Mapping[str, int]
    sample_rows: int
    repeats: int
    repeated_prompts: int
    report: Mapping[str, Any] | None = None

    @property
    def n_rows(self) -> int:
        """All rows."""
        return sum(self.rows.values())

    @property
    def drawn(self) -> str:
        """Which rows the sample is, in words."""
        if self.sample_rows == self.n_rows:
            return f"all {self.n_rows:,} rows"
        return f"{self.sample_rows:,} rows drawn at random"

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass
class _Seen:
    """Figures on their way."""

    rows: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    question: Counter[int] = field(default_factory=Counter)
    answer: Counter[int] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    tools: int = 0
    values: dict[str, Counter[str] | None] = field(default_factory=dict)
    answers: set[bytes] = field(default_factory=set)
    prompts: set[bytes] = field(default_factory=set)
    repeats: int = 0
    repeated_prompts: int = 0
    sample: list[Row] = field(default_factory=list)
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, split: str, row: Row) -> None:
        """Count one row."""
        n = sum(self.rows.values())
        self.rows[split] += 1
        self.kinds[row.kind] += 1
        if row.kind != "text":
            self.question[len(row.question)] += 1
        self.answer[len(row.answer)] += 1
        if row.messages:
            self.turns[len(row.messages)] += 1
        self.tools += bool(row.tools) or any(turn.get("tool_calls") for turn in row.messages)
        self._values(row)
        self._repeats(row)
        if len(self.sample) < SAMPLE_ROWS:
            self.sample.append(row)
        elif (place := self.draw.randrange(n + 1)) < SAMPLE_ROWS:
            self.sample[place] = row

    def _repeats(self, row: Row) -> None:
        # Eight bytes of a hash a row: a chance meeting in a million rows is one in 40 million.
        prompt = hashlib.blake2b(prompt_key(row).encode("utf-8", "surrogatepass"), digest_size=8)
        whole = prompt.copy()
        whole.update(f"\0{row.answer}".encode("utf-8", "surrogatepass"))
        for known, key, name in (
            (self.prompts, prompt.digest(), "repeated_prompts"),
            (self.answers, whole.digest(), "repeats"),
        ):
            if key in known:
                setattr(self, name, getattr(self, name) + 1)
            known.add(key)

    def _values(self, row: Row) -> None:
        found = {name: value for name, value in row.meta.items() if _is_label(value)}
        found["answer"] = row.answer if len(row.answer) <= 80 else None
        for name, value in found.items():
            counts = self.values.setdefault(name, Counter())
            if counts is None:
                continue
            if value is None or (len(counts) >= _MOST_VALUES and _spelled(value) not in counts):
                self.values[name] = None
            else:
                counts[_spelled(value)] += 1


def _spelled(value: object) -> str:
    """As JSON has it, but texts without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def _is_label(value: object) -> bool:
    return isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= 80)


def stats(
    place: Place, tokens_of: Callable[[Row], tuple[int, int] | None] | None = None, note: str = ""
) -> Stats:
    """Go through all rows of a place once.

    Args:
        tokens_of: a row's tokens, and how many of them the loss counts, or None for a row that the
            model's template refuses; None not to count them.
        note: why they are not counted, or how they are.

    Raises:
        ArtifactError: a sealed file was changed.
        DataError: a file cannot be read at all.
    """
    seen = _Seen()
    with place.with_bar():
        for split, row in place.all_rows():
            seen.add(split, row)
    whole: Counter[int] = Counter()
    trained: Counter[int] = Counter()
    for row in seen.sample:
        counted = tokens_of(row) if tokens_of else None
        if counted is not None:
            whole[counted[0]] += 1
            trained[counted[1]] += 1
    languages = Counter(language_of(_text(row)) or "unknown" for row in seen.sample)
    return Stats(
        name=place.name,
        rows={split: seen.rows[split] for split in place.splits},
        kinds=dict(seen.kinds),
        unreadable=place.problems.n_problems,
        schemas=dict(place.schemas),
        question=Lengths.of(seen.question),
        answer=Lengths.of(seen.answer),
        tokens=Lengths.of(whole),
        trained=Lengths.of(trained),
        tokens_note=note,
        turns=dict(sorted(seen.turns.items())),
        tools=seen.tools,
        fields=tuple(_fields(seen)),
        languages=dict(languages.most_common()),
        sample_rows=len(seen.sample),
        repeats=seen.repeats,
        repeated_prompts=seen.repeated_prompts,
        report=place.report,
    )


def _text(row: Row) -> str:
    return f"{row.question}\n{row.answer}"


def _fields(seen: _Seen) -> Iterator[Values]:
    """Fields whose values repeat: labels, tasks, sources; not texts and numbers of rows."""
    n = sum(seen.rows.values())
    for name, counts in seen.values.items():
        total = sum(counts.values()) if counts else 0
        if counts and len(counts) <= max(2, total // 3) and total * 2 >= n:
            yield Values(name, len(counts), tuple(counts.most_common(_SHOWN_VALUES)))
