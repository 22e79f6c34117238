"""What an evaluation found: the numbers, and where the report lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.evaluate.comparison import Comparison, Score
from tunesmith.evaluate.tasks.judgement import Example, Judgement
from tunesmith.store import Artifact

__all__ = ["Answer", "EvaluateResult", "Outcome", "RowResult", "facts_of", "open_result"]

Outcome = Literal["won", "lost", "both right", "still wrong"]
_OUTCOMES: Mapping[tuple[bool, bool], Outcome] = {
    (False, True): "won",
    (True, False): "lost",
    (True, True): "both right",
    (False, False): "still wrong",
}


@dataclass(frozen=True)
class Answer:
    """What a model answered to one row.

    Attributes:
        tokens: generated, the stop token included.
        cut: the answer reached the longest length before it ended.
    """

    text: str
    tokens: int
    cut: bool
    seconds: float


@dataclass(frozen=True)
class RowResult:
    """One held-out row with both answers and what was found about them."""

    example: Example
    reference_shown: str
    base_answer: Answer
    tuned_answer: Answer
    base: Judgement
    tuned: Judgement

    @property
    def outcome(self) -> Outcome:
        """What the tuned model changed on this row."""
        return _OUTCOMES[self.base.correct, self.tuned.correct]

    def as_dict(self) -> dict[str, Any]:
        """The row as a line of `rows.jsonl`."""
        return {
            "line": self.example.line,
            "outcome": self.outcome,
            "prompt": [dict(message) for message in self.example.prompt],
            "reference": self.example.reference,
            "reference_result": self.reference_shown,
            "base": _side(self.base_answer, self.base),
            "tuned": _side(self.tuned_answer, self.tuned),
            "meta": dict(self.example.meta),
        }


@dataclass(frozen=True)
class EvaluateResult:
    """A sealed evaluation.

    Attributes:
        artifact: the sealed directory.
        comparison: accuracies, gain, test and verdict.
        warnings: what a reader must know before trusting the figures.
        report: everything in `report.json`.
    """

    artifact: Artifact
    comparison: Comparison
    warnings: tuple[str, ...]
    report: Mapping[str, Any]

    @property
    def report_path(self) -> Path:
        """The report for readers."""
        return self.artifact.dir / "report.html"


def open_result(artifact: Artifact) -> EvaluateResult:
    """The result of a sealed evaluation, from its `report.json`.

    Raises:
        ArtifactError: the file is not what was sealed.
    """
    report = artifact.read_json("report.json")
    return EvaluateResult(
        artifact=artifact,
        comparison=Comparison.from_dict(report["comparison"]),
        warnings=tuple(report["warnings"]),
        report=report,
    )


def facts_of(report: Mapping[str, Any], comparison: Comparison) -> dict[str, Any]:
    """The part of the report that the artifact's manifest carries."""
    gain, pairs = comparison.gain, comparison.pairs
    return {
        "task": report["task"]["kind"],
        "n": pairs.n,
        "base": _score(comparison.base),
        "tuned": _score(comparison.tuned),
        "gain": {
            "points": gain.points,
            "interval_points": list(gain.interval_points),
            "confidence": gain.confidence,
            "method": gain.method,
        },
        "mcnemar": {"won": pairs.won, "lost": pairs.lost, "p_value": comparison.p_value},
        "verdict": comparison.verdict,
        "detectable_points": comparison.detectable_points,
        "left_out": len(report["left_out"]),
        "warnings": list(report["warnings"]),
        "renderer_fingerprint": report["renderer_fingerprint"],
    }


def _score(score: Score) -> dict[str, Any]:
    return {"correct": score.correct, "accuracy": score.accuracy, "interval": list(score.interval)}


def _side(answer: Answer, judgement: Judgement) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "tokens": answer.tokens,
        "cut": answer.cut,
        "correct": judgement.correct,
        "valid": judgement.valid,
        "note": judgement.note,
        "result": judgement.shown,
    }
