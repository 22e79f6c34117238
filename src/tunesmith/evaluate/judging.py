"""The task alone: the prompts of a recipe's held-out rows, and judging answers from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tunesmith.config import Recipe
from tunesmith.engine import Sampling
from tunesmith.evaluate.answers import Prompt
from tunesmith.evaluate.comparison import Comparison, Score, compare
from tunesmith.evaluate.plan import EvaluatePlan, plan_evaluation, prepare
from tunesmith.evaluate.tasks.judgement import Example
from tunesmith.store import Artifact

__all__ = ["Judge", "judging"]


@dataclass(frozen=True)
class Judge:
    """Judges whole sets of answers to the same rows.

    Attributes:
        prompts: one a row, by the row's line in `test.jsonl`.
        sampling: how the evaluation asks.
        notes: what a reader must know about the rows.
    """

    plan: EvaluatePlan
    examples: Sequence[Example]
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    notes: tuple[str, ...]

    @property
    def confidence(self) -> float:
        """Of all intervals."""
        return self.plan.confidence

    def correct(self, answers: Mapping[int, str]) -> list[bool]:
        """Whether each row's answer is right, in the rows' order.

        Args:
            answers: line -> the answer's text, for every row.
        """
        return [self.plan.task.judge(e, answers[e.line]).correct for e in self.examples]

    def score(self, correct: Sequence[bool]) -> Score:
        """Accuracy with its interval."""
        return Score.of(sum(correct), len(correct), self.plan.confidence)

    def compare(self, first: Sequence[bool], second: Sequence[bool]) -> Comparison:
        """Second against first, row by row."""
        plan = self.plan
        return compare(
            first, second, confidence=plan.confidence, resamples=plan.resamples, seed=plan.seed
        )


@contextmanager
def judging(recipe: Recipe, dataset: Artifact, trained: Artifact) -> Iterator[Judge]:
    """The recipe's task on the dataset's held-out rows, ready to judge.

    Raises:
        ConfigError, DataError, ModelError: as `evaluate.run`.
    """
    plan = plan_evaluation(recipe, dataset, trained)
    with plan.task:
        examples, _, notes = prepare(plan)
        prompts = tuple(Prompt(e.line, plan.renderer.prompt_ids(e.prompt)) for e in examples)
        yield Judge(plan, examples, prompts, plan.sampling, tuple(notes))
