"""NF4 linear layers in a base model.

While it is loaded no more than one of them is dense, unless its files name weights otherwise than
the model does or were quantised before: then it is loaded whole first (`models.frozen`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError
from tunesmith.models.frozen import load_frozen
from tunesmith.models.load import BaseModel

if TYPE_CHECKING:
    import torch

__all__ = ["Nf4Format", "load_nf4", "original_weights", "quantise_linears"]


@dataclass(frozen=True)
class Nf4Format:
    """How weights are quantised.

    Attributes:
        block_size: neighbouring weights that share one absmax.
        double_quant: keep the absmax in 8 bits too.
    """

    block_size: int = 64
    double_quant: bool = True


def load_nf4(base: BaseModel, dtype: torch.dtype, form: Nf4Format) -> Any:
    """The causal language model with NF4 linear layers, on the CPU, in evaluation mode.

    Quantised are all linear layers but the output head, from the precision they are stored in; a
    layer that is no whole number of blocks, or whose weight the family's code reads (`packed.weight_is_read`),
    stays as `load_frozen` keeps it, as do embeddings, norms and the head.

    Raises:
        ModelError: unknown architecture, damaged or missing weights, or nothing to quantise.
    """
    from tunesmith.models.nf4 import Nf4Linear

    model = load_frozen(base, dtype, lambda model: quantise_linears(model, dtype, form))
    if not any(isinstance(module, Nf4Linear) for module in model.modules()):
        raise ModelError(
            f"no linear layer of {base.name} can be quantised",
            why=f"none is a whole number of {form.block_size} weights",
            fix="use train.method.kind: lora",
        )
    return model


def quantise_linears(model: Any, dtype: torch.dtype, form: Nf4Format) -> None:
    """Replace the linear layers of a model by NF4 ones, one after the other.

    Those of a model without weights take theirs over when they are read.
    """
    for name, linear in _linears(model, form).items():
        replacement = _replacement(linear, dtype, form)
        if linear.weight.device.type != "meta":
            replacement.quantise(linear.weight)
        _put(model, name, replacement)


@contextmanager
def original_weights(model: Any) -> Iterator[bool]:
    """While the block runs, NF4 layers read their weights as stored, from the file, at each use.

    Gives False, and changes nothing, when not every one of them came straight from a file.
    """
    from tunesmith.models.nf4 import Nf4Linear

    layers = [module for module in model.modules() if isinstance(module, Nf4Linear)]
    can = all(layer.original is not None for layer in layers)
    for layer in layers:
        layer.reads_original = can
    try:
        yield can
    finally:
        for layer in layers:
            layer.reads_original = False


def _linears(model: Any, form: Nf4Format) -> dict[str, torch.nn.Linear]:
    """The layers that are quantised, by name."""
    from torch import nn

    from tunesmith.models.packed import weight_is_read

    head, read = model.get_output_embeddings(), weight_is_read(model)
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module is not head
        and name.rpartition(".")[2] not in read
        and module.weight.numel() % form.block_size == 0
    }


def _replacement(linear: torch.nn.Linear, dtype: torch.dtype, form: Nf4Format) -> Any:
    from tunesmith.models.nf4 import Nf4Linear

    return Nf4Linear(
        linear.in_features,
        linear.out_features,
        linear.bias,
        block_size=form.block_size,
        double_quant=form.double_quant,
        compute_dtype=dtype,
    )


def _put(model: Any, name: str, module: Any) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
