"""The train stage: dataset and base model to a sealed run."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.config import Recipe
from tunesmith.store import Artifact, Run, storage_errors
from tunesmith.telemetry import EventLog, Recorder, console, progress
from tunesmith.train import checkpoint, curve
from tunesmith.train.loop import fit
from tunesmith.train.methods import save_trained
from tunesmith.train.plan import TrainPlan, plan_training
from tunesmith.train.session import Session, build

__all__ = ["TrainResult", "run"]

CHECKPOINTS = "scratch/checkpoints"
CHOICE = "scratch/choice.json"


@dataclass(frozen=True)
class TrainResult:
    """What a training run was and gave; the same as its manifest's facts.

    Attributes:
        artifact: the sealed run.
        steps: optimizer steps.
        train_tokens: row tokens seen, without padding, over all epochs.
        tokens_per_second: `train_tokens` by the time spent in steps.
        validation_loss: nats a trained token, after the last step.
        first_validation_loss: the same before the first step.
    """

    artifact: Artifact
    steps: int
    train_tokens: int
    tokens_per_second: float
    peak_rss_bytes: int
    validation_loss: float
    first_validation_loss: float


def run(recipe: Recipe, at: Run, dataset: Artifact) -> TrainResult:
    """Train, and seal the adapter (or the weights) with its curves and facts.

    An unfinished run in `at` goes on from its newest whole checkpoint.

    Raises:
        TunesmithError: see `plan_training` and `fit`; nothing is sealed then.
    """
    choice = at.dir / CHOICE
    chosen = json.loads(choice.read_text()) if at.resumed and choice.is_file() else None
    plan = plan_training(recipe, dataset, chosen)
    # Measured anew, a resumed run might choose otherwise and no longer equal the straight one.
    at.write_json(CHOICE, {"precision": plan.precision, "threads": plan.threads})
    out = console()
    _say_plan(plan, out.print)
    session = build(plan)
    found = checkpoint.latest(at.dir / CHECKPOINTS) if at.resumed else None
    if found:
        session.restore(found)
        out.print(f"going on after step {session.step} of {plan.total_steps}")
    events = at.path("events.jsonl")
    with storage_errors(events):
        recorder = Recorder(EventLog(events), at.path("tensorboard"), first_step=session.step)
        with recorder:
            recorder.note(
                "attempt", from_step=session.step, plan=_plan_facts(plan), fast=session.fast_lines
            )
            with progress("train", plan.total_steps, start=session.step, unit="steps") as bar:
                fit(session, at.path(CHECKPOINTS), recorder, bar)
    return _seal(session, at, dataset)


def _say_plan(plan: TrainPlan, say: Any) -> None:
    tokens = sum(len(row.tokens) for row in plan.rows.rows)
    learned = sum(sum(row.trained) for row in plan.rows.rows)
    say(
        f"{plan.base.name}, {plan.method.kind}, {plan.precision} on {plan.device} with {plan.threads} threads: "
        f"{len(plan.rows.rows)} rows, {tokens} tokens ({learned} trained), {plan.total_steps} steps"
    )
    if plan.precision_choice:
        choice = plan.precision_choice
        say(f"measured here: bf16 {choice.bf16_gflops:.0f}, fp32 {choice.fp32_gflops:.0f} GFLOP/s")
    for what, lines in (("dropped", plan.rows.dropped_lines), ("cut", plan.rows.cut_lines)):
        if lines:
            say(
                f"{what} {len(lines)} rows that were too long: lines {', '.join(map(str, lines[:10]))}"
            )


def _plan_facts(plan: TrainPlan) -> dict[str, Any]:
    return {
        "base": {"name": plan.base.name, "sha256": plan.base.sha256},
        "objective": plan.objective,
        "method": plan.method.model_dump(mode="json"),
        "optimizer": plan.optimizer.model_dump(mode="json"),
        "total_steps": plan.total_steps,
        "batch_tokens": plan.batch_tokens,
        "micro_batch_tokens": plan.micro_batch_tokens,
        "precision": plan.precision,
        "precision_measured": asdict(plan.precision_choice) if plan.precision_choice else None,
        "device": plan.device,
        "threads": plan.threads,
        "seed": plan.seed,
        "rows": len(plan.rows.rows),
        "dropped_lines": list(plan.rows.dropped_lines),
        "cut_lines": list(plan.rows.cut_lines),
    } | plan.renderer.as_facts()


def _seal(session: Session, at: Run, dataset: Artifact) -> TrainResult:
    plan = session.plan
    folder = "adapter" if plan.method.kind != "full" else "model"
    target = at.path(f"{folder}/config.json").parent
    train, validation = curve.read_curve(at.path("events.jsonl"))
    with storage_errors(target):
        save_trained(session.model, plan.tokenizer, target, base_name=plan.base.name)
        with at.writing("loss.png") as picture:
            curve.draw_png(train, validation, picture, f"{plan.base.name}, {plan.method.kind}")
    speed = session.tokens / session.seconds
    peak = peak_rss_bytes()
    artifact = at.finish(
        _plan_facts(plan)
        | {
            "steps": session.step,
            "epochs": _epochs_done(plan),
            "train_tokens": session.tokens,
            "trained_tokens": session.trained_tokens,
            "tokens_per_second": speed,
            "seconds": session.seconds,
            "peak_rss_bytes": peak,
            "first_validation_loss": session.validation[0][1],
            "validation_loss": session.validation[-1][1],
            "fast": session.fast_lines,
            "dataset": dataset.facts.get("name", dataset.dir.name),
        }
    )
    console().print(curve.draw_terminal(train, validation))
    return TrainResult(
        artifact=artifact,
        steps=session.step,
        train_tokens=session.tokens,
        tokens_per_second=speed,
        peak_rss_bytes=peak,
        validation_loss=session.validation[-1][1],
        first_validation_loss=session.validation[0][1],
    )


def _epochs_done(plan: TrainPlan) -> float:
    epoch, first = plan.epoch_of(plan.total_steps - 1)
    return epoch + (plan.total_steps - first) / plan.steps_by_epoch[epoch]


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
