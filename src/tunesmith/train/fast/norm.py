"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4) forward and backward, by hand.

Statistics and gradients are fp32 whatever the precision of x, as in Hugging Face's Llama.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.train.fast.kernels import find_kernels

__all__ = ["rms_backward", "rms_forward"]


def rms_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(n, d) -> the normed rows (n, d) and 1 / root mean square (n, 1) fp32."""
    kernels = find_kernels(x)
    if kernels is not None and x.is_contiguous() and weight.dtype == x.dtype:
        normed, inverse = torch.empty_like(x), torch.empty(x.shape[0], 1)
        kernels("norm_forward", x, weight, normed, inverse, x.shape[0], x.shape[1], eps)
        return normed, inverse
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * inverse).to(x.dtype).mul_(weight), inverse


def rms_backward(
    dy: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, residual: Tensor
) -> Tensor:
    """Gradient of x from that of the normed rows, plus `residual`; all (n, d). May overwrite `dy`."""
    kernels = find_kernels(x)
    alike = weight.dtype == x.dtype == dy.dtype == residual.dtype
    if kernels is not None and alike and x.is_contiguous() and dy.is_contiguous():
        sizes = (x.shape[0], x.shape[1])
        kernels("norm_backward", dy, x, inverse, weight, residual, dy, *sizes)
        return dy
    scaled = dy.float().mul_(weight)
    hat = x.float() * inverse
    mean = (scaled * hat).sum(-1, keepdim=True).div_(x.shape[-1])
    return scaled.addcmul_(hat, mean, value=-1.0).mul_(inverse).add_(residual).to(x.dtype)
