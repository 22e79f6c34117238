"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174), layer by layer and part by part.

A layer that is marked keeps only its input, or all but the inside of its MLP part, and computes the
rest again in the backward pass. The same kernels on the same numbers: gradients are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.models.memory import Recompute
from tunesmith.train.fast.trunk import decoder_layers, frozen_layers

__all__ = ["layers_of", "recomputed", "set_recompute"]

MLP_MARK = "tunesmith_recompute_mlp"
FORWARD_BEFORE = "tunesmith_forward_before"


def layers_of(model: Any) -> list[nn.Module]:
    """The decoder layers that have a backward pass, from the bottom; empty when there is no list of them."""
    layers = decoder_layers(model)
    return [] if layers is None else list(layers)[frozen_layers(model) :]


def set_recompute(model: Any, recompute: Recompute) -> None:
    """Mark the lowest layers that are trained; what was marked before is forgotten.

    `apply` comes before this. The backward pass of a model on the fast path belongs inside of its
    `in_step`, as the second forward pass needs the same segments.
    """
    keep_random = _draws(model)
    for index, layer in enumerate(layers_of(model)):
        _clear(layer)
        mlp = getattr(layer, "mlp", None)
        if index < recompute.whole:
            _wrap(layer, keep_random)
        elif index < recompute.mlp and isinstance(mlp, nn.Module):
            object.__setattr__(layer, MLP_MARK, True)
            _wrap(mlp, keep_random)


def recomputed(layer: Any, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """`function(*args)`, which draws nothing, made again in the backward pass if the layer is marked so."""
    if not getattr(layer, MLP_MARK, False) or not torch.is_grad_enabled():
        return function(*args)
    result: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result


def _draws(model: nn.Module) -> bool:
    """Whether a forward pass may use the random state, which a second pass must then find as it was."""
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
    rate = float(getattr(getattr(model, "config", None), "attention_dropout", 0.0) or 0.0)
    return drops or rate > 0


def _clear(layer: nn.Module) -> None:
    if getattr(layer, MLP_MARK, False):
        object.__delattr__(layer, MLP_MARK)
    for module in (layer, getattr(layer, "mlp", None)):
        if module is None or FORWARD_BEFORE not in module.__dict__:
            continue
        before = module.__dict__.pop(FORWARD_BEFORE)
        module.__dict__.pop("forward", None)
        if before is not None:
            module.forward = before


def _wrap(module: Any, keep_random: bool) -> None:
    swapped = module.__dict__.get("forward")
    forward = module.forward

    def forward_again(*args: Any, **kwargs: Any) -> Any:
        if not module.training or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(
            forward, *args, use_reentrant=False, preserve_rng_state=keep_random, **kwargs
        )

    module.__dict__[FORWARD_BEFORE] = swapped
    module.forward = forward_again
