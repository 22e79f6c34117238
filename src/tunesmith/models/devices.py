"""Which device, number format, thread count and memory: measured on this machine, not looked up."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

if TYPE_CHECKING:
    import torch

__all__ = [
    "Precision",
    "PrecisionChoice",
    "choose_precision",
    "default_threads",
    "device_name",
    "memory_left",
    "memory_limit",
]

Precision = Literal["bf16", "fp32"]
_ROWS, _INNER, _COLUMNS = 1_024, 576, 1_536
_NO_LIMIT = 2**60
"""Control groups write a huge number, or "max", where there is no limit."""


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


def memory_left(device: str = "cpu") -> int:
    """Bytes that this process may still take on a device; a container's limit counts."""
    if device == "cuda":
        import torch

        # What the allocator has reserved and does not use is as good as free.
        free, _ = torch.cuda.mem_get_info()
        return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    available, (limit, used) = psutil.virtual_memory().available, memory_limit()
    return available if limit is None else min(available, max(0, limit - used))


def memory_limit(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> tuple[int | None, int]:
    """Memory limit (None without one) and use, in bytes, of the control group that has least left.

    Reads version 2, walking from the process's own group up to the root, then version 1.

    Args:
        root: where the control groups are mounted.
        own: the file that names the process's group.
    """
    limits: list[tuple[int, int]] = []
    for group in _groups(root, own):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        ):
            limit, used = _number(group / limit_name), _number(group / used_name)
            if limit is not None and limit < _NO_LIMIT:
                limits.append((limit, (used or 0) - _reclaimable(group / limit_name)))
    # A group's use counts in the groups above it too: the one that fills up first has least left.
    return min(limits, key=lambda pair: pair[0] - pair[1]) if limits else (None, 0)


def _groups(root: Path, own: Path) -> Iterator[Path]:
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    inner = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    place = root / inner
    while place != root and root in place.parents:
        yield place
        place = place.parent
    yield root


def _reclaimable(limit_file: Path) -> int:
    """Page cache that the kernel gives back when memory is asked for."""
    stat = limit_file.with_name("memory.stat")
    lines = stat.read_text(encoding="utf-8").splitlines() if stat.is_file() else []
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(values.get("inactive_file", values.get("total_inactive_file", 0)))


def _number(path: Path) -> int | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8").strip()
    return int(text) if text.isdigit() else None
