"""Matrices of 4-bit numbers in groups, written as compressed-tensors' format `pack-quantized`.

The format (package compressed-tensors 0.20, which vLLM and transformers read; `quant_method:
compressed-tensors`, `format: pack-quantized`): for a matrix (outputs, inputs) with groups of inputs
    weight_packed      int32 (outputs, inputs / 8): eight numbers + 8 each, the first in the lowest bits
    weight_scale       (outputs, groups), in the number format of the unquantised weights
    weight_zero_point  int32 (outputs / 8 rounded up, groups), packed along the outputs; asymmetric only
    weight_shape       int64 (2,)
and weight = (number - zero point) * scale, numbers and zero points in -8..7.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError
from tunesmith.export.folders.parts import put_beside, write_config
from tunesmith.store import storage_errors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tunesmith.export.forms import Sources

__all__ = [
    "BITS",
    "HIGH",
    "LOW",
    "Grid",
    "Quantised",
    "fit",
    "group_size",
    "pack",
    "save_packed",
    "whole_range",
]

BITS = 4
LOW, HIGH = -8, 7
GROUPS = (128, 64, 32)
_PER_WORD = 32 // BITS
_SHRINKS = tuple(1 - 0.05 * step for step in range(11))
_NO_SCALE = 1e-10


@dataclass(frozen=True)
class Grid:
    """Where the numbers of a matrix lie. Both (outputs, groups) float32; `scale` as it is stored."""

    scale: Tensor
    zero: Tensor

    def round(self, weight: Tensor) -> Tensor:
        """The nearest numbers, int8, of a matrix (outputs, inputs)."""
        import torch

        scale, zero = self._wide(weight)
        return (weight / scale + zero).round_().clamp_(LOW, HIGH).to(torch.int8)

    def weight(self, numbers: Tensor) -> Tensor:
        """The weights that numbers stand for, float32."""
        scale, zero = self._wide(numbers)
        return (numbers.float() - zero) * scale

    def _wide(self, like: Tensor) -> tuple[Tensor, Tensor]:
        size = like.shape[1] // self.scale.shape[1]
        return (
            self.scale.repeat_interleave(size, dim=1),
            self.zero.repeat_interleave(size, dim=1),
        )


@dataclass(frozen=True)
class Quantised:
    """One matrix: numbers int8 (outputs, inputs) on their grid."""

    numbers: Tensor
    grid: Grid


def group_size(model: Any, form: str) -> int:
    """The largest group of 128, 64 and 32 inputs into which every matrix of the layers can be cut.

    Raises:
        ModelError: not even 32 divides them all.
    """
    import torch

    from tunesmith.export.folders.parts import decoder_layers

    widths = {
        m.in_features for m in decoder_layers(model).modules() if isinstance(m, torch.nn.Linear)
    }
    for size in GROUPS:
        if widths and all(width % size == 0 for width in widths):
            return size
    raise ModelError(
        f"the model's matrices have {sorted(widths)} inputs, which groups of 32 do not divide",
        why="engines that run this format need whole groups",
        fix=f"leave {form} out of export.forms; the GGUF forms take every width",
    )


def fit(
    weight: Tensor, size: int, stored: torch.dtype, importance: Tensor, *, symmetric: bool
) -> Grid:
    """The grid for a matrix: each group's range, shrunk by up to a half where that errs less.

    The shrunk ranges are AWQ's clipping and the option `mse` of GPTQ's code.

    Args:
        weight: (outputs, inputs) float32.
        size: inputs a group.
        stored: number format of the scales on the disk; the grid's are rounded to it.
        importance: (inputs,) weight of each input's squared error.
        symmetric: no zero points.
    """
    import torch

    groups = weight.reshape(len(weight), -1, size)
    weights = importance.reshape(-1, size)
    best: Grid | None = None
    least = torch.full(groups.shape[:2], torch.inf)
    for shrink in _SHRINKS:
        grid = _of_range(groups, shrink, stored, symmetric=symmetric)
        off = (grid.weight(grid.round(weight)) - weight).reshape(groups.shape).square_()
        error = (off * weights).sum(dim=2)
        if best is None:
            best, least = grid, error
            continue
        better = error < least
        least = torch.where(better, error, least)
        best = Grid(
            torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero)
        )
    assert best is not None
    return best


def whole_range(weight: Tensor, size: int, stored: torch.dtype, *, symmetric: bool) -> Grid:
    """The grid on which no weight of a matrix (outputs, inputs) is cut off."""
    return _of_range(weight.reshape(len(weight), -1, size), 1.0, stored, symmetric=symmetric)


def _of_range(groups: Tensor, shrink: float, stored: torch.dtype, *, symmetric: bool) -> Grid:
    import torch

    if symmetric:
        scale = groups.abs().amax(dim=2) * shrink * 2 / (HIGH - LOW)
        scale = scale.to(stored).float().clamp_(min=_least(stored))
        return Grid(scale, torch.zeros_like(scale))
    low = groups.amin(dim=2).clamp_(max=0) * shrink
    high = groups.amax(dim=2).clamp_(min=0) * shrink
    scale = ((high - low) / (HIGH - LOW)).to(stored).float().clamp_(min=_least(stored))
    return Grid(scale, (LOW - low / scale).round_().clamp_(LOW, HIGH))


def _least(stored: torch.dtype) -> float:
    """The least scale: a group of zeros must not be divided by zero."""
    import torch

    return max(_NO_SCALE, float(torch.finfo(stored).tiny))


def pack(numbers: Tensor) -> Tensor:
    """Numbers in -8..7, (rows, columns), as int32 (rows, columns / 8 rounded up)."""
    import torch

    spare = -numbers.shape[1] % _PER_WORD
    wide = torch.nn.functional.pad(numbers.to(torch.int64) - LOW, (0, spare))
    wide = wide.reshape(len(numbers), -1, _PER_WORD)
    words = (wide << (BITS * torch.arange(_PER_WORD))).sum(dim=2)
    # As signed 32-bit words: the uppermost bit is the sign.
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def save_packed(
    sources: Sources,
    target: Path,
    model: Any,
    matrices: Mapping[str, Quantised],
    scheme: Mapping[str, Any],
) -> None:
    """A folder with the packed matrices; everything else in the base's number format.

    Args:
        model: the model whose other weights are written; its quantised matrices are not read.
        matrices: name of a linear layer -> its numbers.
        scheme: `weights` of compressed-tensors' only group.

    Raises:
        StorageError: the disk refuses.
    """
    from safetensors.torch import save_file

    from tunesmith.export.folders.parts import stored_format

    stored = stored_format(sources)
    tensors: dict[str, Tensor] = {}
    for name, weight in _other_weights(model, matrices).items():
        kept = weight.detach().to(stored) if weight.is_floating_point() else weight.detach()
        tensors[name] = kept.contiguous().clone()
    for name, matrix in matrices.items():
        tensors |= _stored(name, matrix, stored, symmetric=bool(scheme["symmetric"]))
    config = json.loads((sources.merged / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(stored).removeprefix("torch.")
    config["quantization_config"] = _section(model, matrices, scheme)
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        write_config(target, config)
        put_beside(sources, target)


def _other_weights(model: Any, matrices: Mapping[str, Quantised]) -> dict[str, Tensor]:
    """Parameters that are not quantised; what is one tensor under two names comes once."""
    skipped = {f"{name}.weight" for name in matrices}
    seen: set[int] = set()
    found = {}
    for name, weight in model.state_dict().items():
        if name in skipped or weight.data_ptr() in seen:
            continue
        seen.add(weight.data_ptr())
        found[name] = weight
    return found


def _stored(
    name: str, matrix: Quantised, stored: torch.dtype, *, symmetric: bool
) -> dict[str, Tensor]:
    import torch

    tensors = {
        f"{name}.weight_packed": pack(matrix.numbers).contiguous(),
        f"{name}.weight_scale": matrix.grid.scale.to(stored).contiguous(),
        f"{name}.weight_shape": torch.tensor(matrix.numbers.shape, dtype=torch.int64),
    }
    if not symmetric:
        zero = matrix.grid.zero.to(torch.int8)
        tensors[f"{name}.weight_zero_point"] = pack(zero.t()).t().contiguous()
    return tensors


def _section(
    model: Any, matrices: Mapping[str, Quantised], scheme: Mapping[str, Any]
) -> dict[str, Any]:
    import torch

    kept = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in matrices
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": BITS,
                    "type": "int",
                    "strategy": "group",
                    "dynamic": False,
                    **scheme,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": kept,
        "kv_cache_scheme": None,
        # For transformers alone: dense weights at loading. What it does otherwise, compressed-tensors'
        # own modules filled from the file, fails for zero points (0.20: it expects them unpacked).
        "dequantize": True,
    }
