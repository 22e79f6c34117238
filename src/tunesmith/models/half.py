"""Frozen weights in the 16 bits that they have in the model's file, for products in fp32.

Widening bf16 or fp16 to fp32 is exact, so every result is that of fp32 weights in memory; the
weights take half. A weight that is stored in fp32 is kept in 16 bits when each of its values is a
number of bf16, or each one of fp16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.packed import PackedLinear, weight_is_read

__all__ = [
    "HalfEmbedding",
    "HalfLinear",
    "exact_half",
    "frozen_weight",
    "halvable",
    "halve",
    "put_half",
    "slabs",
]

CHECKED = 1 << 20
"""Values that are compared at a time."""
SLAB_ENTRIES = 1 << 18
"""Weights that are widened at a time in a large product: 1 MiB, which stays in a core's cache."""
SLAB_ENTRIES_ELSEWHERE = 1 << 24
"""The same on a device on which many small products are slow."""
MULTIPLE = 64
"""Rows of a slab are a multiple of this."""


def exact_half(weight: Tensor) -> Tensor | None:
    """The weight in a 16-bit type that has each of its values; None when neither bf16 nor fp16 does."""
    if weight.dtype in (torch.bfloat16, torch.float16):
        return weight
    if weight.dtype != torch.float32:
        return None
    flat = weight.detach().reshape(-1)
    for dtype in (torch.bfloat16, torch.float16):
        starts = range(0, flat.numel(), CHECKED)
        parts = (flat[start : start + CHECKED] for start in starts)
        if all(torch.equal(part.to(dtype).float(), part) for part in parts):
            return weight.detach().to(dtype)
    return None


def slabs(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a frozen (rows, columns) weight in `dtype`, slab by slab.

    A narrower weight is widened into memory that the next slab reuses. The slabs of a shape are the
    same for any weight type, so sums over them are too. Sums in a type other than fp32 would be
    rounded at each slab: there the slab is the whole weight.
    """
    rows, columns = weight.shape
    on_cpu = weight.device.type == "cpu"
    entries = SLAB_ENTRIES if on_cpu else SLAB_ENTRIES_ELSEWHERE
    step = max(entries // columns // MULTIPLE, 1) * MULTIPLE
    step = min(step, rows) if dtype == torch.float32 else rows
    same = weight.dtype == dtype
    held = weight if same else torch.empty(step, columns, dtype=dtype, device=weight.device)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        if same:
            yield part, weight[part]
        else:
            yield part, held[: part.stop - start].copy_(weight[part])


def frozen_weight(linear: nn.Linear) -> Tensor:
    """The (out, in) weight of a plain or 16-bit layer, in the type that it is kept in."""
    return linear.narrow if isinstance(linear, HalfLinear) else linear.weight.detach()


class HalfLinear(PackedLinear):
    """A frozen linear layer whose weight is kept in 16 bits and widened to fp32 at each use.

    Args:
        weight: the 16 bits, as int16 (out, in); another layer may have the same.
        dtype: what they are: bf16 or fp16.
        bias: fp32, or None.
    """

    def __init__(
        self, weight: nn.Parameter, dtype: torch.dtype, bias: nn.Parameter | None = None
    ) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias, torch.float32)
        self.weight, self.stored_dtype = weight, dtype

    @property
    def narrow(self) -> Tensor:
        """The (out, in) weight in its 16-bit type; no copy."""
        return self.weight.detach().view(self.stored_dtype)

    def write_dense(self, out: Tensor) -> None:
        """The widened weight into `out`, contiguous (out, in)."""
        out.copy_(self.narrow)

    def product(self, x: Tensor) -> Tensor:
        """x Wᵀ + bias; the whole weight is never dense."""
        y = x.new_empty(*x.shape[:-1], self.out_features)
        for part, weight in slabs(self.narrow, x.dtype):
            bias = None if self.bias is None else self.bias[part]
            y[..., part] = torch.nn.functional.linear(x, weight, bias)
        return y

    def extra_repr(self) -> str:
        """Sizes and format."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, kept in {self.stored_dtype}"


class HalfEmbedding(nn.Embedding):
    """A frozen embedding that is kept in 16 bits; the rows that are looked up come in fp32.

    Args:
        weight: the 16 bits, as int16 (entries, width); another layer may have the same.
        dtype: what they are: bf16 or fp16.
        padding_idx: as the plain layer has it.
    """

    def __init__(
        self, weight: nn.Parameter, dtype: torch.dtype, padding_idx: int | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx, self.max_norm, self.norm_type = padding_idx, None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.weight, self.stored_dtype = weight, dtype

    @property
    def narrow(self) -> Tensor:
        """The (entries, width) weight in its 16-bit type; no copy."""
        return self.weight.detach().view(self.stored_dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(...) indices -> (..., width) fp32."""
        return torch.nn.functional.embedding(input, self.narrow).float()


Places = dict[int, list[tuple[str, nn.Module]]]
"""Id of a weight -> names and modules of the layers that have it."""


def halvable(model: Any) -> Places:
    """The weights that may be kept in 16 bits: of plain linear layers and embeddings alone.

    A subclass may do more with its weight than multiply by it or look rows up, and so may the code of
    the family.
    """
    places: Places = defaultdict(list)
    others = set()
    read = weight_is_read(model)
    for name, module in model.named_modules():
        is_plain = _is_plain(module) and name.rpartition(".")[2] not in read
        for leaf, parameter in module.named_parameters(recurse=False):
            if leaf == "weight" and is_plain:
                places[id(parameter)].append((name, module))
            else:
                others.add(id(parameter))
    return {key: found for key, found in places.items() if key not in others}


def _is_plain(module: nn.Module) -> bool:
    if type(module) is nn.Embedding:
        return module.max_norm is None
    return type(module) is nn.Linear


def put_half(model: Any, places: list[tuple[str, nn.Module]], weight: Tensor) -> None:
    """Replace the layers that share a weight by ones that share it in its 16 bits."""
    bits = nn.Parameter(weight.detach().view(torch.int16), requires_grad=False)
    for name, layer in places:
        new: nn.Module
        if isinstance(layer, nn.Embedding):
            new = HalfEmbedding(bits, weight.dtype, layer.padding_idx)
        else:
            assert isinstance(layer, nn.Linear)
            new = HalfLinear(bits, weight.dtype, layer.bias)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new.train(layer.training))


def halve(model: Any) -> None:
    """Keep the frozen fp32 weights of a loaded model in 16 bits wherever that is exact."""
    for places in halvable(model).values():
        weight: Any = places[0][1].weight
        found = exact_half(weight) if weight.dtype == torch.float32 else None
        if found is not None:
            put_half(model, places, found)
