"""Frozen linear layers whose weight is kept in another form and made dense at each use."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PackedLinear", "weight_is_read"]

FAMILIES = "transformers.models."
QUOTED = re.compile(r'"[^"\n]*"')
READ = re.compile(r"\.(\w+)\.weight\b")


def weight_is_read(model: Any) -> frozenset[str]:
    """Names of child layers of which the family's own code reads `.weight`, beside calling the layer.

    `state = state.to(self.gate.weight.dtype)` would cast to the integers that a packed layer holds: such
    a layer must stay as it is. Found in the source, so a layer is named here too when the code only
    initialises it.
    """
    modules = {type(module).__module__ for module in model.modules()}
    sources = (inspect.getsource(sys.modules[m]) for m in modules if m.startswith(FAMILIES))
    return frozenset(name for text in sources for name in READ.findall(QUOTED.sub("", text)))


class PackedLinear(nn.Linear):
    """A frozen linear layer that keeps its (out, in) weight in a form of its own.

    `weight` holds that form in an integer type, so that nothing casts it or takes it for numbers to
    compute with. The forward pass is that of `torch.nn.Linear` on the dense weight, which the
    backward pass makes again: nothing is kept for it. No gradient of weight or bias is made.

    Args:
        in_features, out_features: of the layer.
        bias: kept in the compute type; None for none.
        compute_dtype: of the products.
    """

    compute_dtype: torch.dtype

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None,
        compute_dtype: torch.dtype,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.compute_dtype = compute_dtype
        self.register_parameter("weight", None)  # first, as in a plain layer's state
        self.register_parameter("bias", bias)

    def write_dense(self, out: Tensor) -> None:
        """The dense weight into `out`, contiguous (out, in) of any floating type."""
        raise NotImplementedError

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The dense (out, in) weight."""
        out = torch.empty(
            self.out_features, self.in_features, dtype=dtype, device=self.weight.device
        )
        self.write_dense(out)
        return out

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out) in the type of the input."""
        result: Tensor = _DenseProduct.apply(input, self.bias, self)  # type: ignore[no-untyped-call]
        return result

    def product(self, x: Tensor) -> Tensor:
        """x Wᵀ + bias, (..., in) -> (..., out), without a graph."""
        return torch.nn.functional.linear(x, self.dense(x.dtype), self.bias)

    def product_back(self, dy: Tensor) -> Tensor:
        """dy W, (..., out) -> (..., in): the gradient of the input, without a graph."""
        return torch.matmul(dy, self.dense(dy.dtype))


class _DenseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None]:
        layer: PackedLinear = ctx.layer
        return (layer.product_back(dy) if ctx.needs_input_grad[0] else None), None, None
