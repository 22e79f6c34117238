"""Objectives of whole rows: the log-probability of each row's trained tokens, and a loss of those.

Such a loss is no sum over tokens, so its gradient needs all log-probabilities of a micro batch
first. The hidden states are made once; the head runs twice: without gradient for the
log-probabilities, and then as a cross-entropy with each token weighted by the derivative of the
loss with respect to its row, which is exact by the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.models.half import frozen_weight
from tunesmith.train.fast.head import head_logps, weighted_head_loss
from tunesmith.train.fast.step import in_step, packed_hidden, plain_logits
from tunesmith.train.fast.swap import FastPath
from tunesmith.train.packing import IGNORED, MicroBatch

__all__ = ["LossOfRows", "row_logps", "train_rows"]

LossOfRows = Callable[[Tensor], Tensor]
"""(rows,) float64 log-probabilities on the CPU, in the order of `batch.members` -> a scalar loss."""


def row_logps(model: nn.Module, batch: MicroBatch) -> Tensor:
    """(rows,) float64: log-probability in nats of each row's trained tokens, summed; no gradient.

    The rows come in the order of `batch.members`.

    Raises:
        ValueError: weights were moved, cast or merged since `apply`.
    """
    with torch.no_grad(), in_step(model, batch) as path:
        if path is None or path.head is None:
            return _sums(_plain_logps(model, path, batch), batch)
        hidden = packed_hidden(model, batch)
        return _sums(_logps(path, hidden, batch), batch)


def train_rows(model: nn.Module, batch: MicroBatch, loss_of: LossOfRows) -> tuple[Tensor, float]:
    """Forward and backward of `loss_of` the rows' log-probabilities; adds to the gradients.

    Returns those log-probabilities and the loss.

    Raises:
        ValueError: weights were moved, cast or merged since `apply`.
    """
    with in_step(model, batch) as path:
        if path is None or path.head is None:
            sums = _sums(_plain_logps(model, path, batch), batch)
            loss = loss_of(sums)
            loss.backward()  # type: ignore[no-untyped-call]
            return sums.detach(), float(loss.detach())
        hidden = packed_hidden(model, batch)
        sums = _sums(_logps(path, hidden, batch), batch).requires_grad_()
        with torch.enable_grad():
            loss = loss_of(sums)
            (slopes,) = torch.autograd.grad(loss, sums)
        positions, labels = _answers(batch, hidden.device)
        shares = torch.zeros(labels.shape)
        shares[: batch.trained_tokens] = -slopes[_rows_of_tokens(batch)].float()
        answers = (positions, labels, shares.to(hidden.device))
        weight = frozen_weight(path.head)
        surrogate = weighted_head_loss(hidden, weight, answers, path.form)
        surrogate.backward()  # type: ignore[no-untyped-call]
        return sums.detach(), float(loss.detach())


def _logps(path: FastPath, hidden: Tensor, batch: MicroBatch) -> Tensor:
    assert path.head is not None
    positions, labels = _answers(batch, hidden.device)
    found = head_logps(hidden.detach(), frozen_weight(path.head), positions, labels, path.form)
    return found[: batch.trained_tokens]


def _plain_logps(model: nn.Module, path: FastPath | None, batch: MicroBatch) -> Tensor:
    """(trained tokens,), differentiable, from the model's own logits."""
    logits, labels = plain_logits(model, path, batch)
    kept = labels.reshape(-1) != IGNORED
    scores = logits.reshape(-1, logits.shape[-1])[kept]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return -torch.nn.functional.cross_entropy(scores, labels.reshape(-1)[kept], reduction="none")


def _answers(batch: MicroBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    positions = torch.from_numpy(batch.head_positions).to(device)
    return positions, torch.from_numpy(batch.head_labels).to(device)


def _rows_of_tokens(batch: MicroBatch) -> Tensor:
    """(trained tokens,) place of each trained token's row in `batch.members`."""
    place = np.zeros(batch.segment_starts.size, dtype=np.int64)
    place[batch.leaves] = np.arange(batch.leaves.size)
    segments = batch.segment_ids[batch.head_positions[: batch.trained_tokens]]
    return torch.from_numpy(place[segments])


def _sums(logps: Tensor, batch: MicroBatch) -> Tensor:
    # On the host: few numbers, and not every device has float64.
    sums = torch.zeros(batch.leaves.size, dtype=torch.float64)
    return sums.index_add(0, _rows_of_tokens(batch), logps.cpu().double())
