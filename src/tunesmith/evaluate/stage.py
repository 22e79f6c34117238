"""The evaluate stage: base and tuned model answer the held-out rows, and are compared."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tunesmith.config import Recipe
from tunesmith.errors import InterruptedRun
from tunesmith.evaluate import provenance
from tunesmith.evaluate.answers import AnswerLog, Prompt, answer_all
from tunesmith.evaluate.comparison import Comparison, compare
from tunesmith.evaluate.plan import EvaluatePlan, plan_evaluation, prepare, row_warnings
from tunesmith.evaluate.report import render_html
from tunesmith.evaluate.result import EvaluateResult, RowResult, facts_of, open_result
from tunesmith.evaluate.tasks.judgement import Example, Unusable
from tunesmith.models.adapters import has_adapter, load_trained
from tunesmith.models.load import load_model
from tunesmith.store import Artifact, Run
from tunesmith.telemetry import console, progress

if TYPE_CHECKING:
    import torch

__all__ = ["run"]

_SIDES = ("base", "tuned")
_CHUNK_BATCHES = 4
"""Batches between two writes of answers: an interruption loses at most these. At the end of each
chunk the batch runs empty, so small chunks cost time."""
_FEW_VALID = 0.1
"""Share of the base model's answers that can be used, under which a note says so."""


def run(recipe: Recipe, at: Run, dataset: Artifact, trained: Artifact) -> EvaluateResult:
    """Compare base and tuned model on the dataset's test rows, and seal the report.

    An unfinished evaluation in `at` goes on with the answers that it has.

    Raises:
        DataError: no test rows, or rows that cannot be judged or answered.
        ModelError: the base or its chat renderer is not the one that was trained with.
        InterruptedRun: the user stopped it; the answers so far are kept.
        TunesmithError: a parent is damaged, the engine failed, or the disk refuses.
    """
    plan = plan_evaluation(recipe, dataset, trained)
    with plan.task, _resumable():
        examples, left_out, warnings = prepare(plan)
        warnings += row_warnings(plan, examples)
        for warning in warnings:
            console().print(f"note: {warning}", markup=False)
        logs = _answered(plan, at, examples)
        rows = _judged(plan, examples, logs)
    return _seal(plan, at, rows, left_out, warnings)


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRun(
            "the evaluation was stopped before its end",
            why="Ctrl-C was pressed; the answers so far are kept",
            fix=provenance.resume_command(),
        ) from error


def _answered(plan: EvaluatePlan, at: Run, examples: Sequence[Example]) -> dict[str, AnswerLog]:
    """Both models' answers to all examples. A model that has answered already is not loaded."""
    logs = {side: AnswerLog(at.path(f"scratch/answers-{side}.jsonl")) for side in _SIDES}
    if at.resumed:
        have = ", ".join(f"{len(logs[side].answers)} of the {side} model" for side in _SIDES)
        console().print(f"going on: answers kept: {have}", markup=False)
    prompts = [Prompt(e.line, plan.renderer.prompt_ids(e.prompt)) for e in examples]
    waiting = [side for side in _SIDES if any(p.line not in logs[side].answers for p in prompts)]
    if has_adapter(plan.trained):
        _answer_with_adapter(plan, prompts, logs, waiting)
    else:
        _answer_one_by_one(plan, prompts, logs, waiting)
    return logs


def _answer_with_adapter(
    plan: EvaluatePlan,
    prompts: Sequence[Prompt],
    logs: dict[str, AnswerLog],
    waiting: Sequence[str],
) -> None:
    """One model in memory; the base is the same model with its adapter off."""
    model: Any = _loaded(plan, plan.trained) if waiting else None
    for side in waiting:
        with model.disable_adapter() if side == "base" else nullcontext():
            _answer_side(plan, model, prompts, logs[side], f"{side} answers")


def _answer_one_by_one(
    plan: EvaluatePlan,
    prompts: Sequence[Prompt],
    logs: dict[str, AnswerLog],
    waiting: Sequence[str],
) -> None:
    """Base and fully trained model apart, one in memory at a time."""
    for side in waiting:
        model = _loaded(plan, plan.trained if side == "tuned" else None)
        _answer_side(plan, model, prompts, logs[side], f"{side} answers")
        del model
        gc.collect()


def _loaded(plan: EvaluatePlan, trained: Artifact | None) -> Any:
    dtype = _dtype(plan.precision)
    model = (
        load_model(plan.base, dtype) if trained is None else load_trained(trained, plan.base, dtype)
    )
    return model.to(plan.device)


def _dtype(precision: str) -> torch.dtype:
    import torch

    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def _answer_side(
    plan: EvaluatePlan, model: Any, prompts: Sequence[Prompt], log: AnswerLog, title: str
) -> None:
    from tunesmith.engine.backends.transformers import TransformersBackend

    backend = TransformersBackend(
        model, plan.tokenizer, stop_ids=plan.renderer.stop_ids, batch_rows=plan.batch_rows
    )
    with backend:
        answer_all(
            backend,
            prompts,
            plan.sampling,
            log,
            title=title,
            chunk_rows=_CHUNK_BATCHES * plan.batch_rows,
        )


def _judged(
    plan: EvaluatePlan, examples: Sequence[Example], logs: dict[str, AnswerLog]
) -> list[RowResult]:
    rows = []
    with progress("judge", len(examples), unit="rows") as bar:
        for example in examples:
            base, tuned = (logs[side].answers[example.line] for side in _SIDES)
            rows.append(
                RowResult(
                    example=example,
                    reference_shown=plan.task.reference_shown(example),
                    base_answer=base,
                    tuned_answer=tuned,
                    base=plan.task.judge(example, base.text),
                    tuned=plan.task.judge(example, tuned.text),
                )
            )
            bar.advance()
    return rows


def _seal(
    plan: EvaluatePlan,
    at: Run,
    rows: Sequence[RowResult],
    left_out: Sequence[Unusable],
    warnings: list[str],
) -> EvaluateResult:
    comparison = compare(
        [row.base.correct for row in rows],
        [row.tuned.correct for row in rows],
        confidence=plan.confidence,
        resamples=plan.resamples,
        seed=plan.seed,
    )
    warnings += _answer_warnings(plan, rows)
    report = _report(plan, comparison, rows, left_out, warnings)
    lines = [row.as_dict() for row in rows]
    at.write_json("report.json", report)
    at.write_text("rows.jsonl", "".join(map(_json_line, lines)))
    at.write_text("report.html", render_html(report, lines, plan.show_rows))
    return open_result(at.finish(facts_of(report, comparison)))


def _answer_warnings(plan: EvaluatePlan, rows: Sequence[RowResult]) -> list[str]:
    """What a reader must know about the answers: cut off, or without a usable form at all."""
    warnings, n = [], len(rows)
    cut = sum(row.tuned_answer.cut for row in rows)
    if cut:
        warnings.append(
            f"{cut} of {n} answers of the tuned model were cut off at "
            f"{plan.sampling.max_tokens} tokens: raise evaluate.max_answer_tokens if they are not loops"
        )
    valid = sum(row.base.valid is True for row in rows)
    if rows[0].base.valid is not None and valid < _FEW_VALID * n:
        warnings.append(
            f"only {valid} of {n} answers of the base model are queries that run: part of the gain "
            "is that the tuned model learned the form of an answer"
        )
    return warnings


def _json_line(value: dict[str, Any]) -> str:
    """One line whoever reads it: JSON allows characters in a string that some take for line ends."""
    text = json.dumps(value, ensure_ascii=False)
    for end in "\x85\u2028\u2029":
        text = text.replace(end, f"\\u{ord(end):04x}")
    return f"{text}\n"


def _report(
    plan: EvaluatePlan,
    comparison: Comparison,
    rows: Sequence[RowResult],
    left_out: Sequence[Unusable],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Everything in `report.json`."""
    answers = {"base": [r.base_answer for r in rows], "tuned": [r.tuned_answer for r in rows]}
    judged = {"base": [r.base for r in rows], "tuned": [r.tuned for r in rows]}
    has_validity = rows[0].base.valid is not None
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": {**plan.task_config.model_dump(mode="json"), "how": plan.task.how},
        "comparison": comparison.as_dict(),
        "valid": {s: sum(j.valid is True for j in judged[s]) for s in _SIDES}
        if has_validity
        else None,
        "warnings": list(warnings),
        "test_rows": plan.test_rows,
        "left_out": [vars(row) for row in left_out],
        "max_answer_tokens": plan.sampling.max_tokens,
        "batch_rows": plan.batch_rows,
        "cut_answers": {s: sum(a.cut for a in answers[s]) for s in _SIDES},
        "answer_tokens": {s: sum(a.tokens for a in answers[s]) for s in _SIDES},
        "seconds": {s: round(sum(a.seconds for a in answers[s]), 3) for s in _SIDES},
        "seed": plan.seed,
        "dataset": {
            "name": plan.dataset.facts.get("name", plan.dataset.dir.name),
            "sha256": plan.dataset.sha256,
        },
        "base_model": {"name": plan.base.name, "sha256": plan.base.sha256},
        "trained": {"method": _method(plan.trained), "sha256": plan.trained.sha256},
        "precision": plan.precision,
        "renderer_fingerprint": plan.renderer.fingerprint,
        "hardware": provenance.hardware(plan.device),
        "versions": provenance.versions(),
        "command": provenance.command(),
    }


def _method(trained: Artifact) -> str:
    """How the run was trained, in a few words: "lora, rank 16"."""
    method = trained.facts["method"]
    rank = f", rank {method['rank']}" if "rank" in method else ""
    return f"{method['kind']}{rank}"
