"""Memory of a training step, measured before the first one: what must be computed again, and whether it fits.

Three small forward passes count the tensors that the backward pass keeps (with everything kept,
without the MLP parts, with the layers' inputs alone); from that follows what the longest micro batch
needs, before it is run. Then it is run, forward and backward, and its peak is measured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from tunesmith.errors import ConfigError
from tunesmith.models.devices import memory_left
from tunesmith.models.memory import (
    GIB,
    HEAD_CHUNK_ROWS,
    MOMENTS_8BIT_BYTES,
    MOMENTS_BYTES,
    Recompute,
)
from tunesmith.train import fast, randomness
from tunesmith.train.packing import MicroBatch, pack
from tunesmith.train.shortage import Shortage

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.train.plan import TrainPlan
    from tunesmith.train.session import Session

__all__ = [
    "Estimate",
    "Rehearsal",
    "calibrate",
    "kept_bytes",
    "least_recompute",
    "longest_batch",
    "memory_budget",
    "process_bytes",
    "rehearse",
]

FREE_SHARE = 0.9
"""Part of the free memory that training may take: the rest is for the system."""
SAMPLE_SECONDS = 0.002
TRIAL_PART = 8
"""The trial that calibrates the estimate is this part of the longest micro batch."""


def memory_budget(memory_gib: float | None, device: str) -> int:
    """Bytes that this process may take in all: what the user allows; or, beside what it has, nine tenths of
    what is free (in a container: of what is left of its limit).
    """
    if memory_gib is not None:
        return int(memory_gib * GIB)
    return int(FREE_SHARE * memory_left(device)) + process_bytes(device)


def process_bytes(device: str) -> int:
    """What this process takes now on a device."""
    if device == "cuda":
        import torch

        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class Estimate:
    """What a step takes, from a measured trial.

    Attributes:
        fixed_bytes: the process with its model, and what the first step adds: gradients and moments.
        kept_bytes: of one position: with everything kept, without MLP parts, with layer inputs alone.
        logit_bytes: of one position; the head's chunk is in `fixed_bytes` when it has one.
        layers: that can be computed again.
    """

    fixed_bytes: int
    kept_bytes: tuple[float, float, float]
    logit_bytes: float
    layers: int

    def need(self, recompute: Recompute, positions: int) -> int:
        """Bytes at the peak of a step whose longest micro batch has so many positions."""
        whole, no_mlp, inputs = self.kept_bytes
        count = max(self.layers, 1)
        kept = whole - (whole - no_mlp) * recompute.mlp / count
        kept -= (no_mlp - inputs) * recompute.whole / count
        # The layer at work: all that it keeps, and about as much again that its backward pass makes.
        working = 2 * (whole - inputs) / count
        return int(self.fixed_bytes + positions * (kept + working + self.logit_bytes))


@dataclass(frozen=True)
class Rehearsal:
    """What the rehearsal found.

    Attributes:
        positions: of the longest micro batch.
        predicted_bytes: what a step would take, before it was run.
        needed_bytes: the measured peak and what the first step adds to it.
        budget_bytes: what it may take.
        recompute: what the backward pass computes again.
    """

    positions: int
    predicted_bytes: int
    needed_bytes: int
    budget_bytes: int
    recompute: Recompute

    def line(self) -> str:
        """For the screen."""
        return (
            f"memory: the longest micro batch ({self.positions} positions) was rehearsed: "
            f"{self.needed_bytes / GIB:.2f} GiB of {self.budget_bytes / GIB:.2f} GiB; {self.recompute}"
        )


def rehearse(session: Session, keep: Recompute | None = None) -> Rehearsal:
    """Run the longest micro batch before the first step, with as little computed again as memory allows.

    Nothing that a later step depends on is changed: weights, gradients, moments and random state are
    as before, to the bit.

    Args:
        session: fresh.
        keep: what an earlier attempt computed again: a resumed run does so at least, and more where
            less memory is free now. The gradients are the same to the bit on a CPU.

    Raises:
        StepTooLarge: it does not fit, by the prediction (then it is not run) or by the measurement.
        ConfigError: more layers are to be computed again than can be.
    """
    _refuse_too_many(session)
    plan = session.plan
    batch = longest_batch(plan)
    budget = plan.resources.memory_bytes
    with _leaving_no_trace(session):
        estimate = calibrate(session, batch)
        positions = _positions_run(session, batch)
        recompute = _chosen(plan.resources.checkpointing, estimate, positions, budget)
        if keep is not None:
            recompute = Recompute(max(keep.mlp, recompute.mlp), max(keep.whole, recompute.whole))
        predicted = estimate.need(recompute, positions)
        if predicted > budget:
            raise _shortage(session, estimate, recompute).error(predicted, "predicted")
        _mark(session, recompute)
        with _peak(plan.device) as peak:
            _run(session, batch)
        needed = peak[0] + _moment_bytes(session)
        while needed > budget and plan.resources.checkpointing == "auto":
            deeper = _next(recompute, estimate.layers)
            if deeper is None:
                break
            gain = estimate.need(recompute, positions) - estimate.need(deeper, positions)
            recompute, needed = deeper, needed - gain
        _mark(session, recompute)
        if needed > budget:
            raise _shortage(session, estimate, recompute).error(needed, "measured")
    return Rehearsal(positions, predicted, needed, budget, recompute)


def _refuse_too_many(session: Session) -> None:
    from tunesmith.train.fast.recompute import layers_of
    from tunesmith.train.fast.trunk import decoder_layers

    asked = session.plan.resources.checkpointing
    if not isinstance(asked, int):
        return
    what = f"train.activation_checkpointing = {asked}"
    if decoder_layers(session.model) is None:
        raise ConfigError(
            f"{what} has no effect on {session.plan.base.name}",
            why="no list of decoder layers was found in it, so none can be computed again",
            fix="--set train.activation_checkpointing=auto",
        )
    count = len(layers_of(session.model))
    if asked > count:
        raise ConfigError(
            f"{what}, but {count} decoder layers of {session.plan.base.name} have a backward pass",
            why="only these can be computed again in it",
            fix=f"--set train.activation_checkpointing={count or 'auto'}",
        )


def longest_batch(plan: TrainPlan) -> MicroBatch:
    """The micro batch of the first epoch with most positions, and most trained ones among those.

    Of all epochs where one has a single step: its only micro batch is also its last, whose size may
    differ by epoch.
    """
    first = plan.steps_by_epoch[0]
    steps = range(first if first > 1 else sum(plan.steps_by_epoch))
    batches = (b for index in steps for b in plan.step_at(index).micro_batches)
    return max(batches, key=lambda b: (b.positions, b.head_positions.size))


def least_recompute(need: Callable[[Recompute], int], layers: int, budget: int) -> Recompute | None:
    """The first that fits: nothing, then the MLP part of more and more layers, then whole layers.

    None when not even all layers computed again fit.
    """
    level: Recompute | None = Recompute()
    while level is not None and need(level) > budget:
        level = _next(level, layers)
    return level


def _next(level: Recompute, layers: int) -> Recompute | None:
    if level.mlp < layers:
        return Recompute(level.mlp + 1, level.whole)
    return Recompute(layers, level.whole + 1) if level.whole < layers else None


def _chosen(asked: str | int, estimate: Estimate, positions: int, budget: int) -> Recompute:
    deepest = Recompute(estimate.layers, estimate.layers)
    if asked == "off":
        return Recompute()
    if isinstance(asked, int):
        return Recompute(asked, asked)
    found = least_recompute(lambda level: estimate.need(level, positions), estimate.layers, budget)
    return found or deepest


def _positions_run(session: Session, batch: MicroBatch) -> int:
    """Positions of the forward pass: the batch's own, or those of the rectangle that rows are padded to."""
    from tunesmith.train.fast.step import runs_packed

    if runs_packed(session.model, batch):
        return batch.positions
    return int(batch.row_lengths.size * batch.row_lengths.max())


def calibrate(session: Session, batch: MicroBatch) -> Estimate:
    """Count what the backward pass keeps of a trial: a part of the batch's longest row."""
    from tunesmith.train.fast.recompute import layers_of

    trial = _trial(batch)
    layers = len(layers_of(session.model))
    kept = []
    for level in (Recompute(), Recompute(layers), Recompute(layers, layers)):
        _mark(session, level)
        forward = _forward_of(session, trial)
        kept.append(kept_bytes(forward, session.model) / trial.positions)
    _mark(session, Recompute())
    head, logits = _head_bytes(session)
    fixed = process_bytes(session.plan.device) + _gradient_bytes(session) + _moment_bytes(session)
    return Estimate(fixed + head, (kept[0], kept[1], kept[2]), logits, layers)


def kept_bytes(forward: Callable[[], Tensor], model: Any) -> int:
    """Bytes of the distinct tensors that a forward pass keeps for its backward pass, weights not counted."""
    import torch

    def place(tensor: Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    own = {place(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack_tensor(tensor: Tensor) -> Tensor:
        if place(tensor) not in own:
            kept[place(tensor)] = tensor.untyped_storage().nbytes()
        # Without its history: a layer's own output would hold the layer, and nothing would be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(kept.values())


def _trial(batch: MicroBatch) -> MicroBatch:
    """The beginning of the batch's longest row, its last token trained."""
    ids = max((ids for ids, _ in batch.rows()), key=lambda ids: int(ids.size))
    count = max(17, min(int(ids.size), batch.positions // TRIAL_PART + 1))
    tokens = [int(ids[place % ids.size]) for place in range(count)]
    return next(pack([(tokens, [place == count - 1 for place in range(count)])], count - 1))


def _forward_of(session: Session, batch: MicroBatch) -> Callable[[], Tensor]:
    return lambda: fast.microbatch_loss(session.model, batch, 1.0)


def _run(session: Session, batch: MicroBatch) -> None:
    session.objective.rehearse(session.model, batch)


def _mark(session: Session, recompute: Recompute) -> None:
    from tunesmith.train.fast.recompute import set_recompute

    set_recompute(session.model, recompute)


def _gradient_bytes(session: Session) -> int:
    sizes = [p.numel() * p.element_size() for p in session.parameters.values()]
    return max(sizes) if session.plan.resources.in_backward else sum(sizes)


def _moment_bytes(session: Session) -> int:
    each = MOMENTS_8BIT_BYTES if session.plan.optimizer.kind == "adamw_8bit" else MOMENTS_BYTES
    return int(each * sum(p.numel() for p in session.parameters.values()))


def _head_bytes(session: Session) -> tuple[int, float]:
    """Logits: of a chunk of positions when the head is on the fast path, else of each position."""
    from tunesmith.train.fast.probe import causal_model
    from tunesmith.train.fast.swap import fast_path_of

    causal = causal_model(session.model)
    vocabulary = causal.get_output_embeddings().weight.shape[0]
    size = 2 if session.plan.precision == "bf16" else 4
    path = fast_path_of(session.model)
    if path is not None and path.head is not None:
        return HEAD_CHUNK_ROWS * vocabulary * (size + 8), 0.0
    # fp32 log-probabilities and their gradient; the logits themselves are counted as kept.
    return 0, float(vocabulary * (size + 8))


@contextmanager
def _leaving_no_trace(session: Session) -> Iterator[None]:
    """Random state as before, gradients dropped, no weight changed."""
    before = randomness.capture()
    paused = getattr(session.optimizer, "paused", nullcontext)
    try:
        with paused():
            yield
    finally:
        session.optimizer.zero_grad(set_to_none=True)
        for parameter in session.parameters.values():
            parameter.grad = None
        randomness.restore(before)


@contextmanager
def _peak(device: str) -> Iterator[list[int]]:
    """One number: the most that the process took while the block ran."""
    found = [process_bytes(device)]
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        yield found
        found[0] = int(torch.cuda.max_memory_allocated())
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            found[0] = max(found[0], process_bytes(device))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        found[0] = max(found[0], process_bytes(device))
        over.set()
        watcher.join()


def _shortage(session: Session, estimate: Estimate, recompute: Recompute) -> Shortage:
    batch = longest_batch(session.plan)
    return Shortage(
        plan=session.plan,
        need=lambda positions: estimate.need(recompute, positions),
        recompute=recompute,
        positions=_positions_run(session, batch),
        batch_positions=batch.positions,
    )
