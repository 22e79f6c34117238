"""Draws the next token of each row from its logits; a row's draw depends on that row alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.engine.types import Sampling

__all__ = ["draw"]

FIRST_LOOK = 1_024
"""Tokens sorted at first for `top_p`; sorting the whole vocabulary takes longer than the model."""


def draw(logits: Tensor, sampling: Sampling, uniforms: list[float]) -> Tensor:
    """Next token of each row.

    Args:
        logits: (rows, vocabulary), any float type.
        sampling: temperature, then top_k, then top_p, in this order.
        uniforms: one number in [0, 1) a row, which decides its draw; not used by greedy decoding.

    Returns:
        (rows,) int64.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    scores = logits.float() / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p >= 1:
        return _invert(scores.softmax(dim=-1), uniforms)
    probabilities, ids = _most_likely(scores, sampling)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    # Back in the vocabulary's order: in order of size, a rounding error in two nearly equal
    # probabilities would swap them, and with them the token that is drawn.
    return _invert(torch.zeros_like(scores).scatter(-1, ids, kept), uniforms)


def _most_likely(scores: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities and ids, most likely first, of all tokens that may pass the settings."""
    vocabulary = scores.shape[-1]
    if 0 < sampling.top_k < vocabulary:
        best, ids = scores.topk(sampling.top_k, dim=-1)
        return best.softmax(dim=-1), ids
    probabilities = scores.softmax(dim=-1)
    best, ids = probabilities.topk(min(FIRST_LOOK, vocabulary), dim=-1)
    if bool((best.sum(dim=-1) < sampling.top_p).any()):
        best, ids = probabilities.sort(dim=-1, descending=True)
    return best, ids


def _invert(weights: Tensor, uniforms: list[float]) -> Tensor:
    """Index at which the running sum of `weights` (rows, n) passes each row's uniform share."""
    sums = weights.double().cumsum(dim=-1)
    shares = torch.tensor(uniforms, dtype=torch.float64, device=weights.device)[:, None]
    found = torch.searchsorted(sums, shares * sums[:, -1:], right=True)[:, 0]
    # A share that rounds up to the whole sum must not point behind the last token with weight.
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(dim=-1)
    return torch.minimum(found, last)
