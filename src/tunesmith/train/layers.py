"""Which decoder layers get adapters when only the upper ones are trained."""

from __future__ import annotations

import re
from typing import Any

from tunesmith.errors import ConfigError

__all__ = ["only_layers", "upper_layers"]

LAYER_OF = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")
"""PEFT's own way to find a module's layer when no pattern is given: the first number in its name."""


def upper_layers(model: Any, layers: int | None) -> range | None:
    """Indices of the last `layers` decoder layers; None, which means all, when it is None.

    Raises:
        ConfigError: the model has fewer.
    """
    if layers is None:
        return None
    count = int(model.config.get_text_config().num_hidden_layers)
    if layers > count:
        raise ConfigError(
            f"train.method.layers = {layers}, but the model has {count} decoder layers",
            why="adapters can only go into layers that are there",
            fix=f"--set train.method.layers={count} or less, or leave it out for all layers",
        )
    return range(count - layers, count)


def only_layers(model: Any, targets: str | tuple[str, ...], wanted: range | None) -> dict[str, Any]:
    """PEFT's settings for adapters on `targets` in the `wanted` layers.

    PEFT takes a list of layers only beside names, so `all-linear` is spelled out: the names of all
    linear layers that lie in a wanted layer (the head lies in none).

    Raises:
        ConfigError: a target names no linear layer of any wanted layer.
    """
    import torch

    if wanted is None:
        return {"target_modules": targets if isinstance(targets, str) else list(targets)}
    inside: set[str] = set()
    for name, module in model.named_modules():
        found = LAYER_OF.match(f"{name}.")
        if isinstance(module, torch.nn.Linear) and found and int(found["index"]) in wanted:
            inside.add(name.rpartition(".")[2])
    names = sorted(inside) if isinstance(targets, str) else list(targets)
    absent = [name for name in names if name not in inside]
    if absent:
        raise ConfigError(
            f"train.method.targets names {', '.join(absent)}, which the last {len(wanted)} layers do not have",
            why=f"train.method.layers = {len(wanted)} leaves the layers below without adapters",
            fix=f"use all-linear or some of: {', '.join(sorted(inside))}; or raise train.method.layers",
        )
    return {"target_modules": names, "layers_to_transform": list(wanted)}
