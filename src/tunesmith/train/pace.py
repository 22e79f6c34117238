"""How many rows a step learns from, and how many steps that leaves: said before the first one."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.train.plan import TrainPlan

__all__ = ["lines"]

FEW_STEPS = 50
"""Fewer optimizer steps are few: AdamW moves a weight by about the learning rate a step, however many rows it
holds, and warm-up and decay take half of that. On the sample data a run of 37 steps answered 54 % (`batch_tokens`
2,048) where 52 steps answered 66 %, measured with an earlier filling (`benchmarks/quality/demo.md`)."""
MANY_ROWS = 32
"""Steps of at most so many rows are usual (other trainers' defaults and examples: 8 to 32). Where they are few
all the same the data is small, and smaller steps are no remedy."""
ROUND = 64
"""Sizes that are named are a multiple of this, so that `auto` finds micro batches for them."""


def lines(plan: TrainPlan) -> Iterator[str]:
    """What a step holds; and, where steps are few because each holds many rows, what to set.

    Not where `train.max_steps` made them few: that was asked for.
    """
    unit, answers = ("rows", 1) if plan.rows.groups is None else ("pairs", 2)
    count = max(1, plan.steps_by_epoch[0] - 1)  # the last of an epoch is a smaller one
    usual = [plan.step_at(index) for index in range(count)]
    batches = [batch for step in usual for batch in step.micro_batches]
    rows = sum(batch.members.size for batch in batches) / answers / count
    tokens = sum(step.row_tokens for step in usual) / count
    positions = sum(batch.positions for batch in batches) / count
    yield f"a step: about {rows:.0f} {unit}, {tokens:.0f} tokens in {positions:.0f} positions"
    steps = sum(plan.steps_by_epoch)
    if steps >= FEW_STEPS or rows <= MANY_ROWS or plan.total_steps < steps:
        return
    wanted = min(FEW_STEPS, round(steps * rows / (MANY_ROWS / 2)))
    sizes = _smaller(plan, steps / wanted)
    if sizes:
        yield f"note: {steps} steps of {rows:.0f} {unit} are few to learn from; for about {wanted}: {sizes}"


def _smaller(plan: TrainPlan, part: float) -> str:
    """Settings for about this part of the positions a step; none when they cannot be made smaller."""
    positions = int(plan.batch_tokens * part)
    micro = plan.resources.asked.micro_batch_tokens
    unit = ROUND if micro == "auto" or positions < micro else micro
    size = positions // unit * unit
    if not size:
        return ""
    also = "" if micro == "auto" or unit == micro else f" --set train.micro_batch_tokens={size}"
    return f"--set train.batch_tokens={size}{also}"
