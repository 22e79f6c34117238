"""Which device, number format and thread count: measured on this machine, not looked up."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Literal

import psutil

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


def choose_precision(device: str = "cpu", seconds: float = 0.25) -> PrecisionChoice:
    """Time the same matrix product in bf16 and fp32 and take the faster format.

    bf16 must be at least 1.2 times as fast: below that its rounding buys nothing.

    Args:
        device: where to measure.
        seconds: how long each format is measured.
    """
    import torch

    bf16 = _gflops(torch.bfloat16, device, seconds)
    fp32 = _gflops(torch.float32, device, seconds)
    return PrecisionChoice("bf16" if bf16 > 1.2 * fp32 else "fp32", bf16, fp32)


def _gflops(dtype: object, device: str, seconds: float) -> float:
    import torch

    a = torch.ones((_ROWS, _INNER), dtype=dtype, device=device)  # type: ignore[call-overload]
    b = torch.ones((_COLUMNS, _INNER), dtype=dtype, device=device)  # type: ignore[call-overload]
    best, deadline = float("inf"), time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        product = a @ b.T
        float(product[0, 0])  # waits for a device that works asynchronously
        best = min(best, time.perf_counter() - start)
        rounds += 1
    return 2 * _ROWS * _INNER * _COLUMNS / best / 1e9
