"""The form `awq`: inputs that matter are scaled up before rounding, and their producer scaled down.

Lin et al. 2023, arXiv 2306.00978. For linear layers that read one tensor, the factor of input c is
mean|x_c|^a; a is searched on a grid so that the layers' own output errs least (equation 4), and so are
the groups' ranges. The factors are folded into what makes the tensor: the norm before it, or the matrix
whose rows it is. Each fold is tried on a row: one that changes what the layer computes is taken back.
Written in compressed-tensors' format, see packed.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError
from tunesmith.export.folders.calibrate import Layers, Shared, open_layers, shared_inputs
from tunesmith.export.folders.packed import (
    BITS,
    Quantised,
    fit,
    group_size,
    save_packed,
    whole_range,
)
from tunesmith.export.folders.parts import (
    answers,
    open_form,
    require,
    stored_format,
    versions,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tunesmith.export.forms import Sources

__all__ = ["answers", "factors", "open_form", "scale_inputs", "write_awq"]

GRID = 20
"""Exponents 0, 1/20 .. 19/20, as in the authors' code; 0 is no scaling."""
SAME = 1e-3
"""Largest relative difference that a fold may make to a layer's output: rounding of float32."""
_PRODUCERS = {"down_proj": "up_proj", "o_proj": "v_proj"}
"""Matrix -> the matrix whose output rows, one by one, are its inputs up to a factor."""


def write_awq(sources: Sources, target: Path) -> Mapping[str, Any]:
    """4 bits a weight with zero points, in groups of 128, 64 or 32.

    Raises:
        ModelError: the matrices cannot be cut into groups, or numbers that are not finite come.
        EnvironmentProblem: the package that reads the format is not installed.
        StorageError: the disk refuses.
    """
    require("awq", "export", "compressed_tensors")
    import torch

    began, stored = time.monotonic(), stored_format(sources)
    layers = open_layers(sources.merged, sources.calibration)
    size = group_size(layers.model, "awq")
    matrices: dict[str, Quantised] = {}
    scaled = 0
    with torch.inference_mode():
        for index in range(len(layers.blocks)):
            found, changed = _block(layers, index, size, stored)
            matrices |= found
            scaled += changed
    save_packed(sources, target, layers.model, matrices, {"symmetric": False, "group_size": size})
    return {
        "bits": BITS,
        "group_size": size,
        "symmetric": False,
        "scaled_inputs": f"{scaled} of {len(matrices)} matrices",
        "format": "compressed-tensors pack-quantized",
        "rest": str(stored).removeprefix("torch."),
        "calibration_rows": layers.rows,
        "seconds": round(time.monotonic() - began, 1),
        "packages": versions("torch", "compressed-tensors"),
    }


def _block(
    layers: Layers, index: int, size: int, stored: torch.dtype
) -> tuple[dict[str, Quantised], int]:
    """Scale and round one block's matrices; returns them by name, and how many were scaled."""
    block = layers.blocks[index]
    names = {id(module): name for name, module in layers.model.named_modules()}
    # What the next block reads is made before anything is rounded, as in the authors' code.
    found, states = shared_inputs(layers, index)
    scaled = sum(scale_inputs(layers, index, shared, size, stored) for shared in found)
    matrices = {}
    for shared in found:
        for name in shared.names:
            module = block.get_submodule(name)
            grid = fit(module.weight.data, size, stored, shared.gram.diagonal(), symmetric=False)
            numbers = grid.round(module.weight.data)
            matrices[names[id(module)]] = Quantised(numbers, grid)
    layers.states = states
    return matrices, scaled


def scale_inputs(layers: Layers, index: int, shared: Shared, size: int, stored: torch.dtype) -> int:
    """Scale the inputs of the layers that read one tensor; returns how many matrices it changed."""
    block = layers.blocks[index]
    modules = [block.get_submodule(name) for name in shared.names]
    factor = factors([m.weight.data for m in modules], shared, size, stored)
    if bool((factor == 1).all()):
        return 0
    for fold in _folds(block, shared):
        if _folded(layers, index, modules, fold, factor):
            # The statistics follow: each input is divided by its factor now.
            shared.gram.div_(factor[:, None]).div_(factor[None])
            return len(modules)
    return 0


def factors(weights: list[Tensor], shared: Shared, size: int, stored: torch.dtype) -> Tensor:
    """The factor of each input, by which the weights are multiplied: that of least output error.

    Args:
        weights: matrices (outputs, inputs) that read the tensor.
        shared: its statistics.
        size: inputs a group.
        stored: number format of the scales.
    """
    import torch

    weight = torch.cat(weights)
    best = torch.ones(weight.shape[1])
    least = torch.inf
    for step in range(GRID):
        factor = shared.magnitude.clamp_min(1e-4) ** (step / GRID)
        factor = factor / (factor.max() * factor.min()).sqrt()
        larger = weight * factor
        grid = whole_range(larger, size, stored, symmetric=False)
        off = grid.weight(grid.round(larger)).div_(factor).sub_(weight)
        error = float(((off @ shared.gram) * off).sum())
        if error < least:
            best, least = factor if step else torch.ones_like(factor), error
    if least == torch.inf:
        raise ModelError(
            "the model computes numbers that are not finite on the calibration rows",
            fix="train again with a lower learning rate, or leave `awq` out of export.forms",
        )
    return best


def _folds(block: Any, shared: Shared) -> list[Any]:
    """Ways to divide the tensor that `shared` reads: each is a function of the factor."""
    if shared.norm is not None:
        norm = block.get_submodule(shared.norm)
        # Gemma's norms multiply by 1 + weight.
        return [
            [(norm.weight, lambda w, f: w / f)],
            [(norm.weight, lambda w, f: (1 + w) / f - 1)],
        ]
    if len(shared.names) != 1:
        return []
    parent, _, name = shared.names[0].rpartition(".")
    producer = dict(block.named_modules()).get(f"{parent}.{_PRODUCERS.get(name, '')}".lstrip("."))
    wanted = block.get_submodule(shared.names[0]).in_features
    if producer is None or getattr(producer, "out_features", 0) != wanted:
        return []  # With fewer key-value heads than heads, a value row feeds several inputs.
    changes = [(producer.weight, lambda w, f: w / f[:, None])]
    if producer.bias is not None:
        changes.append((producer.bias, lambda w, f: w / f))
    return [changes]


def _folded(layers: Layers, index: int, modules: list[Any], fold: Any, factor: Tensor) -> bool:
    """Scale and fold, unless the layer then computes something else."""
    before = layers.output(index, 0)
    changes = [*fold, *((m.weight, lambda w, f: w * f) for m in modules)]
    kept = [(weight, weight.data) for weight, _ in changes]
    for weight, change in changes:
        weight.data = change(weight.data, factor)
    after = layers.output(index, 0)
    if float((after - before).norm()) <= SAME * float(before.norm()):
        return True
    for weight, data in kept:
        weight.data = data
    return False
