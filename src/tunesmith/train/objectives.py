"""Objectives: a micro batch to a loss and its gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tunesmith.config import SftObjective
from tunesmith.registry import Table
from tunesmith.train.packing import MicroBatch
from tunesmith.train.stopping import Check

if TYPE_CHECKING:
    from tunesmith.train.plan import TrainPlan

__all__ = ["OBJECTIVES", "Measured", "Objective", "Sft", "objective_of", "total"]

OBJECTIVES = Table(
    "objective",
    {"sft": "tunesmith.train.objectives:Sft", "dpo": "tunesmith.train.dpo:Dpo"},
    extra="train",
)


class Measured(NamedTuple):
    """What one or more micro batches gave; nothing here is divided yet.

    Attributes:
        loss: summed over what is counted, in nats.
        counted: trained tokens, or pairs: what the loss is a sum over.
        sums: name of a figure -> its sum over the same.
    """

    loss: float
    counted: int
    sums: Mapping[str, float] = {}

    def means(self) -> dict[str, float]:
        """Figures of `sums`, divided."""
        return {name: value / self.counted for name, value in self.sums.items()}


class Objective(Protocol):
    """What is minimised. The loss is a sum over tokens or pairs, so that a step may be split anywhere.

    Attributes:
        unit: what the loss is a mean over: "token" or "pair".
        needs_pairs: whether rows come as pairs (chosen, rejected) or one by one.
    """

    unit: str
    needs_pairs: bool

    def __call__(self, model: Any, batch: MicroBatch, normaliser: float) -> Measured:
        """Forward and backward of the loss over `normaliser`; adds to the gradients.

        The normaliser is the `count` of the whole optimizer step.
        """

    def evaluate(self, model: Any, batch: MicroBatch) -> Measured:
        """Forward only."""

    def rehearse(self, model: Any, batch: MicroBatch) -> None:
        """Forward and backward that take what `__call__` takes, of any rows; the gradients mean nothing."""

    def count(self, batch: MicroBatch) -> int:
        """What a micro batch adds to the normaliser."""

    def prepare(self, model: Any, plan: TrainPlan, folder: Path | None, check: Check) -> None:
        """Called once with the model as it is before the first step.

        `folder` keeps what it computes; `check` is called between micro batches.
        """


class Sft:
    """Cross-entropy of the trained tokens."""

    unit = "token"
    needs_pairs = False

    def __init__(self, config: SftObjective) -> None:
        self.config = config

    def __call__(self, model: Any, batch: MicroBatch, normaliser: float) -> Measured:
        """See `Objective`."""
        from tunesmith.train import fast

        return Measured(*fast.train_microbatch(model, batch, normaliser))

    def evaluate(self, model: Any, batch: MicroBatch) -> Measured:
        """See `Objective`."""
        from tunesmith.train import fast

        return Measured(*fast.evaluate_microbatch(model, batch))

    def rehearse(self, model: Any, batch: MicroBatch) -> None:
        """See `Objective`."""
        self(model, batch, float(max(batch.trained_tokens, 1)))

    def count(self, batch: MicroBatch) -> int:
        """Trained tokens."""
        return batch.trained_tokens

    def prepare(self, model: Any, plan: TrainPlan, folder: Path | None, check: Check) -> None:
        """Nothing to prepare."""


def objective_of(config: Any) -> Objective:
    """The objective of its settings."""
    made: Objective = OBJECTIVES.load(config.kind)(config)
    return made


def total(parts: Iterable[Measured]) -> Measured:
    """Micro batches together."""
    loss, counted, sums = 0.0, 0, dict[str, float]()
    for part in parts:
        loss, counted = loss + part.loss, counted + part.counted
        for name, value in part.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    return Measured(loss, counted, sums)
