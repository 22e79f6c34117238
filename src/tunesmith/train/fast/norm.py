"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4) forward and backward, by hand.

Statistics and gradients are fp32 whatever the precision of x, as in Hugging Face's Llama.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rms_backward", "rms_forward", "rms_hat"]


def rms_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(n, d) -> the normed rows (n, d) and 1 / root mean square (n, 1) fp32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return rms_hat(x, inverse).mul_(weight), inverse


def rms_hat(x: Tensor, inverse: Tensor) -> Tensor:
    """x / root mean square in the precision of x: the normed rows before their weight."""
    return (x * inverse).to(x.dtype)


def rms_backward(dy: Tensor, hat: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """Gradient of x from that of the normed rows. Overwrites `dy` when it is fp32."""
    width = dy.shape[-1]
    dy = dy.float().mul_(weight)
    hat = hat.float()
    mean = (dy * hat).sum(-1, keepdim=True).div_(width)
    return dy.addcmul_(hat, mean, value=-1.0).mul_(inverse)
