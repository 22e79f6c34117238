"""Several models on the same test rows: each one's score, and the paired differences from one of them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.config import Recipe
from tunesmith.engine import Sampling
from tunesmith.errors import InterruptedRun
from tunesmith.evaluate.answers import AnswerLog, Prompt, answer_all
from tunesmith.evaluate.comparison import Comparison, Score, compare
from tunesmith.evaluate.heldout import databases, held_out_rows, task_for
from tunesmith.evaluate.plan import usable
from tunesmith.evaluate.tasks import TASKS
from tunesmith.evaluate.tasks.judgement import Example, Judgement, Task
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.devices import device_name
from tunesmith.store import Artifact, Run
from tunesmith.telemetry import progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["Contender", "check_rows", "rank"]


@dataclass(frozen=True)
class Contender:
    """A model that takes part.

    Attributes:
        name: as it is shown.
        sha256: of its content; answers that are kept belong to it.
        load: gives the model in a precision, on the CPU.
        is_parent: whether the others are held against it when it is the best of its kind.
    """

    name: str
    sha256: str
    load: Callable[[torch.dtype], Any]
    is_parent: bool


def check_rows(recipe: Recipe, dataset: Artifact) -> None:
    """Refuse test rows that `rank` would refuse, before any model is made for it.

    Raises:
        DataError: no test rows, or rows that cannot be judged.
    """
    config, found = recipe.evaluate, databases(dataset)
    task_config = task_for(config, found)
    examples, _ = held_out_rows(dataset, config.max_rows, recipe.seed)
    with TASKS.load(task_config.kind)(task_config, found) as task:
        usable(task, examples)


def rank(
    recipe: Recipe,
    at: Run,
    dataset: Artifact,
    contenders: Sequence[Contender],
    renderer: ChatRenderer,
    *,
    precision: str,
) -> Artifact:
    """Let every model answer the test rows once, greedily, and compare each with the best parent.

    One model is in memory at a time. An unfinished ranking in `at` goes on with the answers it has.

    Args:
        contenders: at least one of them a parent.
        renderer: what all of them are asked with.
        precision: "bf16" or "fp32".

    Raises:
        DataError: no test rows, or rows that cannot be judged or answered.
        InterruptedRun: the user stopped it; the answers so far are kept.
    """
    config, seed = recipe.evaluate, recipe.seed
    found = databases(dataset)
    task_config = task_for(config, found)
    examples, _ = held_out_rows(dataset, config.max_rows, seed)
    with TASKS.load(task_config.kind)(task_config, found) as task, _resumable():
        examples, _, warnings = usable(task, examples)
        prompts = [Prompt(e.line, renderer.prompt_ids(e.prompt)) for e in examples]
        sampling = Sampling(max_tokens=config.max_answer_tokens, temperature=0.0, seed=seed)
        judged: list[list[Judgement]] = []
        for number, contender in enumerate(contenders):
            log = AnswerLog(at.path(f"scratch/answers-{number}.jsonl"))
            _answer(contender, prompts, sampling, log, renderer, precision, config.batch_rows)
            judged.append(_judged(task, examples, log, contender.name))
            cut = sum(log.answers[example.line].cut for example in examples)
            if cut:
                warnings.append(
                    f"{cut} of {len(examples)} answers of {contender.name} were cut off at "
                    f"{sampling.max_tokens} tokens"
                )
    best, models = _standings(recipe, contenders, judged)
    at.write_text("rows.jsonl", "".join(_lines(examples, judged)))
    return at.finish(
        {
            "task": task_config.kind,
            "n": len(examples),
            "confidence": config.confidence,
            "precision": precision,
            "best_parent": best.name,
            "models": models,
            "warnings": warnings,
            "renderer_fingerprint": renderer.fingerprint,
        }
    )


def _judged(task: Task, examples: Sequence[Example], log: AnswerLog, name: str) -> list[Judgement]:
    found = []
    with progress(f"judge {name}", len(examples), unit="rows") as bar:
        for example in examples:
            found.append(task.judge(example, log.answers[example.line].text))
            bar.advance()
    return found


def _standings(
    recipe: Recipe, contenders: Sequence[Contender], judged: Sequence[Sequence[Judgement]]
) -> tuple[Contender, list[dict[str, Any]]]:
    """The best parent (the first of equals), and each model's score and difference from it."""
    config = recipe.evaluate
    right = [[judgement.correct for judgement in answers] for answers in judged]
    parents = [n for n, contender in enumerate(contenders) if contender.is_parent]
    best = max(parents, key=lambda n: sum(right[n]))
    models = []
    for number, contender in enumerate(contenders):
        comparison = compare(
            right[best],
            right[number],
            confidence=config.confidence,
            resamples=config.resamples,
            seed=recipe.seed,
        )
        models.append(
            {
                "name": contender.name,
                "sha256": contender.sha256,
                "is_parent": contender.is_parent,
                **_score(comparison.tuned),
                "against_best": None if number == best else _gain(comparison),
            }
        )
    return contenders[best], models


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRun(
            "the comparison was stopped before its end",
            why="Ctrl-C was pressed; the merge is sealed, and the answers so far are kept",
            fix="give the same command again: it goes on where it stopped",
        ) from error


def _answer(
    contender: Contender,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    log: AnswerLog,
    renderer: ChatRenderer,
    precision: str,
    batch_rows: int,
) -> None:
    """A model's answers; one that has given all of them already is not loaded."""
    import torch

    from tunesmith.engine.backends.transformers import TransformersBackend

    if all(prompt.line in log.answers for prompt in prompts):
        return
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    model = contender.load(dtype).to(device_name())
    backend = TransformersBackend(
        model, renderer.tokenizer, stop_ids=renderer.stop_ids, batch_rows=batch_rows
    )
    with backend:
        answer_all(backend, prompts, sampling, log, title=contender.name, chunk_rows=4 * batch_rows)
    del model, backend
    gc.collect()


def _score(score: Score) -> dict[str, Any]:
    return {
        "correct": score.correct,
        "accuracy": score.accuracy,
        "interval": list(score.interval),
    }


def _gain(comparison: Comparison) -> dict[str, Any]:
    """A model against the best parent: its points more, their interval, and the exact test."""
    return {
        "points": comparison.gain.points,
        "interval_points": list(comparison.gain.interval_points),
        "method": comparison.gain.method,
        "won": comparison.pairs.won,
        "lost": comparison.pairs.lost,
        "p_value": comparison.p_value,
        "verdict": comparison.verdict,
    }


def _lines(examples: Sequence[Example], judged: Sequence[Sequence[Judgement]]) -> Iterator[str]:
    for number, example in enumerate(examples):
        found = [asdict(answers[number]) for answers in judged]
        row = {"line": example.line, "reference": example.reference, "models": found}
        yield json.dumps(row, ensure_ascii=True) + "\n"
