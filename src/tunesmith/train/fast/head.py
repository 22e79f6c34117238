"""Head and cross-entropy on trained positions only, in chunks, with the gradient made at once.

The head is frozen, so all that the backward pass needs is the gradient of the hidden states; it is
made chunk by chunk in the forward pass and the logits are never kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["head_loss"]

CHUNK_ROWS = 128
"""Rows of logits alive at once."""


def head_loss(
    hidden: Tensor, weight: Tensor, positions: Tensor, labels: Tensor, normaliser: float
) -> Tensor:
    """Sum of cross-entropies in nats over `normaliser`, a scalar.

    hidden (n, d), weight (vocabulary, d) frozen, positions (k,) into hidden, labels (k,); a negative
    label counts nothing. The arithmetic on logits is fp32.
    """
    result: Tensor = _HeadFunction.apply(  # type: ignore[no-untyped-call]
        hidden, weight, positions, labels, normaliser, hidden.requires_grad
    )
    return result


class _HeadFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        positions: Tensor,
        labels: Tensor,
        normaliser: float,
        need_grad: bool,
    ) -> Tensor:
        rows = hidden.index_select(0, positions)
        counted = (labels >= 0).float()
        targets = labels.clamp_min(0)
        grad = torch.empty_like(rows) if need_grad else None
        logits = rows.new_empty(min(CHUNK_ROWS, rows.shape[0]), weight.shape[0])
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, rows.shape[0], CHUNK_ROWS):
            part = slice(start, min(start + CHUNK_ROWS, rows.shape[0]))
            chunk = torch.mm(rows[part], weight.t(), out=logits[: part.stop - start])
            total += _chunk_loss(
                chunk, weight, (targets[part], counted[part], normaliser), grad, part
            )
        ctx.save_for_backward(positions, grad)
        ctx.shape = hidden.shape
        return total / normaliser

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        positions, grad = ctx.saved_tensors
        dhidden = grad.new_zeros(ctx.shape)
        dhidden.index_add_(0, positions, grad.mul_(dloss.to(grad.dtype)))
        return dhidden, None, None, None, None, None


def _chunk_loss(
    logits: Tensor,
    weight: Tensor,
    answers: tuple[Tensor, Tensor, float],
    grad: Tensor | None,
    part: slice,
) -> Tensor:
    """Summed loss of a chunk; its gradient goes to grad[part]. Overwrites `logits` when fp32."""
    targets, counted, normaliser = answers
    scores = logits.float()
    picked = scores.gather(1, targets[:, None])
    peak = scores.amax(1, keepdim=True)
    scores.sub_(peak).exp_()
    mass = scores.sum(1, keepdim=True)
    loss = ((mass.log() + peak - picked).squeeze(1) * counted).sum()
    if grad is not None:
        share = (counted / normaliser)[:, None]
        scores.mul_(share / mass)
        scores.scatter_add_(1, targets[:, None], -share)
        torch.mm(scores.to(weight.dtype), weight, out=grad[part])
    return loss
