"""The learning rate of each step."""

from __future__ import annotations

import math

from tunesmith.config import OptimizerConfig

__all__ = ["learning_rate"]


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate for optimizer step `step` of `total_steps`.

    Rises linearly over the warm-up, then falls by a half cosine or a line to zero after the last
    step, or stays.

    Args:
        config: peak, warm-up share and shape.
        step: from 0.
        total_steps: of the whole run.
    """
    warmup_steps = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    return config.learning_rate
