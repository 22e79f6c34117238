"""Head and cross-entropy on trained positions only, in chunks, with the gradient made at once.

The head is frozen, so all that the backward pass needs is the gradient of the hidden states; it is
made chunk by chunk in the forward pass and the logits are never kept. A weight that is kept in 16
bits is widened slab by slab of the vocabulary; the sums are those of an fp32 weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.half import slabs
from tunesmith.models.memory import HEAD_CHUNK_ROWS
from tunesmith.train.fast.kernels import find_kernels

__all__ = ["LogitForm", "head_logps", "head_loss", "weighted_head_loss"]


@dataclass(frozen=True)
class LogitForm:
    """What a family does to the head's product: plus a frozen bias, then cap * tanh(x / cap)."""

    bias: Tensor | None = None
    """(vocabulary,)"""
    cap: float | None = None
    """Soft cap (Gemma Team 2024, arXiv 2408.00118, section 2)."""

    def of(self, product: Tensor) -> tuple[Tensor, Tensor | None]:
        """fp32 logits and, with a cap, their slope; may overwrite an fp32 `product`."""
        scores = product.float()
        if self.bias is not None:
            scores += self.bias
        if self.cap is None:
            return scores, None
        bent = torch.tanh(scores / self.cap)
        return bent * self.cap, 1.0 - bent.square_()


PLAIN = LogitForm()


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    positions: Tensor,
    labels: Tensor,
    normaliser: float,
    form: LogitForm = PLAIN,
) -> Tensor:
    """Sum of cross-entropies in nats over `normaliser`, a scalar.

    hidden (n, d), weight (vocabulary, d) frozen, in the type of hidden or in 16 bits, positions (k,)
    into hidden, labels (k,); a negative label counts nothing. The arithmetic on logits is fp32.
    """
    shares = torch.full(labels.shape, 1.0 / normaliser, device=labels.device)
    return weighted_head_loss(hidden, weight, (positions, labels, shares), form)


def weighted_head_loss(
    hidden: Tensor, weight: Tensor, answers: tuple[Tensor, Tensor, Tensor], form: LogitForm = PLAIN
) -> Tensor:
    """Sum of cross-entropies in nats, each times its share, a scalar.

    `answers` are positions, labels (as for `head_loss`) and shares (k,), fp32 of either sign.
    """
    result: Tensor = _HeadFunction.apply(  # type: ignore[no-untyped-call]
        hidden, weight, answers, form, hidden.requires_grad
    )
    return result


def head_logps(
    hidden: Tensor, weight: Tensor, positions: Tensor, labels: Tensor, form: LogitForm = PLAIN
) -> Tensor:
    """(k,) log-probability of each label in nats, fp32, without gradient; 0 where a label is negative.

    Arguments as for `head_loss`.
    """
    with torch.no_grad():
        return _chunked(hidden, weight, (positions, labels, None), form, None).neg_()


class _HeadFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        answers: tuple[Tensor, Tensor, Tensor],
        form: LogitForm,
        need_grad: bool,
    ) -> Tensor:
        positions, _, shares = answers
        grad = hidden.new_empty(positions.numel(), hidden.shape[1]) if need_grad else None
        losses = _chunked(hidden, weight, answers, form, grad)
        ctx.save_for_backward(positions, grad)
        ctx.shape = hidden.shape
        return (losses * shares).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        positions, grad = ctx.saved_tensors
        dhidden = grad.new_zeros(ctx.shape)
        dhidden.index_add_(0, positions, grad.mul_(dloss.to(grad.dtype)))
        return dhidden, None, None, None, None


def _chunked(
    hidden: Tensor,
    weight: Tensor,
    answers: tuple[Tensor, Tensor, Tensor | None],
    form: LogitForm,
    grad: Tensor | None,
) -> Tensor:
    """(k,) cross-entropies; the gradient of their sum by shares goes to `grad`, (k, d)."""
    positions, labels, shares = answers
    rows = hidden.index_select(0, positions)
    logits = rows.new_empty(min(HEAD_CHUNK_ROWS, rows.shape[0]), weight.shape[0])
    losses = hidden.new_empty(labels.shape, dtype=torch.float32)
    for start in range(0, rows.shape[0], HEAD_CHUNK_ROWS):
        part = slice(start, min(start + HEAD_CHUNK_ROWS, rows.shape[0]))
        chunk = logits[: part.stop - start]
        for columns, slab in slabs(weight, chunk.dtype):
            torch.mm(rows[part], slab.t(), out=chunk[:, columns])
        into = None if grad is None or shares is None else (shares[part], grad[part])
        losses[part] = _chunk_losses(chunk, weight, labels[part], form, into)
    return losses


def _chunk_losses(
    logits: Tensor,
    weight: Tensor,
    labels: Tensor,
    form: LogitForm,
    into: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """(rows,) cross-entropies of a chunk; `into` holds their shares and takes the gradient.

    Overwrites `logits` when they are fp32.
    """
    kernels = find_kernels(logits)
    if kernels is not None and form.cap is None and form.bias is None:
        losses = logits.new_empty(labels.shape, dtype=torch.float32)
        shares = losses if into is None else into[0]
        sizes = (labels.numel(), logits.shape[1], int(into is not None))
        kernels("cross_entropy", logits, labels, shares, losses, *sizes)
        if into is not None:
            _back(logits, weight, into[1])
        return losses
    targets, counted = labels.clamp_min(0)[:, None], (labels >= 0).float()
    scores, slope = form.of(logits)
    picked = scores.gather(1, targets)
    peak = scores.amax(1, keepdim=True)
    scores.sub_(peak).exp_()
    mass = scores.sum(1, keepdim=True)
    losses = (mass.log() + peak - picked).squeeze(1) * counted
    if into is not None:
        share = (into[0] * counted)[:, None]
        scores.mul_(share / mass)
        scores.scatter_add_(1, targets, -share)
        if slope is not None:
            scores.mul_(slope)
        _back(scores.to(into[1].dtype), weight, into[1])
    return losses


def _back(dlogits: Tensor, weight: Tensor, out: Tensor) -> None:
    """The gradient of the hidden states, (rows, d), from that of the logits."""
    for columns, slab in slabs(weight, out.dtype):
        if columns.start == 0:
            torch.mm(dlogits[:, columns], slab, out=out)
        else:
            out.addmm_(dlogits[:, columns], slab)
