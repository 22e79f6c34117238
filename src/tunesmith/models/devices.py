"""Which device, number format and thread count: measured on this machine, not looked up."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psutil

if TYPE_CHECKING:
    import torch

__all__ = ["Precision", "PrecisionChoice", "choose_precision", "default_threads", "device_name"]

Precision = Literal["bf16", "fp32"]
_ROWS, _INNER, _COLUMNS = 1_024, 576, 1_536


@dataclass(frozen=True)
class PrecisionChoice:
    """What the measurement chose and what it saw, in GFLOP/s of a matrix product."""

    precision: Precision
    bf16_gflops: float
    fp32_gflops: float


def default_threads() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed or 1))


def device_name() -> str:
    """ "cuda", "mps" or "cpu", in the order of speed. ROCm shows as "cuda"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_precision(
    device: str = "cpu", threads: int | None = None, seconds: float = 0.5
) -> PrecisionChoice:
    """Time the same matrix product in bf16 and fp32 and take the faster format.

    bf16 must be at least 1.2 times as fast: below that its rounding buys nothing.

    Args:
        device: where to measure.
        threads: how many CPU threads; as torch is set when not given.
        seconds: how long both are measured together.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    formats = {"bf16": torch.bfloat16, "fp32": torch.float32}
    best = dict.fromkeys(formats, 0.0)
    rounds, deadline = 0, time.perf_counter() + seconds
    # Turn and turn about, the best of each: another program's burst then spoils neither.
    while rounds < 5 or time.perf_counter() < deadline:
        for name, dtype in formats.items():
            best[name] = max(best[name], _gflops(dtype, device))
        rounds += 1
    faster: Precision = "bf16" if best["bf16"] > 1.2 * best["fp32"] else "fp32"
    return PrecisionChoice(faster, best["bf16"], best["fp32"])


def _gflops(dtype: torch.dtype, device: str) -> float:
    import torch

    a = torch.ones((_ROWS, _INNER), dtype=dtype, device=device)
    b = torch.ones((_COLUMNS, _INNER), dtype=dtype, device=device)
    start = time.perf_counter()
    product = a @ b.T
    float(product[0, 0])  # waits for a device that works asynchronously
    return 2 * _ROWS * _INNER * _COLUMNS / (time.perf_counter() - start) / 1e9
