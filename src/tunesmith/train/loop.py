"""The training loop. It reads top to bottom; what varies was built before it."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from tunesmith.errors import InterruptedRun
from tunesmith.store import reach
from tunesmith.telemetry import Bar, Recorder
from tunesmith.train import checkpoint
from tunesmith.train.nonfinite import NotFinite
from tunesmith.train.record import explained
from tunesmith.train.samples import show_samples
from tunesmith.train.session import Session
from tunesmith.train.stopping import Check, Stopped

__all__ = ["GO_ON", "fit"]

GO_ON = "run the same command again to go on (`tunesmith train` wants --resume)"
SAVE_SECONDS = 60.0
"""A long step count between checkpoints still loses at most about this much work."""


def fit(session: Session, checkpoints: Path, recorder: Recorder, bar: Bar, check: Check) -> None:
    """Train until the plan's last step, with validation, samples and checkpoints on the way.

    Args:
        session: fresh, or restored from a checkpoint.
        checkpoints: folder for them.
        recorder: event log and curves.
        bar: progress; one unit is one optimizer step.
        check: called between micro batches and layers.

    Raises:
        InterruptedRun: `check` raised `Stopped`; the state after the last whole step is saved.
        NotFinite: the loss or a gradient is not finite; a failure record beside the checkpoints shows it again.
        StorageError: a checkpoint cannot be written; the ones before are intact.
    """
    plan = session.plan
    saver = _Saver(session, checkpoints, recorder)
    try:
        if plan.resources.in_backward and not checkpoint.is_any(checkpoints):
            saver.save()  # A step that fails there can only be taken back from a checkpoint.
        _validate_if_due(session, recorder, bar, check)
        _sample_if_due(session, recorder, bar, check)
        while session.step < plan.total_steps:
            _train_step(session, recorder, bar, check)
            _validate_if_due(session, recorder, bar, check)
            _sample_if_due(session, recorder, bar, check)
            last = session.step == plan.total_steps
            if last or saver.is_due():
                saver.save()
            if not last:
                check()
    except Stopped as stopped:
        saver.save()
        raise InterruptedRun(
            f"stopped by {stopped} after step {session.step} of {plan.total_steps}; "
            "everything so far is saved",
            fix=GO_ON,
        ) from None
    except NotFinite as found:
        explained(session, found, checkpoints.parent)
        if found.failure.split == "train" and plan.resources.in_backward:
            bar.print(f"{found.what}; going back to the weights before that step, to record them")
            _take_back(session, found, checkpoints, check)
        raise found from None


def _take_back(session: Session, found: NotFinite, checkpoints: Path, check: Check) -> None:
    """Undo the updates of a failed step whose optimizer works inside the backward pass, and record it anew.

    The weights nearer to the output were updated before the fault was met. The last checkpoint and the
    steps after it, run again, give the weights before the step, to the bit on a CPU. When there is no
    whole checkpoint, or the way back ends early, the record of the updated weights stays.
    """
    kept = checkpoint.latest(checkpoints)
    if kept is None:
        return
    session.optimizer.state.clear()  # First, so that no two copies of the moments are held.
    session.restore(kept)
    try:
        while session.step < found.failure.step:
            session.train_step(check)
    except NotFinite as again:
        found.why += (
            f"; on the way back step {again.failure.step + 1} was not finite, which it was before: "
            "this machine does not compute the same thing twice"
        )
        return
    explained(session, found, checkpoints.parent, taken_back=True)


def _train_step(session: Session, recorder: Recorder, bar: Bar, check: Check) -> None:
    began, tokens_before = time.perf_counter(), session.tokens
    loss, norm, rate = session.train_step(check)
    seconds = time.perf_counter() - began
    session.seconds += seconds
    session.meter.joules()  # often enough that no counter goes round unseen
    speed = (session.tokens - tokens_before) / seconds
    reach("event-before")
    recorder.record("step", session.step, _metrics(session, loss, norm, rate, speed))
    reach("event-after")
    bar.advance(note=f"loss {loss:.3f}  {speed:.0f} tokens/s")


def _metrics(
    session: Session, loss: float, norm: float, rate: float, speed: float
) -> dict[str, float]:
    epoch, first = session.plan.epoch_of(session.step - 1)
    part = (session.step - first) / session.plan.steps_by_epoch[epoch]
    return {
        "tunesmith_train_loss_nats": loss,
        "tunesmith_train_grad_norm": norm,
        "tunesmith_train_learning_rate": rate,
        "tunesmith_train_tokens_per_second": speed,
        "tunesmith_train_tokens_total": session.tokens,
        "tunesmith_train_epoch": epoch + part,
        "tunesmith_train_rss_bytes": psutil.Process().memory_info().rss,
        **{f"tunesmith_train_{name}": value for name, value in session.figures.items()},
    }


def _validate_if_due(session: Session, recorder: Recorder, bar: Bar, check: Check) -> None:
    """Also on a resumed run, when the stop came into a validation."""
    is_last = session.step == session.plan.total_steps
    is_due = is_last or session.step % session.plan.cadence.validate_steps == 0
    is_done = bool(session.validation) and session.validation[-1][0] == session.step
    if not is_due or is_done:
        return
    reach("validation-before")
    loss = session.validation_loss(check)
    session.validation.append((session.step, loss))
    figures = {"loss_nats": loss, **session.validation_figures}
    named = {f"tunesmith_train_validation_{name}": value for name, value in figures.items()}
    recorder.record("validation", session.step, named)
    reach("validation-after")
    bar.print(f"step {session.step}: validation loss {loss:.4f} nats a {session.objective.unit}")


def _sample_if_due(session: Session, recorder: Recorder, bar: Bar, check: Check) -> None:
    """Also on a resumed run, when the stop came before the samples were whole."""
    step, cadence = session.step, session.plan.cadence
    if not cadence.sample_rows or step in (0, session.sampled):
        return
    if step == session.plan.total_steps or step % cadence.sample_steps == 0:
        reach("samples-before")
        show_samples(session, recorder, bar, check)
        session.sampled = step
        reach("samples-after")


class _Saver:
    """Writes checkpoints and deletes old ones; the newest few stay, and the best."""

    def __init__(self, session: Session, folder: Path, recorder: Recorder) -> None:
        self._session = session
        self._folder = folder
        self._recorder = recorder
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """On schedule, after a long time, and when the last validation is the best so far."""
        step = self._session.step
        best = self._session.best()
        on_schedule = step % self._session.plan.cadence.checkpoint_steps == 0
        is_best = best is not None and best[0] == step
        return on_schedule or is_best or time.monotonic() - self._saved_at > SAVE_SECONDS

    def save(self) -> None:
        """Save the state after the last whole step, then delete what is too old.

        Raises:
            StorageError: the disk refuses; older checkpoints are intact.
        """
        session = self._session
        tensors, facts = session.state()
        place = checkpoint.save(self._folder, session.step, tensors, facts)
        self._saved_at = time.monotonic()
        best = session.best()
        keep = session.plan.cadence.keep_checkpoints
        checkpoint.prune(self._folder, session.step, keep, None if best is None else best[0])
        self._recorder.note("checkpoint", step=session.step, name=place.name)
