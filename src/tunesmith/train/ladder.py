"""`--fit`: settings lowered one by one, in the field's order, until a step fits in memory.

The order is by what a rung costs the result: a smaller micro batch and activation checkpointing
cost time alone; QLoRA rounds frozen weights; shorter rows lose prompt text; a lower rank learns
less; 8-bit moments round the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tunesmith.config import LoraMethod, QloraMethod, TrainConfig
from tunesmith.errors import CapacityError, listed
from tunesmith.models.memory import (
    GIB,
    MOMENTS_8BIT_BYTES,
    MOMENTS_BYTES,
    Method,
    Recompute,
    Shape,
    Work,
    needs,
)

__all__ = ["Situation", "climb", "need_of"]

KEEP_ALL = Recompute()
LEAST_MICRO_TOKENS = 64
LEAST_ROW_TOKENS = 128
LEAST_RANK = 4


@dataclass(frozen=True)
class Situation:
    """What the ladder works on.

    Attributes:
        config: settings so far.
        micro_batch_tokens: as chosen; `config` may say auto.
        longest_row: tokens of the longest row.
        precision: "bf16" or "fp32".
        recompute: what is predicted to be computed again.
        offers: method and optimizer kinds that this machine has.
    """

    config: TrainConfig
    micro_batch_tokens: int
    longest_row: int
    precision: str
    shape: Shape
    recompute: Recompute = KEEP_ALL
    offers: frozenset[str] = frozenset()

    def changed(self, **changes: Any) -> Situation:
        """With other settings in `train`."""
        return replace(self, config=self.config.model_copy(update=changes))


def need_of(at: Situation) -> int:
    """Bytes at the peak of a step, by the formula of `models.memory`."""
    method, optimizer = at.config.method, at.config.optimizer
    size = at.micro_batch_tokens
    while size < at.longest_row - 1:
        size *= 2
    kind = Method(method.kind, method.kind, 2 if at.precision == "bf16" else 4)
    work = Work(
        micro_batch_tokens=size,
        rank=getattr(method, "rank", 1),
        row_tokens=at.longest_row,
        recompute=at.recompute,
        moment_bytes=MOMENTS_8BIT_BYTES if optimizer.kind == "adamw_8bit" else MOMENTS_BYTES,
        in_backward=optimizer.in_backward == "on",
    )
    return needs(at.shape, kind, work).total


def climb(
    start: Situation, budget: int, need: Callable[[Situation], int] = need_of
) -> tuple[Situation, list[str]]:
    """The first situation on the ladder that fits, and a line for each rung that was taken.

    A rung that would gain nothing (a smaller micro batch when one row alone fills it) is left out.

    Raises:
        CapacityError: nothing fits; the message holds the whole ladder.
    """
    at, taken = start, need(start)
    lines = [f"as asked: {taken / GIB:.2f} GiB, {budget / GIB:.2f} GiB may be taken"]
    for show, ladder in LADDER:
        for lower in ladder(at):
            if taken <= budget:
                return at, lines
            after = need(lower)
            if after < taken:
                change = f"{show(at)} -> {show(lower)}"
                lines.append(f"{change}: {taken / GIB:.2f} -> {after / GIB:.2f} GiB")
                at, taken = lower, after
    if taken <= budget:
        return at, lines
    raise CapacityError(
        f"no setting of the ladder fits into {budget / GIB:.2f} GiB:\n{listed(lines)}",
        why="the model with its adapters and the smallest micro batch takes more",
        fix="choose a smaller model (`tunesmith doctor` lists what fits here), raise "
        "train.memory_gib, or close other programs",
    )


def _smaller_batches(at: Situation) -> Iterator[Situation]:
    size = at.micro_batch_tokens
    while True:
        smaller = range(LEAST_MICRO_TOKENS, size // 2 + 1)
        divisors = [n for n in smaller if at.config.batch_tokens % n == 0]
        if not divisors:
            return
        size = divisors[-1]
        yield replace(at.changed(micro_batch_tokens=size), micro_batch_tokens=size)


def _checkpointing(at: Situation) -> Iterator[Situation]:
    at = at.changed(activation_checkpointing="auto")
    for level in (Recompute(at.shape.layers), Recompute(at.shape.layers, at.shape.layers)):
        yield replace(at, recompute=level)


def _qlora(at: Situation) -> Iterator[Situation]:
    method = at.config.method
    if not isinstance(method, LoraMethod) or "qlora" not in at.offers:
        return
    fields = {name for name in LoraMethod.model_fields if name != "kind"}
    both = fields & set(QloraMethod.model_fields)
    # A setting that QLoRA does not have must not be lost silently: then this rung is not there.
    if all(getattr(method, name) is None for name in fields - both):
        shared = {name: getattr(method, name) for name in both}
        yield at.changed(method=QloraMethod(kind="qlora", **shared))


def _shorter_rows(at: Situation) -> Iterator[Situation]:
    if at.config.on_long_row == "refuse":
        return
    longest = at.longest_row // 2
    while longest >= LEAST_ROW_TOKENS:
        yield replace(at.changed(max_row_tokens=longest), longest_row=longest)
        longest //= 2


def _lower_ranks(at: Situation) -> Iterator[Situation]:
    method: Any = at.config.method
    while getattr(method, "rank", 0) // 2 >= LEAST_RANK:
        # The scale alpha / rank stays.
        method = method.model_copy(update={"rank": method.rank // 2, "alpha": method.alpha / 2})
        yield at.changed(method=method)


def _8bit(at: Situation) -> Iterator[Situation]:
    optimizer = at.config.optimizer
    is_bf16 = at.config.method.kind == "full" and at.precision == "bf16"
    if optimizer.kind == "adamw" and "adamw_8bit" in at.offers and not is_bf16:
        yield at.changed(optimizer=optimizer.model_copy(update={"kind": "adamw_8bit"}))


def _shown_rank(at: Situation) -> str:
    method: Any = at.config.method
    return f"rank {method.rank} (alpha {method.alpha:g})"


def _shown_recompute(at: Situation) -> str:
    asked = at.config.activation_checkpointing
    return f"activation_checkpointing {asked} ({at.recompute})"


LADDER: tuple[
    tuple[Callable[[Situation], str], Callable[[Situation], Iterator[Situation]]], ...
] = (
    (lambda at: f"micro_batch_tokens {at.micro_batch_tokens}", _smaller_batches),
    (_shown_recompute, _checkpointing),
    (lambda at: f"method {at.config.method.kind}", _qlora),
    (lambda at: f"longest row {at.longest_row} ({at.config.on_long_row})", _shorter_rows),
    # Again: a long row may have filled the smallest micro batch alone.
    (lambda at: f"micro_batch_tokens {at.micro_batch_tokens}", _smaller_batches),
    (_shown_rank, _lower_ranks),
    (lambda at: f"optimizer {at.config.optimizer.kind}", _8bit),
)
