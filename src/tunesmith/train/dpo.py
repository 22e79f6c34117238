"""Direct preference optimisation: pairs of answers, the chosen one made likelier than the rejected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.config import DpoObjective
from tunesmith.train.objectives import Measured
from tunesmith.train.packing import Ints, MicroBatch
from tunesmith.train.stopping import Check

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.train.plan import TrainPlan

__all__ = ["Dpo", "dpo_loss"]

MARGIN = "reward_margin_nats"
ACCURACY = "pair_accuracy_ratio"
CHOSEN = "chosen_logp_nats"
REJECTED = "rejected_logp_nats"


def dpo_loss(
    policy_logps: Tensor, reference_logps: Tensor, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """Preference loss of Rafailov et al. 2023 (arXiv 2305.18290), equation 7.

    Both inputs are (pairs, 2): column 0 chosen, column 1 rejected; log-probabilities summed over
    answer tokens, in nats. `label_smoothing` is the share of pairs taken to be the wrong way round
    (Mitchell 2023, "A note on DPO with noisy preferences"). Returns (pairs,), not averaged.

    Raises:
        ValueError: `beta` is not positive.
    """
    from torch.nn.functional import logsigmoid

    if beta <= 0:
        raise ValueError(f"beta={beta} is not positive")
    gains = policy_logps - reference_logps
    margins = beta * (gains[:, 0] - gains[:, 1])
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


class Dpo:
    """`dpo_loss` over the pairs of a step.

    Rows 2i and 2i + 1 of a split are the chosen and the rejected answer of pair i, and stand in one
    micro batch; `MicroBatch.references` holds their log-probabilities before the first step.
    """

    unit = "pair"
    needs_pairs = True

    def __init__(self, config: DpoObjective) -> None:
        self.config = config

    def __call__(self, model: Any, batch: MicroBatch, normaliser: float) -> Measured:
        """See `Objective`.

        Raises:
            ValueError: a pair is split, or references are missing.
        """
        from tunesmith.train.fast.preference import train_rows

        order, references = _pairs(batch)

        def loss_of(logps: Tensor) -> Tensor:
            return self._losses(logps[order], references).sum() / normaliser

        logps, loss = train_rows(model, batch, loss_of)
        return self._measured(logps[order], references, loss * normaliser)

    def evaluate(self, model: Any, batch: MicroBatch) -> Measured:
        """See `Objective`."""
        from tunesmith.train.fast.preference import row_logps

        order, references = _pairs(batch)
        logps = row_logps(model, batch)[order]
        return self._measured(logps, references, float(self._losses(logps, references).sum()))

    def rehearse(self, model: Any, batch: MicroBatch) -> None:
        """See `Objective`."""
        from tunesmith.train.fast.preference import train_rows

        train_rows(model, batch, lambda logps: logps.sum())

    def count(self, batch: MicroBatch) -> int:
        """Pairs."""
        return int(batch.members.size) // 2

    def prepare(self, model: Any, plan: TrainPlan, folder: Path | None, check: Check) -> None:
        """Log-probabilities of all rows under the model as it is now go into the plan."""
        from tunesmith.train.references import references_of

        plan.refer_to(references_of(model, plan, folder, check))

    def _losses(self, logps: Tensor, references: Tensor) -> Tensor:
        return dpo_loss(
            logps.view(-1, 2), references.view(-1, 2), self.config.beta, self.config.label_smoothing
        )

    def _measured(self, logps: Tensor, references: Tensor, loss: float) -> Measured:
        gains = (logps - references).view(-1, 2)
        margins = self.config.beta * (gains[:, 0] - gains[:, 1])
        chosen, rejected = logps.view(-1, 2).sum(0).tolist()
        sums = {
            MARGIN: float(margins.sum()),
            ACCURACY: float((margins > 0).sum()),
            CHOSEN: chosen,
            REJECTED: rejected,
        }
        return Measured(loss, margins.numel(), sums)


def _pairs(batch: MicroBatch) -> tuple[Ints, Tensor]:
    """Order that puts the batch's rows pair by pair, chosen first, and their references so."""
    import torch

    members = batch.members
    order: Ints = np.argsort(members, kind="stable")
    first, second = members[order][::2], members[order][1::2]
    if first.size != second.size or (first % 2).any() or (second != first + 1).any():
        raise ValueError(f"rows {members.tolist()} are no whole pairs")
    if batch.references.size != members.size:
        raise ValueError("the batch has no reference log-probabilities; call prepare() first")
    return order, torch.from_numpy(batch.references[order])
