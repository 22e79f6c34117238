"""Threads and micro batch: chosen by timing the model's own products on this machine.

Together with the precision (`models.devices.choose_precision`) the measurement takes about two
seconds. What is measured and what is chosen are apart: equal figures give equal choices.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil

from tunesmith.models.devices import default_threads
from tunesmith.models.memory import Shape

if TYPE_CHECKING:
    import torch

__all__ = [
    "LayerClock",
    "as_facts",
    "best_seconds",
    "epoch_seconds",
    "is_widened",
    "micro_batch_sizes",
    "sensible",
    "smallest_near_best",
    "thread_counts",
    "told",
]

NEAR = 1.05
"""What is within 5 % of the best is as good: the smaller setting leaves more to others."""
NEAR_FOR_LITTLE_MEMORY = 1.25
"""The same for QLoRA: who rounds weights to save memory would rather wait a little than need more."""
LEAST, MOST = 256, 4_096
"""Micro batches that are tried. Smaller ones spend their time on kernel starts, larger ones only memory."""
THREAD_TOKENS = 512
ENTRIES = 2_000_000
"""Weights of the layer that is timed: a larger model's is scaled down to it, in its proportions."""


def thread_counts() -> list[int]:
    """1, the physical and the logical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    logical = min(psutil.cpu_count() or 1, allowed or 1)
    return sorted({1, default_threads(), logical})


def micro_batch_sizes(batch_tokens: int) -> list[int]:
    """Sizes of which `batch_tokens` is a whole number, a factor of about two apart, 256 to 4,096.

    A smaller `batch_tokens`, or one without such a divisor, is itself the only size.
    """
    divisors = [n for n in range(LEAST, min(MOST, batch_tokens) + 1) if batch_tokens % n == 0]
    if not divisors:
        return [batch_tokens]
    wanted = [LEAST * 2**power for power in range(int(math.log2(MOST // LEAST)) + 1)]
    return sorted({min(divisors, key=lambda n: abs(math.log2(n / size))) for size in wanted})


def smallest_near_best(seconds: Mapping[int, float], near: float = NEAR) -> int:
    """The smallest setting whose time is at most `near` times the least."""
    limit = near * min(seconds.values())
    return min(setting for setting, time_taken in seconds.items() if time_taken <= limit)


def best_seconds(
    settings: Sequence[int],
    timing: Callable[[int], float],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """The least time of each setting, turn and turn about until `seconds` are over, twice at least.

    Another program's burst then spoils no single setting.
    """
    best = dict.fromkeys(settings, math.inf)
    deadline, rounds = clock() + seconds, 0
    while rounds < 2 or clock() < deadline:
        for setting in settings:
            best[setting] = min(best[setting], timing(setting))
        rounds += 1
    return best


def is_widened(kind: str, precision: str) -> bool:
    """Whether a method's frozen weights are made dense for each product: NF4 always, 16 bits for fp32."""
    return kind == "qlora" or (kind == "lora" and precision == "fp32")


class LayerClock:
    """Times one decoder layer's products and element-wise work, forward and backward, on real kernels.

    Args:
        shape: the model.
        precision: number format of the products.
        device: where.
        is_widened: weights are kept in 16 bits (or 4) and made dense for each product.
    """

    def __init__(self, shape: Shape, precision: str, device: str, is_widened: bool = False) -> None:
        import torch

        self.device, self.is_widened = device, is_widened
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        small = _scaled(shape)
        self.share = sum(rows * columns for rows, columns in shape.products) / sum(
            rows * columns for rows, columns in small.products
        )
        d, q, k, f = small.hidden, small.query_width, small.key_width, small.feed_forward
        sizes = ((d, q + 2 * k), (q, d), (d, 2 * f), (f, d))
        self.weights = [self._ones(columns, rows) for rows, columns in sizes]
        if is_widened:
            self.weights = [weight.bfloat16() for weight in self.weights]
        self.width, self.gate_width = d, f

    def tokens(self, count: int) -> float:
        """Seconds of one layer of the whole model for `count` positions."""
        inputs = [self._ones(count, weight.shape[1]) for weight in self.weights]
        self._wait()
        began = time.perf_counter()
        for x, weight in zip(inputs, self.weights, strict=True):
            y = x @ self._dense(weight).t()
            y @ self._dense(weight)
        self._element_wise(inputs[0], count)
        self._wait()
        return (time.perf_counter() - began) * self.share

    def threads(self, count: int) -> float:
        """Seconds of one layer with `count` threads; leaves torch set to them."""
        import torch

        torch.set_num_threads(count)
        return self.tokens(THREAD_TOKENS)

    def _element_wise(self, x: torch.Tensor, count: int) -> None:
        """About what norms, rotary, SwiGLU and residuals do in both passes."""
        import torch

        gate, up = self._ones(count, self.gate_width), self._ones(count, self.gate_width)
        for _ in range(2):
            mean = x.square().mean(-1, keepdim=True)
            x = x * torch.rsqrt(mean + 1.0)
            x = x * 0.5 + x
            gate = torch.nn.functional.silu(gate) * up
            up = up * gate

    def _dense(self, weight: torch.Tensor) -> torch.Tensor:
        # A copy also from bf16 to bf16: NF4 weights become dense in bf16 too.
        return weight.to(self.dtype, copy=True) if self.is_widened else weight

    def _ones(self, rows: int, columns: int) -> torch.Tensor:
        import torch

        return torch.ones((rows, columns), dtype=self.dtype, device=self.device)

    def _wait(self) -> None:
        """For a device that works asynchronously."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()
        elif self.device == "mps":
            torch.mps.synchronize()


def _scaled(shape: Shape) -> Shape:
    entries = sum(rows * columns for rows, columns in shape.products)
    if entries <= ENTRIES:
        return shape
    ratio = math.sqrt(ENTRIES / entries)
    heads = max(shape.key_heads, round(shape.heads * ratio))
    return replace(
        shape,
        hidden=_to_eights(shape.hidden * ratio),
        feed_forward=_to_eights(shape.feed_forward * ratio),
        heads=heads,
        key_heads=max(1, min(heads, round(shape.key_heads * ratio))),
    )


def _to_eights(width: float) -> int:
    return max(8, 8 * round(width / 8))


def epoch_seconds(
    layer_seconds: Mapping[int, float], positions: Mapping[int, int]
) -> dict[int, float]:
    """Time of the same rows by micro batch size: what a position costs there times the positions it takes.

    A small micro batch repeats what its rows share, and pads more.
    """
    return {size: layer_seconds[size] / size * positions[size] for size in layer_seconds}


def sensible(steps: Mapping[int, int], most: float = 1.1) -> list[int]:
    """The sizes that make at most a tenth more optimizer steps of the same rows than the fewest.

    What rows share stands once a micro batch: many small ones leave less of `batch_tokens` to the
    rows, and a step would learn from fewer of them.
    """
    limit = most * min(steps.values())
    return sorted(size for size, count in steps.items() if count <= limit)


def as_facts(seconds: Mapping[int, float]) -> dict[str, Any]:
    """Times for the run's record: milliseconds by setting."""
    return {str(setting): round(1e3 * taken, 3) for setting, taken in seconds.items()}


def told(seconds: Mapping[int, float], chosen: int, unit: str) -> str:
    """Times relative to the best, in words."""
    best = min(seconds.values())
    parts = (f"{setting}: {taken / best:.2f}" for setting, taken in sorted(seconds.items()))
    return f"{chosen} {unit} (time relative to the best: {', '.join(parts)})"
