"""A recipe, a dataset and a run resolved for this machine: all that an evaluation needs, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.config import ExactMatchTask, Recipe, SqlExecutionTask, refuse_unread
from tunesmith.engine import Sampling
from tunesmith.errors import DataError, listed
from tunesmith.evaluate.comparison import smallest_telling_n
from tunesmith.evaluate.heldout import databases, held_out_rows, task_for
from tunesmith.evaluate.tasks import TASKS
from tunesmith.evaluate.tasks.judgement import Example, Task, Unusable
from tunesmith.models.adapters import check_base
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.devices import device_name
from tunesmith.models.load import BaseModel, load_tokenizer, resolve_base
from tunesmith.store import Artifact

__all__ = ["EvaluatePlan", "plan_evaluation", "prepare", "row_warnings", "usable"]

_MAX_UNUSABLE = 0.1
"""Share of rows with a failing reference over which the set is refused."""
_FEW_ROWS = 50


@dataclass(frozen=True)
class EvaluatePlan:
    """Everything an evaluation reads, checked before anything is generated."""

    base: BaseModel
    renderer: ChatRenderer
    tokenizer: Any
    dataset: Artifact
    trained: Artifact
    task_config: SqlExecutionTask | ExactMatchTask
    task: Task
    examples: list[Example]
    test_rows: int
    sampling: Sampling
    batch_rows: int
    resamples: int
    confidence: float
    show_rows: int
    seed: int
    precision: str
    device: str


def plan_evaluation(recipe: Recipe, dataset: Artifact, trained: Artifact) -> EvaluatePlan:
    """Resolve and check everything; nothing is generated and no model is loaded.

    Raises:
        ConfigError: a key that is set would have no effect.
        DataError: the dataset has no test rows, or rows without a reference.
        ModelError: the base or its chat renderer is not the one that was trained with.
    """
    config, seed = recipe.evaluate, recipe.seed
    found = databases(dataset)
    task_config = task_for(config, found)
    base = resolve_base(recipe.model)
    check_base(trained, base)
    tokenizer = load_tokenizer(base)
    renderer = ChatRenderer(tokenizer)
    renderer.check_same(trained)
    examples, test_rows = held_out_rows(dataset, config.max_rows, seed)
    plan = EvaluatePlan(
        base=base,
        renderer=renderer,
        tokenizer=tokenizer,
        dataset=dataset,
        trained=trained,
        task_config=task_config,
        task=TASKS.load(task_config.kind)(task_config, found),
        examples=examples,
        test_rows=test_rows,
        sampling=Sampling(max_tokens=config.max_answer_tokens, temperature=0.0, seed=seed),
        batch_rows=config.batch_rows,
        resamples=config.resamples,
        confidence=config.confidence,
        show_rows=config.show_rows,
        seed=seed,
        precision=trained.facts["precision"],
        device=device_name(),
    )
    refuse_unread(recipe, "evaluate")
    return plan


def prepare(plan: EvaluatePlan) -> tuple[list[Example], list[Unusable], list[str]]:
    """The rows that can be judged, those that cannot, and warnings.

    Raises:
        DataError: more than a tenth of the references fail.
    """
    return usable(plan.task, plan.examples)


def usable(task: Task, examples: list[Example]) -> tuple[list[Example], list[Unusable], list[str]]:
    """The rows that a task can judge, those that it cannot, and warnings.

    Raises:
        DataError: more than a tenth of the references fail.
    """
    unusable, warnings = task.prepare(examples)
    if not unusable:
        return examples, [], warnings
    lines = [f"test.jsonl:{row.line}: {row.why}" for row in unusable]
    count = f"{len(unusable)} of {len(examples)} references cannot be judged"
    if len(unusable) > _MAX_UNUSABLE * len(examples):
        raise DataError(
            f"{count}:\n{listed(lines)}",
            why="no answer could be right there, so the figures would mean little",
            fix="correct these rows, or drop them with data.require",
        )
    out = {row.line for row in unusable}
    warnings.append(f"{count} and are left out, the first: {lines[0]}")
    return [e for e in examples if e.line not in out], unusable, warnings


def row_warnings(plan: EvaluatePlan, examples: Sequence[Example]) -> list[str]:
    """What a reader must know about the rows: too few, or with references that are too long."""
    warnings = []
    n, fewest = len(examples), smallest_telling_n(plan.confidence)
    if n < fewest:
        warnings.append(
            f"{n} test rows cannot show any difference at this confidence: at least {fewest} are "
            "needed even if all of them are won"
        )
    elif n < _FEW_ROWS:
        warnings.append(f"only {n} test rows: the intervals will be wide")
    limit = plan.sampling.max_tokens
    ends = 1  # the stop token is part of the answer
    long = sum(
        len(plan.tokenizer.encode(example.reference, add_special_tokens=False)) + ends > limit
        for example in examples
    )
    if long:
        warnings.append(
            f"{long} of {n} references are longer than evaluate.max_answer_tokens ({limit}): "
            "such an answer is cut off before it can be right"
        )
    return warnings
