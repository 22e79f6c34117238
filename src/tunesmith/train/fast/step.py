"""One micro batch: rows in, loss and adapter gradients out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.train.fast.head import head_loss
from tunesmith.train.fast.segments import SegmentPlan, plan_segments, table_length
from tunesmith.train.fast.swap import FastPath, fast_path_of
from tunesmith.train.packing import IGNORED, MicroBatch

__all__ = ["evaluate_microbatch", "microbatch_loss", "train_microbatch"]


def train_microbatch(model: nn.Module, batch: MicroBatch, normaliser: float) -> tuple[float, int]:
    """Forward and backward of one micro batch; gradients add to the parameters' `.grad`.

    The loss is the sum of cross-entropies over the batch's trained tokens divided by `normaliser`,
    which is the number of trained tokens of the whole optimizer step (over all micro batches and
    devices): then the gradient does not depend on how the step is split.

    Returns the *undivided* sum in nats and the batch's trained tokens.

    Raises:
        ValueError: `normaliser` is not positive; weights were moved, cast or merged since `apply`.
    """
    loss = microbatch_loss(model, batch, normaliser)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()) * normaliser, batch.trained_tokens


def evaluate_microbatch(model: nn.Module, batch: MicroBatch) -> tuple[float, int]:
    """Sum of cross-entropies in nats over the batch's trained tokens, and their number."""
    with torch.no_grad():
        return float(microbatch_loss(model, batch, 1.0)), batch.trained_tokens


def microbatch_loss(model: nn.Module, batch: MicroBatch, normaliser: float) -> Tensor:
    """Sum of cross-entropies over `normaliser`, differentiable, by the fast parts that `apply` found.

    A model without a fast path runs plain: padded rows, all logits.
    """
    if normaliser <= 0:
        raise ValueError(f"normaliser={normaliser} is not positive")
    path = fast_path_of(model)
    if path is None:
        return _plain_loss(model, None, batch, normaliser)
    if not all(group.is_current() for group in path.groups):
        raise ValueError("weights were moved, cast or merged after apply(); call remove() first")
    path.active = True
    try:
        longest = batch.prefix_tokens + int(batch.segment_lengths.max())
        if path.shape is None or (path.window is not None and longest > path.window):
            return _plain_loss(model, path, batch, normaliser)
        return _packed_loss(model, path, batch, normaliser)
    finally:
        path.active, path.plan = False, None


def _packed_loss(model: Any, path: FastPath, batch: MicroBatch, normaliser: float) -> Tensor:
    device = next(iter(path.trunk.parameters())).device
    path.plan = _segment_plan(path, batch)
    ids = torch.from_numpy(batch.input_ids).to(device)[None]
    places = torch.from_numpy(batch.position_ids).to(device)[None]
    # A mask of four dimensions is taken as it is: no (positions x positions) mask is built, and the
    # attention blocks use the segment plan instead.
    unused = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
    hidden = path.trunk(
        input_ids=ids, position_ids=places, attention_mask=unused, use_cache=False
    ).last_hidden_state
    return _loss_of_hidden(model, path, hidden, batch, normaliser)


def _segment_plan(path: FastPath, batch: MicroBatch) -> SegmentPlan:
    assert path.shape is not None
    assert path.rotary is not None
    length = table_length(batch)
    weight = path.groups[0].weight
    cos, sin = path.rotary(weight, torch.arange(length, device=weight.device)[None])
    half = path.shape.head_dim // 2
    tables = (cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
    return plan_segments(batch, path.shape, tables)


def _plain_loss(model: Any, path: FastPath | None, batch: MicroBatch, normaliser: float) -> Tensor:
    """Rows as a right-padded rectangle through the model's own attention."""
    device = next(iter(model.parameters())).device
    longest = batch.prefix_tokens + int(batch.segment_lengths.max())
    count = batch.segment_lengths.size
    ids = torch.zeros(count, longest, dtype=torch.long)
    labels = torch.full((count, longest), IGNORED)
    mask = torch.zeros(count, longest, dtype=torch.long)
    for row, (inputs, answers) in enumerate(batch.rows()):
        ids[row, : inputs.size] = torch.from_numpy(inputs)
        labels[row, : inputs.size] = torch.from_numpy(answers)
        mask[row, : inputs.size] = 1
    ids, labels, mask = ids.to(device), labels.to(device), mask.to(device)
    if path is not None and path.head is not None:
        hidden = path.trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        positions = _padded_positions(labels, batch)
        targets = torch.from_numpy(batch.head_labels).to(device)
        flat = hidden.view(-1, hidden.shape[-1])
        return head_loss(flat, path.head.weight.detach(), positions, targets, normaliser)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return _cross_entropy(logits, labels, normaliser)


def _padded_positions(labels: Tensor, batch: MicroBatch) -> Tensor:
    """Trained positions of the rectangle in the order of `batch.head_labels`, padded alike."""
    found = (labels.view(-1) != IGNORED).nonzero().squeeze(1)
    positions = found.new_zeros(batch.head_labels.size)
    positions[: found.numel()] = found
    return positions


def _loss_of_hidden(
    model: Any, path: FastPath, hidden: Tensor, batch: MicroBatch, normaliser: float
) -> Tensor:
    flat = hidden.view(-1, hidden.shape[-1])
    if path.head is None:
        labels = torch.from_numpy(batch.labels).to(hidden.device)
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        return _cross_entropy(causal.get_output_embeddings()(flat), labels, normaliser)
    positions = torch.from_numpy(batch.head_positions).to(hidden.device)
    targets = torch.from_numpy(batch.head_labels).to(hidden.device)
    return head_loss(flat, path.head.weight.detach(), positions, targets, normaliser)


def _cross_entropy(logits: Tensor, labels: Tensor, normaliser: float) -> Tensor:
    flat = logits.view(-1, logits.shape[-1]).float()
    total = torch.nn.functional.cross_entropy(
        flat, labels.view(-1), ignore_index=IGNORED, reduction="sum"
    )
    return total / normaliser
