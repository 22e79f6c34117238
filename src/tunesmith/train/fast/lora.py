"""Frozen linear layers with LoRA adapters that share one input, and their hand-written gradient.

    y_i = x W_iᵀ + bias_i + s_i (x A_iᵀ) B_iᵀ        (Hu et al. 2021, arXiv 2106.09685, equation 3)

W is frozen, so no gradient of it is made and nothing is kept for one; kept are x (once for all
members) and u = x Aᵀ. A and B stay in their own precision (fp32 masters) and are cast to the
precision of the products. W is a dense matrix, or 16 bits beside fp32 products, or NF4 (Dettmers et
al. 2023, arXiv 2305.14314); the latter two are made dense at each use, forward and backward, in one
piece of memory that all groups share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.nf4 import Nf4Linear
from tunesmith.models.packed import PackedLinear
from tunesmith.train.fast.kernels import find_kernels

__all__ = ["LoraGroup", "Projection", "linear_with_lora", "read_projection"]

Grads = list[Tensor | None]


@dataclass
class Projection:
    """One linear layer: frozen (out, in) weight, optional bias, optional adapter A (r, in), B (out, r).

    The base is a plain linear layer or one that keeps its weight in another form.
    """

    base: nn.Linear
    a: nn.Parameter | None
    b: nn.Parameter | None
    scale: float


def read_projection(module: nn.Module) -> Projection | str:
    """The parts of a plain or PEFT linear layer, or the reason why the fast path cannot hold for it."""
    if type(module) is nn.Linear or isinstance(module, PackedLinear):
        return _checked(Projection(module, None, None, 0.0))
    from peft.tuners.lora.layer import Linear as LoraLinear

    if type(module) is not LoraLinear:
        return f"{type(module).__name__} is not a plain linear layer"
    reason = _lora_obstacle(module)
    if reason:
        return reason
    layer: Any = module
    name = layer.active_adapters[0]
    a, b = layer.lora_A[name], layer.lora_B[name]
    return _checked(Projection(layer.base_layer, a.weight, b.weight, float(layer.scaling[name])))


def _lora_obstacle(module: Any) -> str | None:
    names = list(module.active_adapters)
    if len(names) != 1:
        return f"{len(names)} active adapters"
    name = names[0]
    checks = {
        "the adapter is merged": module.merged,
        "adapters are disabled": module.disable_adapters,
        "not an adapter of this layer": name not in module.lora_A,
        "variant of LoRA (DoRA or other)": name in module.lora_variant,
        "adapter with a bias": name in module.lora_B and module.lora_B[name].bias is not None,
        "LoRA dropout": name in module.lora_dropout
        and not isinstance(module.lora_dropout[name], nn.Identity),
        "weight stored transposed": module.fan_in_fan_out,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _checked(projection: Projection) -> Projection | str:
    base = projection.base
    if type(base) is not nn.Linear and not isinstance(base, PackedLinear):
        return f"{type(base).__name__} is not a plain linear layer"
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "the base weight is trained"
    if not isinstance(base, PackedLinear) and not base.weight.is_floating_point():
        return f"weight of type {base.weight.dtype}"
    return projection


class LoraGroup:
    """Projections of one input, with their frozen weights one below the other.

    Dense weights lie in one matrix, of which the layers' own become views: nothing is stored twice.
    Weights in another form stay where they are.

    Attributes:
        in_features, out_features: columns of the input, and of all outputs together.
        dtype, device: of the products.
    """

    def __init__(self, projections: Sequence[Projection]) -> None:
        self.projections = list(projections)
        bases = [projection.base for projection in projections]
        self.sizes = [base.out_features for base in bases]
        self.in_features = bases[0].in_features
        self.out_features = sum(self.sizes)
        self.dtype, self.device = _compute_type(bases[0]), bases[0].weight.device
        self._matrix = None if any(isinstance(b, PackedLinear) for b in bases) else _joined(bases)
        self._held = [base.weight.data_ptr() for base in bases]
        self.bias = _joined_bias(bases, self.dtype)
        self.trained = [p for p in projections if p.a is not None]
        self.parameters = [w for p in self.trained for w in (p.a, p.b) if w is not None]

    @property
    def weight(self) -> Tensor:
        """(sum of outputs, in). One that is made dense is only good until a group's weight is next read."""
        if self._matrix is not None:
            return self._matrix
        return _made_dense([projection.base for projection in self.projections], self.dtype)

    def is_current(self) -> bool:
        """False when a layer's weight was replaced (moved, cast, merged) after the group was made."""
        bases = [projection.base for projection in self.projections]
        return self._held == [base.weight.data_ptr() for base in bases] and self.dtype == (
            _compute_type(bases[0])
        )

    def release(self) -> None:
        """Give each layer a weight of its own again."""
        if self._matrix is not None and len(self.projections) > 1:
            for projection in self.projections:
                projection.base.weight.data = projection.base.weight.data.clone()

    def stacked_a(self) -> Tensor:
        """(sum of ranks, in) in the precision of the products."""
        dtype = self.dtype
        rows = [p.a.detach() for p in self.trained if p.a is not None]
        return rows[0].to(dtype) if len(rows) == 1 else torch.cat(rows).to(dtype)

    def slices(self) -> list[tuple[Projection, slice, slice]]:
        """For each adapted projection: itself, its columns of y, its columns of u."""
        out, column, rank = [], 0, 0
        for projection, size in zip(self.projections, self.sizes, strict=True):
            if projection.b is not None:
                width = projection.b.shape[1]
                out.append((projection, slice(column, column + size), slice(rank, rank + width)))
                rank += width
            column += size
        return out

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(n, in) -> y (n, sum of outputs), written into `y` when given, and u (n, sum of ranks)."""
        weight = self.weight.t()
        y = torch.mm(x, weight) if y is None else torch.mm(x, weight, out=y)
        if self.bias is not None:
            y += self.bias
        if not self.trained:
            return y, None
        u = torch.mm(x, self.stacked_a().t())
        for projection, columns, ranks in self.slices():
            assert projection.b is not None
            b = projection.b.detach().to(y.dtype)
            y[:, columns].addmm_(u[:, ranks], b.t(), alpha=projection.scale)
        return y, u

    def backward(
        self, dy: Tensor, u: Tensor | None, need_dx: bool, dx: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Grads]:
        """Gradients of `forward` from dy: dx (into `dx` when given), du, and dB of each adapter.

        dA needs the input again and comes from `grads_of_a`.
        """
        du, grads_b = None, []
        if u is not None:
            du = dy.new_empty(u.shape)
            for projection, columns, ranks in self.slices():
                assert projection.b is not None
                part, b = dy[:, columns], projection.b.detach().to(dy.dtype)
                torch.mm(part, b, out=du[:, ranks])
                grad = torch.mm(u[:, ranks].t(), part).t()
                grads_b.append(grad.to(projection.b.dtype) * projection.scale)
                du[:, ranks] *= projection.scale
        if not need_dx:
            return None, du, list(grads_b)
        dx = torch.mm(dy, self.weight) if dx is None else torch.mm(dy, self.weight, out=dx)
        if du is not None:
            dx.addmm_(du, self.stacked_a())
        return dx, du, list(grads_b)

    def grads_of_a(self, du: Tensor | None, x: Tensor, column_scale: Tensor | None = None) -> Grads:
        """dA of each adapter; x is (n, in) up to a factor a column, which is applied to the result."""
        if du is None:
            return []
        grad = torch.mm(du.t(), x)
        if column_scale is not None:
            grad *= column_scale
        ranks = [p.a.shape[0] for p in self.trained if p.a is not None]
        parts = torch.split(grad, ranks)
        return [
            part.to(p.a.dtype)
            for p, part in zip(self.trained, parts, strict=True)
            if p.a is not None
        ]


def _compute_type(base: nn.Linear) -> torch.dtype:
    return base.compute_dtype if isinstance(base, PackedLinear) else base.weight.dtype


def _joined(bases: Sequence[nn.Linear]) -> Tensor:
    """One matrix of all weights; the layers' own become views of it."""
    if len(bases) == 1:
        return bases[0].weight.detach()
    matrix = torch.cat([base.weight.detach() for base in bases])
    sizes = [base.out_features for base in bases]
    for base, part in zip(bases, torch.split(matrix, sizes), strict=True):
        base.weight.data = part
    return matrix


def _joined_bias(bases: Sequence[nn.Linear], dtype: torch.dtype) -> Tensor | None:
    if all(base.bias is None for base in bases):
        return None
    parts = [
        base.weight.new_zeros(base.out_features, dtype=dtype)
        if base.bias is None
        else base.bias.detach()
        for base in bases
    ]
    return torch.cat(parts)


_scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}
"""Memory for the dense weight in use, as large as the largest group's."""


def _made_dense(bases: Sequence[nn.Linear], dtype: torch.dtype) -> Tensor:
    """All weights one below the other, (sum of outputs, in), in memory that the next call reuses."""
    width, rows = bases[0].in_features, sum(base.out_features for base in bases)
    device = bases[0].weight.device
    held = _scratch.get((dtype, device))
    if held is None or held.numel() < rows * width:
        held = _scratch[dtype, device] = torch.empty(rows * width, dtype=dtype, device=device)
    matrix = held[: rows * width].view(rows, width)
    sizes = [base.out_features for base in bases]
    for base, part in zip(bases, torch.split(matrix, sizes), strict=True):
        if isinstance(base, Nf4Linear):
            _dequantise(base, part)
        elif isinstance(base, PackedLinear):
            base.write_dense(part)
        else:
            part.copy_(base.weight.detach())
    return matrix


def _dequantise(base: Nf4Linear, out: Tensor) -> None:
    kernels = find_kernels(out)
    if kernels is None or base.reads_original:
        base.write_dense(out)
        return
    scales = base.block_scales()
    kernels("nf4_dense", base.weight.detach(), scales, scales.numel(), base.block_size, out)


def interleave(grads_a: Grads, grads_b: Grads) -> Grads:
    """Gradients in the order of `LoraGroup.parameters`: A, B of the first adapter, then the next."""
    return [grad for pair in zip(grads_a, grads_b, strict=True) for grad in pair]


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: LoraGroup, *parameters: Tensor) -> Tensor:
        flat = x.reshape(-1, group.in_features)
        y, u = group.forward(flat)
        ctx.group, ctx.shape = group, x.shape
        ctx.save_for_backward(flat, u)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        group: LoraGroup = ctx.group
        flat, u = ctx.saved_tensors
        dy = dy.reshape(flat.shape[0], -1)
        dx, du, grads_b = group.backward(dy, u, ctx.needs_input_grad[0])
        grads = interleave(group.grads_of_a(du, flat), grads_b)
        return (None if dx is None else dx.view(ctx.shape), None, *grads)


def linear_with_lora(x: Tensor, group: LoraGroup) -> Tensor:
    """(..., in) -> (..., sum of outputs), with gradients of x and of the adapters."""
    result: Tensor = _LinearFunction.apply(x, group, *group.parameters)  # type: ignore[no-untyped-call]
    return result
