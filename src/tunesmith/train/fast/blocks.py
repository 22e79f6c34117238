"""The two halves of a Llama-shaped decoder layer, each as one autograd function.

Kept for the backward pass: the input (which the layer below holds anyway), the joint projections
and the adapters' small products. The normed rows, the product of SwiGLU (Shazeer 2020, arXiv
2002.05202) and, unless asked for, everything inside attention are made again: that costs less time
than it saves memory, and all that is kept has the same size in every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.train.fast.lora import LoraGroup, interleave
from tunesmith.train.fast.norm import rms_backward, rms_forward, rms_hat
from tunesmith.train.fast.segments import SegmentPlan, attend, attend_backward

__all__ = ["AttentionBlock", "MlpBlock", "attention_block", "mlp_block"]


@dataclass(frozen=True)
class AttentionBlock:
    """Weights of norm, joint q/k/v projection and output projection."""

    norm_weight: Tensor
    eps: float
    qkv: LoraGroup
    out: LoraGroup
    keep: bool
    """Keep rotated heads, attention weights and head outputs instead of making them again."""


@dataclass(frozen=True)
class MlpBlock:
    """Weights of norm, joint gate/up projection and down projection."""

    norm_weight: Tensor
    eps: float
    gate_up: LoraGroup
    down: LoraGroup


def attention_block(x: Tensor, block: AttentionBlock, plan: SegmentPlan) -> Tensor:
    """x + attention(norm(x)) for a packed batch (positions, hidden)."""
    parameters = [*block.qkv.parameters, *block.out.parameters]
    result: Tensor = _AttentionFunction.apply(x, block, plan, *parameters)  # type: ignore[no-untyped-call]
    return result


def mlp_block(x: Tensor, block: MlpBlock) -> Tensor:
    """x + mlp(norm(x)) for positions in any layout, (n, hidden)."""
    parameters = [*block.gate_up.parameters, *block.down.parameters]
    result: Tensor = _MlpFunction.apply(x, block, *parameters)  # type: ignore[no-untyped-call]
    return result


def _with_zero_row(rows: int, like: Tensor, width: int) -> Tensor:
    buffer = like.new_empty(rows + 1, width)
    buffer[-1].zero_()
    return buffer


class _AttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: AttentionBlock, plan: SegmentPlan, *parameters: Tensor
    ) -> Tensor:
        normed, inverse = rms_forward(x, block.norm_weight, block.eps)
        qkv = _with_zero_row(x.shape[0], x, block.qkv.weight.shape[0])
        _, u = block.qkv.forward(normed, qkv[:-1])
        heads, saved = attend(qkv, plan)
        y, u_out = block.out.forward(heads)
        ctx.block, ctx.plan = block, plan
        kept = [heads, *saved] if block.keep else [qkv]
        ctx.save_for_backward(x, inverse, u, u_out, *kept)
        return y.add_(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        block: AttentionBlock = ctx.block
        x, inverse, u, u_out, *kept = ctx.saved_tensors
        heads, saved = (kept[0], kept[1:]) if block.keep else attend(kept[0], ctx.plan)
        dheads = _with_zero_row(x.shape[0], x, heads.shape[1])
        _, du_out, grads_b_out = block.out.backward(dy, u_out, True, dheads[:-1])
        grads_out = interleave(block.out.grads_of_a(du_out, heads), grads_b_out)
        dqkv = attend_backward(dheads, ctx.plan, saved)
        need_dx = ctx.needs_input_grad[0]
        dnormed, du, grads_b = block.qkv.backward(dqkv, u, need_dx)
        hat = rms_hat(x, inverse)
        grads = interleave(block.qkv.grads_of_a(du, hat, block.norm_weight), grads_b)
        dx = None
        if dnormed is not None:
            dx = rms_backward(dnormed, hat, inverse, block.norm_weight).add_(dy).to(x.dtype)
        return (dx, None, None, *grads, *grads_out)


class _MlpFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: MlpBlock, *parameters: Tensor) -> Tensor:
        normed, inverse = rms_forward(x, block.norm_weight, block.eps)
        gate_up, u = block.gate_up.forward(normed)
        gate, up = gate_up.chunk(2, -1)
        hidden = torch.nn.functional.silu(gate).mul_(up)
        y, u_down = block.down.forward(hidden)
        ctx.block = block
        ctx.save_for_backward(x, inverse, u, gate_up, u_down)
        return y.add_(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        block: MlpBlock = ctx.block
        x, inverse, u, gate_up, u_down = ctx.saved_tensors
        dhidden, du_down, grads_b_down = block.down.backward(dy, u_down, True)
        assert dhidden is not None
        gate, up = gate_up.chunk(2, -1)
        activated = torch.nn.functional.silu(gate)
        hidden = activated * up
        grads_down = interleave(block.down.grads_of_a(du_down, hidden), grads_b_down)
        # The gradients take the storage of gate and up, which nothing reads after this.
        dgate = torch.mul(dhidden, up, out=hidden)
        torch.mul(dhidden, activated, out=up)
        torch.ops.aten.silu_backward.grad_input(dgate, gate, grad_input=gate)
        need_dx = ctx.needs_input_grad[0]
        dnormed, du, grads_b = block.gate_up.backward(gate_up, u, need_dx)
        hat = rms_hat(x, inverse)
        grads = interleave(block.gate_up.grads_of_a(du, hat, block.norm_weight), grads_b)
        dx = None
        if dnormed is not None:
            dx = rms_backward(dnormed, hat, inverse, block.norm_weight).add_(dy).to(x.dtype)
        return (dx, None, *grads, *grads_down)
