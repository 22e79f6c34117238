"""What can be done about a training step that does not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.errors import CapacityError
from tunesmith.models.memory import GIB, Recompute
from tunesmith.train.filling import capacity_for
from tunesmith.train.ladder import Situation, changed, known_shape, next_rungs, offers

if TYPE_CHECKING:
    from tunesmith.train.plan import TrainPlan

__all__ = ["Shortage", "largest_micro_batch"]

SMALLEST = 16
"""Tokens of the smallest micro batch that a recipe may ask for."""
NO_RUNG = (
    "choose a smaller model (`tunesmith doctor` lists what fits here), raise train.memory_gib, or "
    "close other programs"
)


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

    def error(self, needed_bytes: int, how: str) -> CapacityError:
        """What it needs, known by `how`, and every setting that may help."""
        resources = self.plan.resources
        source = "train.memory_gib" if resources.is_budget_set else "nine tenths of what is free"
        ways = self._rungs() if resources.asked.fit else self._ways()
        return CapacityError(
            f"a training step needs {needed_bytes / GIB:.2f} GiB ({how}); it may take "
            f"{resources.memory_bytes / GIB:.2f} GiB ({source})",
            why=f"the longest micro batch has {self.positions} positions, and {self.recompute}",
            fix="; or ".join(ways),
        )

    def _ways(self) -> list[str]:
        fits, ways = self._largest_micro_batch(), []
        if fits:
            ways.append(f"--set train.micro_batch_tokens={fits} is the largest that fits")
        if self.plan.resources.checkpointing != "auto":
            ways.append("--set train.activation_checkpointing=auto computes more again")
        return [*ways, "--fit lowers settings one by one until it fits by the memory formula"]

    def _rungs(self) -> list[str]:
        """The ladder was climbed already, as far as its formula asked for: what comes next on it."""
        asked, config = self.plan.resources.asked, self.plan.resources.config
        ways, fits = [], self._largest_micro_batch()
        if fits:
            lower = config.model_copy(update={"micro_batch_tokens": fits})
            ways.append(f"{changed(asked, lower)} is the largest micro batch that fits")
        shape = known_shape(self.plan.base)
        if shape is None:
            return [*ways, NO_RUNG]
        at = Situation(
            config=config,
            micro_batch_tokens=self.plan.micro_batch_tokens,
            longest_row=self._longest_row,
            precision=self.plan.precision,
            shape=shape,
            recompute=self.recompute,
            offers=offers(),
        )
        rungs = next_rungs(at, asked)
        if rungs:
            ways.append(f"the next rungs of the ladder: {', or '.join(rungs)}")
        return ways or [NO_RUNG]

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
