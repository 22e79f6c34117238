"""The training step, several times faster than the plain one and equal to it.

`apply` puts a PEFT-wrapped Hugging Face causal model on the fast path, part by part, and reports
which parts hold; `train_microbatch` runs one packed micro batch forward and backward. Importing
this package loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.train.fast.parts import FastPathReport, FastSwitches
from tunesmith.train.packing import MicroBatch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FastPathReport",
    "FastSwitches",
    "apply",
    "evaluate_microbatch",
    "microbatch_loss",
    "remove",
    "train_microbatch",
]


def apply(model: nn.Module, switches: FastSwitches | None = None) -> FastPathReport:
    """Put `model` on the fast path, in place; see `tunesmith.train.fast.swap.apply`."""
    from tunesmith.train.fast import swap

    return swap.apply(model, FastSwitches() if switches is None else switches)


def remove(model: nn.Module) -> None:
    """Undo `apply`: the model's own forward passes and separately stored weights."""
    from tunesmith.train.fast import swap

    swap.remove(model)


def train_microbatch(model: nn.Module, batch: MicroBatch, normaliser: float) -> tuple[float, int]:
    """Forward and backward; see `tunesmith.train.fast.step.train_microbatch`."""
    from tunesmith.train.fast import step

    return step.train_microbatch(model, batch, normaliser)


def evaluate_microbatch(model: nn.Module, batch: MicroBatch) -> tuple[float, int]:
    """Summed loss in nats and trained tokens, without gradients."""
    from tunesmith.train.fast import step

    return step.evaluate_microbatch(model, batch)


def microbatch_loss(model: nn.Module, batch: MicroBatch, normaliser: float) -> Tensor:
    """The differentiable loss that `train_microbatch` runs backward."""
    from tunesmith.train.fast import step

    return step.microbatch_loss(model, batch, normaliser)
