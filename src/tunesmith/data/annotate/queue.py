"""Rows in the order in which a person should look at them: the most suspicious first."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from tunesmith.data.check import Checker, CheckOptions, Finding, tell_domains
from tunesmith.data.check.domains import HEAD_ROWS
from tunesmith.data.rows import Row
from tunesmith.telemetry import progress

__all__ = ["Suspect", "by_field", "most_suspicious"]

WEIGHTS: Mapping[str, float] = {"error": 100.0, "warning": 10.0, "note": 1.0}
"""A row with one error comes before any row with fewer than ten warnings."""
OUTLIER_WEIGHT = 3.0
OUTLIER_LIMIT = 3.5
_MANY_ROWS = 2_000


@dataclass(frozen=True)
class Suspect:
    """A row to look at.

    Attributes:
        index: its place in the file, from 0.
        suspicion: the higher, the earlier it is shown.
        reasons: why, the heaviest first.
    """

    index: int
    row: Row
    suspicion: float
    reasons: tuple[str, ...]


def most_suspicious(rows: Sequence[Row], options: CheckOptions | None = None) -> list[Suspect]:
    """All rows: by their findings and near-duplicates, by how odd their answer's length is, by place.

    Findings are those of `tunesmith data check`, over the whole set too where they name a row
    (duplicates, contradictions); an error weighs 100, a warning 10, a note 1. A near-duplicate of an
    earlier row weighs as a warning; without numpy they are not looked for. A length counts as odd
    from a modified z-score of 3.5 on (Iglewicz and Hoaglin 1993).

    Raises:
        EnvironmentProblem: a domain's check needs a package that is not installed.
    """
    reasons: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for found in _findings(rows, options):
        where = found.where
        reasons[where].append((WEIGHTS[found.severity], f"{found.check}: {_said(found)}"))
    for index, text in _near_duplicates(rows).items():
        if not any(said.startswith("duplicate:") for _, said in reasons[rows[index].where]):
            reasons[rows[index].where].append((WEIGHTS["warning"], text))
    for index, text in _odd_lengths(rows).items():
        reasons[rows[index].where].append((OUTLIER_WEIGHT, text))
    suspects = []
    for index, row in enumerate(rows):
        mine = sorted(reasons.get(row.where, ()), key=lambda reason: -reason[0])
        total = sum(weight for weight, _ in mine)
        suspects.append(Suspect(index, row, total, tuple(text for _, text in mine)))
    return sorted(suspects, key=lambda suspect: (-suspect.suspicion, suspect.index))


def by_field(rows: Sequence[Row], name: str) -> list[Suspect]:
    """All rows by a field of their meta, largest numbers first; others after, by their text."""

    def order(suspect: Suspect) -> tuple[int, float, str, int]:
        value = suspect.row.meta.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return (0, -float(value), "", suspect.index)
        return (2 if value is None else 1, 0.0, str(value), suspect.index)

    found = [
        Suspect(index, row, 0.0, (f"{name}: {row.meta[name]!r}",) if name in row.meta else ())
        for index, row in enumerate(rows)
    ]
    return sorted(found, key=order)


def _findings(rows: Sequence[Row], options: CheckOptions | None) -> list[Finding]:
    options = (options or CheckOptions()).told(tell_domains(rows[:HEAD_ROWS]))
    checker = Checker(options)
    found: list[Finding] = []
    is_long = len(rows) > _MANY_ROWS
    with progress("checking", len(rows), unit="rows") if is_long else nullcontext() as bar:
        for row in rows:
            found += checker.see(row)
            if bar is not None:
                bar.advance()
    return [*found, *checker.finish()]


def _said(found: Finding) -> str:
    at = f"{found.field}: " if found.field else ""
    value = f" {found.value}" if found.value else ""
    return f"{at}{found.what}{value}"


def _near_duplicates(rows: Sequence[Row]) -> dict[int, str]:
    """Index of each row that is nearly an earlier one -> which."""
    if find_spec("numpy") is None:
        return {}
    from tunesmith.data.similar import clusters, said, sketch

    every = [said(row) for row in rows]
    first = clusters(sketch(every), every.__getitem__)
    return {
        index: f"near-duplicate: of {rows[int(leader)].where}"
        for index, leader in enumerate(first)
        if int(leader) != index
    }


def _odd_lengths(rows: Sequence[Row]) -> dict[int, str]:
    """Index -> what is odd about the length of the answer, by the median absolute deviation."""
    lengths = [len(row.answer) for row in rows]
    if len(lengths) < 10:
        return {}
    middle = statistics.median(lengths)
    deviation = statistics.median(abs(n - middle) for n in lengths)
    if not deviation:
        return {}
    odd: dict[int, str] = {}
    for index, n in enumerate(lengths):
        score: Any = 0.6745 * (n - middle) / deviation
        if abs(score) >= OUTLIER_LIMIT:
            odd[index] = (
                f"length: the answer has {n} characters, half of all have {middle:g} or fewer"
            )
    return odd
