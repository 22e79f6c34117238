"""What can be done about a training step that does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.errors import CapacityError, listed
from tunesmith.models.memory import GIB, Recompute
from tunesmith.train.filling import capacity_for
from tunesmith.train.ladder import Situation, fitted, known_shape, next_rung, offers

if TYPE_CHECKING:
    from tunesmith.train.plan import TrainPlan

__all__ = ["Shortage", "StepTooLarge", "largest_micro_batch"]

SMALLEST = 16
"""Tokens of the smallest micro batch that a recipe may ask for."""
NO_RUNG = (
    "choose a smaller model (`tunesmith doctor` lists what fits here), raise train.memory_gib, or "
    "close other programs"
)


class StepTooLarge(CapacityError):
    """A training step does not fit into memory.

    Attributes:
        shortage: the step, and what can be done.
        found: what it takes, in words: "measured 2.10 GiB of 2.00".
    """

    shortage: Shortage
    found: str


@dataclass(frozen=True)
class Shortage:
    """A step that takes more than it may.

    Attributes:
        need: positions of the longest micro batch -> bytes, with `recompute`.
        recompute: what was computed again at most.
        positions: of the longest micro batch as it was run, padding included.
        batch_positions: of the same as it was packed.
    """

    plan: TrainPlan
    need: Callable[[int], int]
    recompute: Recompute
    positions: int
    batch_positions: int

    def error(self, needed_bytes: int, how: str) -> StepTooLarge:
        """What it needs, known by `how` ("measured" or "predicted"), and every setting that may help."""
        resources = self.plan.resources
        source = (
            "train.memory_gib"
            if resources.is_budget_set
            else "nine tenths of what was free, and what the process had"
        )
        known = "measured" if how == "measured" else "predicted from a small trial"
        what = (
            f"a training step needs {needed_bytes / GIB:.2f} GiB ({known}); it may take "
            f"{resources.memory_bytes / GIB:.2f} GiB ({source})"
        )
        taken = resources.measured.get("fit", [])
        if taken:
            what += f"; the ladder so far:\n{listed(taken)}"
        found = StepTooLarge(
            what,
            why=f"the longest micro batch has {self.positions} positions, and {self.recompute}",
            fix=NO_RUNG if resources.asked.fit else "; or ".join(self._ways()),
        )
        found.shortage = self
        found.found = f"{how} {needed_bytes / GIB:.2f} GiB of {resources.memory_bytes / GIB:.2f}"
        return found

    def _ways(self) -> list[str]:
        fits, ways = self._largest_micro_batch(), []
        if fits:
            ways.append(f"--set train.micro_batch_tokens={fits} is the largest that fits")
        if self.plan.resources.checkpointing != "auto":
            ways.append("--set train.activation_checkpointing=auto computes more again")
        return [*ways, "--fit lowers settings one by one until a step fits"]

    def next_choice(self, found: str) -> tuple[dict[str, Any], str] | None:
        """The next rung of the ladder, as `Resources.as_choice` has it, and the line that tells it.

        None at the end of the ladder. A model whose shape is not known has micro batches alone.

        Args:
            found: what the rehearsal found.
        """
        resources = self.plan.resources
        rung = self._rung()
        if rung is None:
            return None
        change, micro, settings = rung
        line = f"took: {change} because the rehearsal {found}"
        measured = dict(resources.measured)
        return resources.as_choice() | {
            "micro_batch_tokens": micro,
            "fitted": settings,
            "measured": measured | {"fit": [*measured.get("fit", []), line]},
        }, line

    def _rung(self) -> tuple[str, int, dict[str, Any]] | None:
        """What changes in words, the micro batch and the settings after it."""
        config, micro = self.plan.resources.config, self.plan.micro_batch_tokens
        shape = known_shape(self.plan.base)
        if shape is None:
            fits = self._largest_micro_batch()
            if fits is None:
                return None
            lower = config.model_copy(update={"micro_batch_tokens": fits})
            name = "micro_batch_tokens"
            return f"{name} {micro} -> {name} {fits}", fits, fitted(lower)
        at = Situation(
            config=config,
            micro_batch_tokens=micro,
            longest_row=self._longest_row,
            precision=self.plan.precision,
            shape=shape,
            recompute=self.recompute,
            offers=offers(),
        )
        rung = next_rung(at)
        if rung is None:
            return None
        change, after = rung
        return change, after.micro_batch_tokens, fitted(after.config)

    @property
    def _longest_row(self) -> int:
        return max(len(row.tokens) for row in self.plan.rows.rows)

    def _largest_micro_batch(self) -> int | None:
        """By the estimate; None when nothing smaller fits, or a step must be one micro batch."""
        if self.plan.resources.in_backward:
            return None
        padded, longest = self.positions / self.batch_positions, self._longest_row - 1
        budget = self.plan.resources.memory_bytes
        return largest_micro_batch(
            lambda size: self.need(int(padded * capacity_for(size, longest))) <= budget,
            (self.plan.batch_tokens, self.plan.micro_batch_tokens),
        )


def largest_micro_batch(fits: Callable[[int], bool], sizes: tuple[int, int]) -> int | None:
    """The largest below the second of `sizes`, a divisor of the first, that fits; if any."""
    batch_tokens, above = sizes
    divisors = [size for size in range(SMALLEST, above) if batch_tokens % size == 0]
    return next((size for size in reversed(divisors) if fits(size)), None)
