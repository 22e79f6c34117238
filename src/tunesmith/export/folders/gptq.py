"""The form `gptq`: each rounded column's error is made good by the columns that follow.

Frantar et al. 2022, arXiv 2210.17323, with two settings of its authors' code: columns in the order of
their inputs' size (`act_order`; the groups stay those of the matrix as it is, so that no index is
stored), and group ranges by least error (`mse`). Written in compressed-tensors' format, see packed.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError, reason_of
from tunesmith.export.folders.calibrate import Layers, Shared, open_layers, shared_inputs
from tunesmith.export.folders.packed import (
    BITS,
    HIGH,
    LOW,
    Grid,
    Quantised,
    fit,
    group_size,
    save_packed,
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

__all__ = ["answers", "gptq", "open_form", "write_gptq"]

DAMPING = 0.01
"""Share of the mean diagonal that is added to the Hessian; the paper's."""
BLOCK = 128
"""Columns whose errors are gathered before they go to the columns behind; the paper's."""


def write_gptq(sources: Sources, target: Path) -> Mapping[str, Any]:
    """4 bits a weight with zero points, in groups of 128, 64 or 32.

    Raises:
        ModelError: the matrices cannot be cut into groups, or numbers that are not finite come.
        EnvironmentProblem: the package that reads the format is not installed.
        StorageError: the disk refuses.
    """
    require("gptq", "export", "compressed_tensors")
    import torch

    began, stored = time.monotonic(), stored_format(sources)
    layers = open_layers(sources.merged, sources.calibration)
    size = group_size(layers.model, "gptq")
    matrices: dict[str, Quantised] = {}
    with torch.inference_mode():
        for index in range(len(layers.blocks)):
            for shared in shared_inputs(layers, index)[0]:
                matrices |= _group(layers, index, shared, size, stored)
            # The next layer's statistics are of what the quantised one makes.
            layers.advance(index)
    scheme = {"symmetric": False, "group_size": size, "actorder": "static"}
    save_packed(sources, target, layers.model, matrices, scheme)
    return {
        "bits": BITS,
        "group_size": size,
        "symmetric": False,
        "format": "compressed-tensors pack-quantized",
        "rest": str(stored).removeprefix("torch."),
        "calibration_rows": layers.rows,
        "seconds": round(time.monotonic() - began, 1),
        "packages": versions("torch", "compressed-tensors"),
    }


def _group(
    layers: Layers, index: int, shared: Shared, size: int, stored: torch.dtype
) -> dict[str, Quantised]:
    """Quantise the linear layers that read one tensor, and put what is left of them in place."""
    block = layers.blocks[index]
    names = {id(module): name for name, module in layers.model.named_modules()}
    found = {}
    for name in shared.names:
        module = block.get_submodule(name)
        weight = module.weight.data
        grid = fit(weight, size, stored, shared.gram.diagonal(), symmetric=False)
        matrix = Quantised(gptq(weight, shared.gram, grid), grid)
        module.weight.data = grid.weight(matrix.numbers)
        found[names[id(module)]] = matrix
    return found


def gptq(weight: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Numbers (outputs, inputs) int8 such that `(weight' - weight) X` is small, not `weight' - weight`.

    Args:
        weight: (outputs, inputs) float32.
        gram: (inputs, inputs), the sum of x x^T over the calibration tokens.
        grid: where the numbers lie.

    Raises:
        ModelError: the statistics are not finite.
    """
    import torch

    size = weight.shape[1] // grid.scale.shape[1]
    order = gram.diagonal().argsort(descending=True)
    inverse = _inverse_root(gram[order][:, order])
    rest = weight[:, order].clone()
    group = order // size
    numbers = torch.empty_like(rest, dtype=torch.int8)
    for start in range(0, rest.shape[1], BLOCK):
        end = min(start + BLOCK, rest.shape[1])
        errors = torch.empty(len(rest), end - start)
        for column in range(start, end):
            scale, zero = grid.scale[:, group[column]], grid.zero[:, group[column]]
            number = (rest[:, column] / scale + zero).round_().clamp_(LOW, HIGH)
            numbers[:, column] = number.to(torch.int8)
            error = (rest[:, column] - (number - zero) * scale) / inverse[column, column]
            rest[:, column:end].addr_(error, inverse[column, column:end], alpha=-1)
            errors[:, column - start] = error
        rest[:, end:].addmm_(errors, inverse[start:end, end:], alpha=-1)
    return numbers[:, order.argsort()]


def _inverse_root(gram: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse.

    Raises:
        ModelError: the Hessian is not positive, which it is for any finite inputs.
    """
    import torch

    hessian = gram.double()
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean() + 1e-12)
    try:
        root = torch.linalg.cholesky(hessian)
        inverse: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(root), upper=True)
    except RuntimeError as error:  # torch's LinAlgError is one.
        raise ModelError(
            "the model computes numbers that are not finite on the calibration rows",
            why=reason_of(error),
            fix="train again with a lower learning rate, or leave `gptq` out of export.forms",
        ) from error
    return inverse.float()
