"""Rows of weights to and from GGUF's number formats, by the kernels of the package `libgguf`.

They are llama.cpp's reference kernels (`ggml/src/ggml-quants.c`) in a wheel, so no compiler is needed; each row is
quantised by itself, so rows can be shared among threads, which the kernels allow (they release Python's lock).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.errors import EnvironmentProblem
from tunesmith.models.files.ggml import GGML_TYPES, GgmlType

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TYPES", "engine", "library", "overflows", "quantised", "to_float", "unweighted"]

TYPES: Mapping[str, tuple[int, GgmlType]] = {
    form.name: (number, form) for number, form in GGML_TYPES.items()
}
"""Name -> number in the file, and format."""

_CHUNK_WEIGHTS = 1 << 18
_HALVES: Mapping[str, tuple[int, ...]] = {
    **{"Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "Q6_K": (104,)},
    **{"Q4_1": (0, 1), "Q5_1": (0, 1), "Q4_K": (0, 1), "Q5_K": (0, 1)},
}
"""Where a block's scales in half precision stand, in units of two bytes (`ggml-common.h`)."""
_INFINITE = 0x7C00
"""A half-precision number with these bits is infinite or none."""
_UNWEIGHTED = ("F32", "F16", "BF16", "Q8_0")


def library() -> Any:
    """The package.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        return importlib.import_module("libgguf")
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "quantised GGUF files cannot be written: their kernels are not installed",
            why=f"the package {error.name!r} is missing",
            fix="pip install 'tunesmith[export]', or leave the GGUF forms out of export.forms",
        ) from error


def engine() -> str:
    """What quantises, with its version."""
    return f"libgguf {version('libgguf')}"


def unweighted(name: str) -> bool:
    """Whether an importance matrix makes no difference to a format."""
    return name in _UNWEIGHTED


def quantised(
    rows: NDArray[np.float32],
    name: str,
    importance: NDArray[np.float32] | None = None,
    pool: Executor | None = None,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """The bytes of rows in a format, (rows, bytes of a row).

    Args:
        rows: (rows, weights), contiguous; weights a multiple of the format's block.
        importance: a weight for each column of the rows, (weights,); formats without use ignore it.
        pool: computes chunks of rows beside each other, up to `threads` at a time.
    """
    number, form = TYPES[name]
    n_rows, width = rows.shape
    out = np.empty((n_rows, width // form.block * form.bytes), np.uint8)
    if name == "F32":
        out[:] = rows.view(np.uint8)
        return out
    weights = None if unweighted(name) else importance
    convert = library().quantize_rows_into_raw
    per_chunk = max(1, _CHUNK_WEIGHTS // width)

    def chunk(start: int) -> None:
        part = rows[start : start + per_chunk]
        convert(number, part, out[start : start + per_chunk], len(part), width, weights)

    _each(chunk, range(0, n_rows, per_chunk), pool if threads > 1 else None)
    return out


def _each(chunk: Callable[[int], None], starts: range, pool: Executor | None) -> None:
    for _ in map(chunk, starts) if pool is None else pool.map(chunk, starts):
        pass


def to_float(data: NDArray[np.uint8], name: str, width: int) -> NDArray[np.float32]:
    """Rows in float32, (rows, width), out of the bytes of a format, (rows, bytes of a row)."""
    if name == "F32":
        return data.view(np.float32)
    if name == "F16":
        return data.view(np.float16).astype(np.float32)
    if name == "BF16":
        wide = data.view(np.uint16).astype(np.uint32) << 16
        floats: NDArray[np.float32] = wide.view(np.float32)
        return floats
    number, _form = TYPES[name]
    rows: NDArray[np.float32] = library().dequantize_rows(data, number, width)
    return rows


def overflows(data: NDArray[np.uint8], name: str) -> bool:
    """Whether a number in half precision among the bytes is infinite: the weights are too large for the format."""
    if name == "F16":
        halves = data.view(np.uint16)
    elif name in _HALVES:
        blocks = data.reshape(-1, TYPES[name][1].bytes).view(np.uint16)
        halves = blocks[:, list(_HALVES[name])]
    else:
        return False
    return bool(np.any(halves & _INFINITE == _INFINITE))
