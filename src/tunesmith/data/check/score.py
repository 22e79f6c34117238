"""A dataset's score, from 0 to 100, with every point that it lost accounted for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tunesmith.data.check.finding import SEVERITIES, Finding, Severity

__all__ = ["Reason", "Score", "Tally", "has_line", "score"]

Colour = Literal["green", "yellow", "red"]
_RATE: dict[str, float] = {"error": 400.0, "warning": 100.0, "note": 0.0}
_MOST: dict[str, float] = {"error": 60.0, "warning": 25.0, "note": 0.0}
_WHOLE: dict[str, float] = {"error": 40.0, "warning": 10.0, "note": 0.0}
_RED_SCORE = 50
_GREEN_SCORE = 90
_RED_ERROR_SHARE = 0.1
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Reason:
    """Why points were lost: one check at one severity.

    Attributes:
        rows: rows that have such findings; 0 when they are about the whole dataset.
        findings: how many there are.
        share: of all rows; 1 when they are about the whole dataset.
        points: how many were lost.
    """

    check: str
    severity: Severity
    rows: int
    findings: int
    share: float
    points: float


@dataclass(frozen=True, slots=True)
class Score:
    """Points, colour, and the reasons, most points first."""

    points: int
    colour: Colour
    n_rows: int
    reasons: tuple[Reason, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass
class Tally:
    """Counts findings as they pass, and keeps the first of each check; never all of them.

    Findings of one row must come one after the other, as `Checker` gives them, so that a row counts
    once.
    """

    n_kept: int = _SHOWN
    rows: dict[tuple[str, Severity], int] = field(default_factory=dict)
    whole: dict[tuple[str, Severity], int] = field(default_factory=dict)
    findings: dict[tuple[str, Severity], int] = field(default_factory=dict)
    first: dict[tuple[str, Severity], list[Finding]] = field(default_factory=dict)
    _last: dict[tuple[str, Severity], str] = field(default_factory=dict)

    def add(self, found: Finding) -> None:
        """Count one finding."""
        key = (found.check, found.severity)
        self.findings[key] = self.findings.get(key, 0) + 1
        kept = self.first.setdefault(key, [])
        if len(kept) < self.n_kept:
            kept.append(found)
        if not has_line(found.where):
            self.whole[key] = self.whole.get(key, 0) + 1
        elif self._last.get(key) != found.where:
            self._last[key] = found.where
            self.rows[key] = self.rows.get(key, 0) + 1

    def count(self, severity: Severity) -> int:
        """Findings of one severity."""
        return sum(n for (_, kind), n in self.findings.items() if kind == severity)

    def score(self, n_rows: int, n_usable: int | None = None) -> Score:
        """The score of a dataset of `n_rows` rows, those that cannot be read included.

        Args:
            n_usable: rows that can be read; where there are none, the worst check takes all points.

        A check takes from each row that it concerns its share of the dataset: an error 400 points
        times that share and at most 60, a warning 100 and at most 25, a note nothing. A finding about
        the whole dataset takes 40 as an error, 10 as a warning. Red is below 50, or an error about the
        whole dataset, or errors in a tenth of the rows; green is 90 and more without any error or
        warning about the whole dataset.
        """
        reasons = [self._reason(key, n_rows) for key in sorted(self.findings)]
        ordered = sorted(reasons, key=lambda r: (-r.points, SEVERITIES.index(r.severity), r.check))
        if n_usable == 0 and ordered:
            others = sum(reason.points for reason in ordered[1:])
            worst = max(ordered[0].points, 100 - others)
            ordered[0] = replace(ordered[0], points=round(worst, 2))
        points = max(0, round(100 - sum(reason.points for reason in ordered)))
        return Score(points, _colour(points, ordered), n_rows, tuple(ordered))

    def _reason(self, key: tuple[str, Severity], n_rows: int) -> Reason:
        check, severity = key
        n_found, n_whole = self.rows.get(key, 0), self.whole.get(key, 0)
        share = min(1.0, n_found / n_rows) if n_rows else 1.0
        lost = min(_MOST[severity], _RATE[severity] * share) if n_found else 0.0
        lost += _WHOLE[severity] if n_whole else 0.0
        return Reason(
            check,
            severity,
            n_found,
            self.findings[key],
            round(1.0 if n_whole else share, 6),
            round(lost, 2),
        )


def score(findings: Iterable[Finding], n_rows: int) -> Score:
    """The score of a dataset from its findings; see `Tally.score` for the formula."""
    tally = Tally()
    for found in findings:
        tally.add(found)
    return tally.score(n_rows)


def has_line(where: str) -> bool:
    """Whether a place is a row, and not a whole file or dataset."""
    return where.rpartition(":")[2].isdecimal()


def _colour(points: int, reasons: list[Reason]) -> Colour:
    errors = [reason for reason in reasons if reason.severity == "error"]
    too_many = sum(reason.share for reason in errors) >= _RED_ERROR_SHARE
    if points < _RED_SCORE or too_many:
        return "red"
    has_whole = any(r.severity == "warning" and r.findings and not r.rows for r in reasons)
    return "green" if points >= _GREEN_SCORE and not errors and not has_whole else "yellow"
