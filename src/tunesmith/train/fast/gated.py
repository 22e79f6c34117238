"""SwiGLU (Shazeer 2020, arXiv 2002.05202) without its products, forward and backward.

Gate and up stand side by side in one tensor (n, 2 * width), as one joint projection makes them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from tunesmith.train.fast.kernels import find_kernels

__all__ = ["gated_backward", "gated_forward"]


def gated_forward(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, (n, width)."""
    kernels = find_kernels(gate_up)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    if kernels is not None:
        hidden = gate_up.new_empty(rows, width)
        kernels("gated_forward", gate_up, hidden, rows, width)
        return hidden
    gate, up = gate_up.chunk(2, -1)
    return silu(gate).mul_(up)


def gated_backward(dhidden: Tensor, gate_up: Tensor) -> Tensor:
    """Overwrites gate and up with their gradients; returns silu(gate) * up made again.

    `dhidden` (n, width) may be overwritten too.
    """
    kernels = find_kernels(gate_up)
    if kernels is not None:
        kernels("gated_backward", dhidden, gate_up, dhidden.shape[0], dhidden.shape[1])
        return dhidden
    gate, up = gate_up.chunk(2, -1)
    activated = silu(gate)
    hidden = activated * up
    dgate = dhidden * up
    torch.mul(dhidden, activated, out=up)
    torch.ops.aten.silu_backward.grad_input(dgate, gate, grad_input=gate)
    return hidden
