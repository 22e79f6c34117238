"""The two halves of a Llama-shaped decoder layer, each as one autograd function.

Kept for the backward pass: the input (which the layer below holds anyway), its norm's factor a
position, the joint projections, the adapters' small products and, where the C++ kernels run, the
logarithm of the softmax's sum for each head and position. The normed rows, the product of SwiGLU
(Shazeer 2020, arXiv 2002.05202), scores, weights and output of attention are made again. What is
kept grows with the positions of the micro batch and with nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.train.fast.gated import gated_backward, gated_forward
from tunesmith.train.fast.lora import Grads, LoraGroup, interleave
from tunesmith.train.fast.norm import rms_backward, rms_forward
from tunesmith.train.fast.segments import SegmentPlan

__all__ = ["AttentionBlock", "MlpBlock", "attention_block", "mlp_block"]


@dataclass(frozen=True)
class AttentionBlock:
    """Weights of norm, joint q/k/v projection and output projection."""

    norm_weight: Tensor
    eps: float
    qkv: LoraGroup
    out: LoraGroup


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
        qkv = _with_zero_row(x.shape[0], x, block.qkv.out_features)
        _, u = block.qkv.forward(normed, qkv[:-1])
        heads, kept = plan.attend(qkv)
        y, u_out = block.out.forward(heads)
        ctx.block, ctx.plan = block, plan
        ctx.save_for_backward(x, inverse, u, u_out, qkv, kept)
        return y.add_(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        block: AttentionBlock = ctx.block
        x, inverse, u, u_out, qkv, kept = ctx.saved_tensors
        dy = dy.contiguous()
        dheads = _with_zero_row(x.shape[0], x, block.out.in_features)
        _, du_out, grads_b_out = block.out.backward(dy, u_out, True, dheads[:-1])
        heads, dqkv = ctx.plan.attend_backward(qkv, dheads, kept)
        grads_out = interleave(block.out.grads_of_a(du_out, heads), grads_b_out)
        dx, grads = _through_norm(block.qkv, block.norm_weight, dqkv, (x, inverse, u), dy, ctx)
        return (dx, None, None, *grads, *grads_out)


class _MlpFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: MlpBlock, *parameters: Tensor) -> Tensor:
        normed, inverse = rms_forward(x, block.norm_weight, block.eps)
        gate_up, u = block.gate_up.forward(normed)
        y, u_down = block.down.forward(gated_forward(gate_up))
        ctx.block = block
        ctx.save_for_backward(x, inverse, u, gate_up, u_down)
        return y.add_(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        block: MlpBlock = ctx.block
        x, inverse, u, gate_up, u_down = ctx.saved_tensors
        dy = dy.contiguous()
        dhidden, du_down, grads_b_down = block.down.backward(dy, u_down, True)
        assert dhidden is not None
        # The gradients take the storage of gate and up, which nothing reads after this.
        hidden = gated_backward(dhidden, gate_up)
        grads_down = interleave(block.down.grads_of_a(du_down, hidden), grads_b_down)
        dx, grads = _through_norm(
            block.gate_up, block.norm_weight, gate_up, (x, inverse, u), dy, ctx
        )
        return (dx, None, *grads, *grads_down)


def _through_norm(
    group: LoraGroup,
    norm_weight: Tensor,
    dy: Tensor,
    kept: tuple[Tensor, Tensor, Tensor | None],
    residual: Tensor,
    ctx: Any,
) -> tuple[Tensor | None, Grads]:
    """Backward through projections of normed rows: gradient of x plus `residual`, and the adapters'."""
    x, inverse, u = kept
    dnormed, du, grads_b = group.backward(dy, u, ctx.needs_input_grad[0])
    if du is not None:
        # The normed rows are x * inverse * weight: the factor a row goes to the narrow side.
        du.mul_(inverse)
    grads = interleave(group.grads_of_a(du, x, norm_weight), grads_b)
    dx = None
    if dnormed is not None:
        dx = rms_backward(dnormed, x, inverse, norm_weight, residual)
    return dx, grads
