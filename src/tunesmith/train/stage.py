"""The train stage: dataset and base model to a sealed run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.config import Recipe
from tunesmith.errors import InterruptedRun
from tunesmith.models.memory import Recompute
from tunesmith.store import MANIFEST, Artifact, Run, reach, storage_errors
from tunesmith.telemetry import EventLog, Recorder, console, peak_rss_bytes, progress
from tunesmith.train import checkpoint, curve, pace, trunk_cache
from tunesmith.train.fitting import fitted_session
from tunesmith.train.loop import GO_ON, fit
from tunesmith.train.methods import save_trained
from tunesmith.train.plan import TrainPlan, plan_training
from tunesmith.train.quantised import quantised_base
from tunesmith.train.session import Session
from tunesmith.train.stopping import Check, Stopped, stop_signal

__all__ = ["TrainResult", "run"]

CHECKPOINTS = "scratch/checkpoints"
CHOICE = "scratch/choice.json"
REFERENCES = "scratch/references.safetensors"
TRUNK = "scratch/trunk/states"


@dataclass(frozen=True)
class TrainResult:
    """What a training run was and gave; the same as its manifest's facts.

    Attributes:
        artifact: the sealed run.
        steps: optimizer steps.
        train_tokens: row tokens seen, without padding, over all epochs.
        tokens_per_second: `train_tokens` by the time spent in steps.
        validation_loss: nats a trained token, of the sealed weights.
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
        InterruptedRun: SIGINT or SIGTERM came; the message says what is kept.
        TunesmithError: see `plan_training` and `fit`; nothing is sealed then.
    """
    with stop_signal() as stop:
        try:
            session = _prepared(recipe, at, dataset, stop.check)
            _train(session, at, stop.check)
            stop.check()
            result = _seal(session, at, dataset, stop.check)
            stop.check()
        except Stopped as stopped:
            what = f"stopped by {stopped}; {_standing(at)}"
            raise InterruptedRun(what, fix=GO_ON) from None
    return result


def _standing(at: Run) -> str:
    """What a stopped run leaves."""
    if (at.dir / MANIFEST).is_file():
        return "the trained run is sealed"
    found = checkpoint.latest(at.dir / CHECKPOINTS)
    if found is None or found.step == 0:
        return "nothing was trained yet"
    return f"step {found.step} is saved"


def _prepared(recipe: Recipe, at: Run, dataset: Artifact, check: Check) -> Session:
    """Everything before the first step, or before the first one of this attempt."""
    choice, out = at.dir / CHOICE, console()
    chosen = json.loads(choice.read_text()) if at.resumed and choice.is_file() else None

    def plan_of(settled: Mapping[str, Any] | None) -> TrainPlan:
        plan = plan_training(recipe, dataset, settled)
        # Measured anew, a resumed run might choose otherwise and no longer equal the straight one.
        at.write_json(CHOICE, plan.resources.as_choice() | _earlier_recompute(settled))
        _say_plan(plan, out.print)
        return plan

    plan = plan_of(chosen)
    check()
    session = _fitted(plan, plan_of, at, _earlier_recompute(chosen).get("recompute"), check)
    check()
    session.prepare(at.path(REFERENCES).parent, check)
    found = checkpoint.latest(at.dir / CHECKPOINTS) if at.resumed else None
    if found:
        session.restore(found)
        _say_standing(session, out.print)
    _keep_trunk(session, at, check)
    return session


def _say_standing(session: Session, say: Any) -> None:
    say(f"going on after step {session.step} of {session.plan.total_steps}")
    now = [line for line in session.changes if line.startswith(f"after step {session.step}: ")]
    if now:
        say(
            "this attempt is not like the one before: its steps equal those of a run that was never "
            "stopped within rounding, not to the last bit:"
        )
        for line in now:
            say(f"  {line}", soft_wrap=True, markup=False)


def _fitted(
    plan: TrainPlan,
    plan_of: Callable[[Mapping[str, Any] | None], TrainPlan],
    at: Run,
    kept: Sequence[int] | None,
    check: Check,
) -> Session:
    """Rehearsed, so that memory runs out now or never."""
    keep, has_begun = Recompute(*kept) if kept else None, checkpoint.is_any(at.dir / CHECKPOINTS)
    say = partial(console().print, soft_wrap=True, markup=False)
    session, rehearsal = fitted_session(plan, plan_of, say, keep, check, has_begun=has_begun)
    recompute = rehearsal.recompute
    at.write_json(
        CHOICE,
        session.plan.resources.as_choice() | {"recompute": [recompute.mlp, recompute.whole]},
    )
    say(rehearsal.line())
    return session


def _train(session: Session, at: Run, check: Check) -> None:
    events = at.path("events.jsonl")
    with storage_errors(events):
        recorder = Recorder(EventLog(events), at.path("tensorboard"), first_step=session.step)
        with recorder:
            recorder.note(
                "attempt", from_step=session.step, plan=_run_facts(session), fast=session.fast_lines
            )
            total = session.plan.total_steps
            with progress("train", total, start=session.step, unit="steps") as bar:
                fit(session, at.path(CHECKPOINTS), recorder, bar, check)


def _earlier_recompute(chosen: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"recompute": chosen["recompute"]} if chosen and "recompute" in chosen else {}


def _keep_trunk(session: Session, at: Run, check: Check) -> None:
    """Compute the frozen layers' output of every row once; its time counts as training time."""
    began = time.perf_counter()
    place = at.path(TRUNK).parent
    request = trunk_cache.request_of(session, place)
    session.trunk, line = trunk_cache.prepare(session.model, request, place, check)
    if line:
        session.seconds += time.perf_counter() - began
        session.fast_lines.append(line)
        console().print(line, soft_wrap=True, markup=False)


def _say_plan(plan: TrainPlan, say: Any) -> None:
    tokens = sum(len(row.tokens) for row in plan.rows.rows)
    learned = sum(sum(row.trained) for row in plan.rows.rows)
    say(
        f"{plan.base.name}, {plan.method.kind}, {plan.precision} on {plan.device} with {plan.threads} threads: "
        f"{len(plan.rows.rows)} rows, {tokens} tokens ({learned} trained), {plan.total_steps} steps"
    )
    for split, encoded in (("train", plan.rows), ("validation", plan.validation)):
        if encoded.origin:
            say(f"tokens of {split}: {encoded.origin}")
    for line in pace.lines(plan):
        say(line)
    for split, found in plan.proved.items():
        say(
            f"proved on all {found.rows} {split} rows: masks decode to the assistant's text and nothing "
            f"else, no answer is cut, the stop token is trained in {found.stopped_rows} of them"
        )
    for line in plan.resources.told:
        say(line if line.startswith("fit: ") else f"measured here: {line}")
    for what, lines in (("dropped", plan.rows.dropped_lines), ("cut", plan.rows.cut_lines)):
        if lines:
            say(
                f"{what} {len(lines)} rows that were too long: lines {', '.join(map(str, lines[:10]))}"
            )


def _run_facts(session: Session) -> dict[str, Any]:
    found = session.rehearsal
    return _plan_facts(session.plan) | {
        "memory": asdict(found) if found else None,
        "conditions": session.conditions,
        "changed_on_resume": session.changes,
    }


def _plan_facts(plan: TrainPlan) -> dict[str, Any]:
    return {
        "base": {"name": plan.base.name, "sha256": plan.base.sha256},
        "objective": plan.objective.kind,
        "objective_settings": plan.objective.model_dump(mode="json"),
        "method": plan.method.model_dump(mode="json"),
        "optimizer": plan.optimizer.model_dump(mode="json"),
        "total_steps": plan.total_steps,
        "batch_tokens": plan.batch_tokens,
        "micro_batch_tokens": plan.micro_batch_tokens,
        "precision": plan.precision,
        "precision_measured": asdict(plan.precision_choice) if plan.precision_choice else None,
        "device": plan.device,
        "threads": plan.threads,
        "measured": dict(plan.resources.measured),
        "optimizer_in_backward": plan.resources.in_backward,
        "seed": plan.seed,
        "rows": len(plan.rows.rows),
        "dropped_lines": list(plan.rows.dropped_lines),
        "cut_lines": list(plan.rows.cut_lines),
        "proved": {split: asdict(found) for split, found in plan.proved.items()},
    } | plan.renderer.as_facts()


def _seal(session: Session, at: Run, dataset: Artifact, check: Check) -> TrainResult:
    plan = session.plan
    kept = _keep_wanted(session, at.dir / CHECKPOINTS)
    if kept["sealed_step"] != session.step:
        console().print(
            f"sealing the weights after step {kept['sealed_step']}, the best validation"
        )
    folder = "adapter" if plan.method.kind != "full" else "model"
    target = at.path(f"{folder}/config.json").parent
    train, validation = curve.read_curve(at.path("events.jsonl"))
    with storage_errors(target):
        reach("trained-begin")
        save_trained(session.model, plan.tokenizer, target, base_name=plan.base.name)
        reach("trained-end")
        with at.writing("loss.png") as picture:
            title = f"{plan.base.name}, {plan.method.kind}"
            curve.draw_png(train, validation, picture, title, session.objective.unit)
    quantised = _quantised(session, kept["validation_loss"], check)
    speed = session.tokens / session.seconds
    peak = peak_rss_bytes()
    artifact = at.finish(
        _run_facts(session)
        | quantised
        | {
            "steps": session.step,
            "epochs": _epochs_done(plan),
            "train_tokens": session.tokens,
            "trained_tokens": session.trained_tokens,
            "tokens_per_second": speed,
            "seconds": session.seconds,
            "energy_joules": session.joules,
            "peak_rss_bytes": peak,
            "first_validation_loss": session.validation[0][1],
            **kept,
            "fast": session.fast_lines,
            "dataset": dataset.facts.get("name", dataset.dir.name),
        }
    )
    console().print(curve.draw_terminal(train, validation, session.objective.unit))
    return TrainResult(
        artifact=artifact,
        steps=session.step,
        train_tokens=session.tokens,
        tokens_per_second=speed,
        peak_rss_bytes=peak,
        validation_loss=kept["validation_loss"],
        first_validation_loss=session.validation[0][1],
    )


def _quantised(session: Session, loss: float, check: Check) -> dict[str, Any]:
    found = quantised_base(session, check)
    if found is None:
        return {}
    original = found["validation_loss_on_original"]
    there = f"no loss: {found['why_no_loss']}" if original is None else f"{original:.4f}"
    console().print(
        f"validation loss {loss:.4f} on the quantised base that was trained on; on the original one, "
        f"which evaluation and export use: {there}"
    )
    return {"quantised_base": found}


def _keep_wanted(session: Session, checkpoints: Path) -> dict[str, Any]:
    """Put the weights that are to be sealed into the model; facts of which they are.

    When the best checkpoint is damaged, the best of those that are whole is taken.
    """
    last_step, last_loss = session.validation[-1]
    best = session.best()
    assert best is not None
    facts: dict[str, Any] = {
        "sealed": session.plan.cadence.keep,
        "sealed_step": last_step,
        "validation_loss": last_loss,
        "best_step": best[0],
        "best_validation_loss": best[1],
        "last_validation_loss": last_loss,
    }
    if session.plan.cadence.keep == "last" or best[0] == last_step:
        return facts
    by_loss = sorted((loss, step) for step, loss in session.validation if 0 < step < last_step)
    for loss, step in by_loss:
        if loss >= last_loss:
            break
        found = checkpoint.at_step(checkpoints, step)
        if found is not None:
            session.restore_weights(found.tensors)
            return facts | {"sealed_step": step, "validation_loss": loss}
    return facts


def _epochs_done(plan: TrainPlan) -> float:
    epoch, first = plan.epoch_of(plan.total_steps - 1)
    return epoch + (plan.total_steps - first) / plan.steps_by_epoch[epoch]
