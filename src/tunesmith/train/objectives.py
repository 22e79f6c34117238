"""Objectives: a micro batch to a loss and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunesmith.registry import Table
from tunesmith.train.packing import MicroBatch

__all__ = ["OBJECTIVES", "Objective", "sft"]

Objective = Callable[[Any, MicroBatch, float], tuple[float, int]]
"""(model, micro batch, normaliser) -> (summed loss in nats, trained tokens); adds to the gradients."""

OBJECTIVES = Table("objective", {"sft": "tunesmith.train.objectives:sft"}, extra="train")


def sft(model: Any, batch: MicroBatch, normaliser: float) -> tuple[float, int]:
    """Cross-entropy of the trained tokens, summed and divided by `normaliser`, forward and backward.

    The normaliser is the number of trained tokens of the whole optimizer step, so that the
    gradient does not depend on how the step is split into micro batches.
    """
    from tunesmith.train import fast

    return fast.train_microbatch(model, batch, normaliser)
