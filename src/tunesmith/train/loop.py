"""The training loop. It reads top to bottom; what varies was built before it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from tunesmith.errors import InterruptedRun
from tunesmith.telemetry import Bar, Recorder
from tunesmith.train import checkpoint
from tunesmith.train.samples import show_samples
from tunesmith.train.session import Session

__all__ = ["StopSignal", "fit", "stop_signal"]

SAVE_SECONDS = 60.0
"""A long step count between checkpoints still loses at most about this much work."""


def fit(session: Session, checkpoints: Path, recorder: Recorder, bar: Bar) -> None:
    """Train until the plan's last step, with validation, samples and checkpoints on the way.

    Args:
        session: fresh, or restored from a checkpoint.
        checkpoints: folder for them.
        recorder: event log and curves.
        bar: progress; one unit is one optimizer step.

    Raises:
        InterruptedRun: SIGINT or SIGTERM came; the state after the last whole step is saved.
        TrainingError: the loss or a gradient is not finite.
        StorageError: a checkpoint cannot be written; the ones before are intact.
    """
    plan, cadence = session.plan, session.plan.cadence
    saved_at = time.monotonic()
    if session.step == 0:
        _validate(session, recorder, bar)
    with stop_signal() as stop:
        while session.step < plan.total_steps:
            began = time.perf_counter()
            tokens_before = session.tokens
            loss, norm, rate = session.train_step()
            seconds = time.perf_counter() - began
            session.seconds += seconds
            speed = (session.tokens - tokens_before) / seconds
            recorder.record("step", session.step, _metrics(session, loss, norm, rate, speed))
            bar.advance(note=f"loss {loss:.3f}  {speed:.0f} tokens/s")

            last = session.step == plan.total_steps
            if last or session.step % cadence.validate_steps == 0:
                _validate(session, recorder, bar)
            if cadence.sample_rows and (last or session.step % cadence.sample_steps == 0):
                show_samples(session, recorder, bar)
            due = session.step % cadence.checkpoint_steps == 0
            if due or last or stop.wanted or time.monotonic() - saved_at > SAVE_SECONDS:
                _save(session, checkpoints, recorder)
                saved_at = time.monotonic()
            if stop.wanted and not last:
                raise InterruptedRun(
                    f"stopped by {stop.wanted} after step {session.step} of {plan.total_steps}; "
                    "everything so far is saved",
                    fix="run the same command again to go on (`tunesmith train` wants --resume)",
                )


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
    }


def _validate(session: Session, recorder: Recorder, bar: Bar) -> None:
    loss = session.validation_loss()
    session.validation.append((session.step, loss))
    recorder.record("validation", session.step, {"tunesmith_train_validation_loss_nats": loss})
    bar.print(f"step {session.step}: validation loss {loss:.4f} nats a token")


def _save(session: Session, checkpoints: Path, recorder: Recorder) -> None:
    tensors, facts = session.state()
    place = checkpoint.save(checkpoints, session.step, tensors, facts)
    checkpoint.prune(checkpoints, session.plan.cadence.keep_checkpoints)
    recorder.note("checkpoint", step=session.step, name=place.name)


class StopSignal:
    """Whether SIGINT or SIGTERM came; a second one stops at once, without saving."""

    def __init__(self) -> None:
        self.wanted = ""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; the loop acts on it between two steps."""
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = signal.Signals(number).name
        os.write(2, b"\nstopping after this step; press Ctrl-C again to stop without saving\n")


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Catch SIGINT and SIGTERM while the block runs, in the main thread."""
    import threading

    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
