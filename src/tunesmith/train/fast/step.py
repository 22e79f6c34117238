"""One micro batch: rows in, loss and gradients out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.models.half import frozen_weight
from tunesmith.store import reach
from tunesmith.train.fast.attention import PackedLayout, packed_inputs
from tunesmith.train.fast.head import head_loss
from tunesmith.train.fast.kernels import without_kernels
from tunesmith.train.fast.probe import causal_model
from tunesmith.train.fast.segments import SegmentPlan, plan_segments, table_length
from tunesmith.train.fast.swap import FastPath, fast_path_of
from tunesmith.train.packing import IGNORED, Ints, MicroBatch

__all__ = [
    "evaluate_microbatch",
    "in_step",
    "microbatch_loss",
    "packed_hidden",
    "plain_logits",
    "runs_packed",
    "train_microbatch",
]

STATE = ("active", "batch", "longest", "plan", "layout")
"""What `in_step` sets on a `FastPath`, and puts back."""


def train_microbatch(model: nn.Module, batch: MicroBatch, normaliser: float) -> tuple[float, int]:
    """Forward and backward of one micro batch; gradients add to the parameters' `.grad`.

    The loss is the sum of cross-entropies over the batch's trained tokens divided by `normaliser`,
    which is the number of trained tokens of the whole optimizer step (over all micro batches and
    devices): then the gradient does not depend on how the step is split.

    Returns the *undivided* sum in nats and the batch's trained tokens.

    Raises:
        ValueError: `normaliser` is not positive; weights were moved, cast or merged since `apply`.
    """
    with in_step(model, batch):
        loss = microbatch_loss(model, batch, normaliser)
        reach("step-backward")
        loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()) * normaliser, batch.trained_tokens


def evaluate_microbatch(model: nn.Module, batch: MicroBatch) -> tuple[float, int]:
    """Sum of cross-entropies in nats over the batch's trained tokens, and their number."""
    with torch.no_grad():
        return float(microbatch_loss(model, batch, 1.0)), batch.trained_tokens


def microbatch_loss(model: nn.Module, batch: MicroBatch, normaliser: float) -> Tensor:
    """Sum of cross-entropies over `normaliser`, differentiable, by the fast parts that `apply` found.

    A model without a fast path runs plain: padded rows, all logits.

    Raises:
        ValueError: `normaliser` is not positive; weights were moved, cast or merged since `apply`.
    """
    if normaliser <= 0:
        raise ValueError(f"normaliser={normaliser} is not positive")
    with in_step(model, batch) as path:
        if path is None or path.head is None:
            return _plain_head_loss(model, path, batch, normaliser)
        hidden = packed_hidden(model, batch)
        positions = torch.from_numpy(batch.head_positions).to(hidden.device)
        targets = torch.from_numpy(batch.head_labels).to(hidden.device)
        weight = frozen_weight(path.head)
        return head_loss(hidden, weight, positions, targets, normaliser, path.form)


def packed_hidden(model: nn.Module, batch: MicroBatch) -> Tensor:
    """The model's last hidden states, (positions, hidden), differentiable: what its head multiplies.

    They stand where the batch's labels and `head_positions` want them, whether the rows ran packed
    or padded. On the padded end they mean nothing, and in segments that only others go on from they
    must not be trained. Keep `in_step` open until after the backward pass.

    Raises:
        ValueError: weights were moved, cast or merged since `apply`.
    """
    trunk = causal_model(model).base_model
    device = next(iter(trunk.parameters())).device
    with in_step(model, batch) as path:
        if path is not None and path.packed:
            packed: Tensor = trunk(**_packed(path, batch, device)).last_hidden_state[0]
            return packed
        ids, _, mask = _rectangle(batch)
        rows: Tensor = trunk(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).last_hidden_state
        places = torch.from_numpy(_places(batch, rows.shape[1])).to(device)
        return rows.reshape(-1, rows.shape[-1]).index_select(0, places)


@contextmanager
def in_step(model: nn.Module, batch: MicroBatch) -> Iterator[FastPath | None]:
    """While it is open the fast parts are on, for this batch; afterwards the model is its own again.

    May be nested. The backward pass belongs inside: a layer whose activations are made again runs
    forward there.

    Raises:
        ValueError: weights were moved, cast or merged since `apply`.
    """
    path = fast_path_of(model)
    if path is None or path.batch is batch:
        yield path
        return
    if not all(group.is_current() for group in path.groups):
        raise ValueError("weights were moved, cast or merged after apply(); call remove() first")
    before = {name: getattr(path, name) for name in STATE}
    path.active, path.batch, path.longest = True, batch, int(batch.row_lengths.max())
    path.plan, path.layout = _plans(path, batch)
    try:
        with path.attention(), nullcontext() if not path.report.kernels else without_kernels():
            yield path
    finally:
        for name, value in before.items():
            setattr(path, name, value)


def _plans(path: FastPath, batch: MicroBatch) -> tuple[SegmentPlan | None, PackedLayout | None]:
    """Segments for attention blocks and for the model's own layers; none when rows must be padded."""
    if not _can_pack(path, path.longest):
        return None, None
    blocks = path.blocks_only and _within(path.longest, path.blocks_window)
    plan = None if path.shape is None else _segment_plan(path, batch)
    if blocks:
        return plan, None
    return plan, PackedLayout(batch, next(iter(path.trunk.parameters())).device)


def runs_packed(model: nn.Module, batch: MicroBatch) -> bool:
    """Whether the batch's rows run end to end; else they are padded to a rectangle."""
    path = fast_path_of(model)
    return path is not None and _can_pack(path, int(batch.row_lengths.max()))


def _can_pack(path: FastPath, longest: int) -> bool:
    """Whether rows of up to so many positions can be laid end to end."""
    if path.blocks_only and _within(longest, path.blocks_window):
        return True
    return path.interface is not None and _within(longest, path.limit)


def _within(length: int, limit: int | None) -> bool:
    return limit is None or length <= limit


def _segment_plan(path: FastPath, batch: MicroBatch) -> SegmentPlan:
    assert path.shape is not None
    assert path.rotary is not None
    length = table_length(batch)
    group = path.groups[0]
    typed = torch.empty(0, dtype=group.dtype, device=group.device)
    cos, sin = path.rotary(typed, torch.arange(length, device=group.device)[None])
    half = path.shape.head_dim // 2
    tables = (cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
    return plan_segments(batch, path.shape, tables)


def _packed(path: FastPath, batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    inputs = packed_inputs(batch, device)
    if path.layout is None:
        # A mask of four dimensions is taken as it is: no (positions x positions) mask is built, and
        # the attention blocks use the segment plan instead.
        inputs["attention_mask"] = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
    return inputs


def _plain_head_loss(
    model: Any, path: FastPath | None, batch: MicroBatch, normaliser: float
) -> Tensor:
    return _cross_entropy(*plain_logits(model, path, batch), normaliser)


def plain_logits(model: Any, path: FastPath | None, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Logits by the model's own forward pass, whatever it does to them, and labels of one shape.

    The labels that are not IGNORED come in the order of `batch.head_labels`.
    """
    device = next(iter(model.parameters())).device
    if path is None or not path.packed:
        ids, labels, mask = (part.to(device) for part in _rectangle(batch))
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits, labels
    inputs, labels = _packed(path, batch, device), torch.from_numpy(batch.labels)
    if "logits_to_keep" in inspect.signature(causal_model(model).forward).parameters:
        inputs["logits_to_keep"] = torch.from_numpy(batch.head_positions).to(device)
        labels = torch.from_numpy(batch.head_labels)
    return model(**inputs).logits, labels.to(device)


def _rectangle(batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Rows padded on the right: ids, labels and mask, (rows, longest)."""
    shape = (batch.row_lengths.size, int(batch.row_lengths.max()))
    ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    for row, (inputs, answers) in enumerate(batch.rows()):
        ids[row, : inputs.size], labels[row, : inputs.size] = inputs, answers
        mask[row, : inputs.size] = 1
    return torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(mask)


def _places(batch: MicroBatch, longest: int) -> Ints:
    """(positions,) where each position stands in the flat rectangle; 0 for the padded end."""
    places = np.zeros(batch.positions, dtype=np.int64)
    for row, leaf in enumerate(batch.leaves.tolist()):
        for segment in batch.chain(leaf):
            start, size = int(batch.segment_starts[segment]), int(batch.segment_lengths[segment])
            first = row * longest + int(batch.segment_offsets[segment])
            places[start : start + size] = np.arange(first, first + size)
    return places


def _cross_entropy(logits: Tensor, labels: Tensor, normaliser: float) -> Tensor:
    """In fp32 at least."""
    flat = logits.reshape(-1, logits.shape[-1])
    total = torch.nn.functional.cross_entropy(
        flat.to(torch.promote_types(flat.dtype, torch.float32)),
        labels.reshape(-1),
        ignore_index=IGNORED,
        reduction="sum",
    )
    return total / normaliser
