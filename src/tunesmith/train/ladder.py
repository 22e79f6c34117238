"""`--fit`: settings lowered one by one, in the field's order, until a step fits.

By the formula before the model is loaded (`climb`), then rung by rung (`next_rung`) as long as the
rehearsal finds more than that.

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
from tunesmith.models.load import BaseModel
from tunesmith.models.memory import (
    GIB,
    MOMENTS_8BIT_BYTES,
    MOMENTS_BYTES,
    Method,
    Need,
    Recompute,
    Shape,
    Work,
    needs,
    nf4_bits,
    shape_of,
)
from tunesmith.train.filling import capacity_for

__all__ = [
    "LADDER_KEYS",
    "Situation",
    "climb",
    "fitted",
    "is_in_backward",
    "known_shape",
    "need_of",
    "needs_of",
    "next_rung",
    "offers",
]

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


def needs_of(at: Situation) -> Need:
    """What a step takes at its peak, by the formula of `models.memory`."""
    method: Any = at.config.method
    is_nf4 = isinstance(method, QloraMethod)
    kind = Method(
        name=method.kind,
        kind=method.kind,
        element_bytes=2 if at.precision == "bf16" else 4,
        linear_bits=nf4_bits(method.block_size, method.double_quant) if is_nf4 else nf4_bits(),
    )
    is_8bit = at.config.optimizer.kind == "adamw_8bit"
    work = Work(
        micro_batch_tokens=capacity_for(at.micro_batch_tokens, at.longest_row - 1),
        rank=getattr(method, "rank", 1),
        row_tokens=at.longest_row,
        recompute=at.recompute,
        moment_bytes=MOMENTS_8BIT_BYTES if is_8bit else MOMENTS_BYTES,
        in_backward=is_in_backward(at.config, at.micro_batch_tokens),
        layers=getattr(method, "layers", None),
        targets=_names(getattr(method, "targets", "all-linear")),
    )
    return needs(at.shape, kind, work)


def _names(targets: str | tuple[str, ...]) -> tuple[str, ...] | None:
    return None if isinstance(targets, str) else targets


def need_of(at: Situation) -> int:
    """All of `needs_of`, in bytes."""
    return needs_of(at).total


def is_in_backward(config: TrainConfig, micro_batch_tokens: int) -> bool:
    """Whether the optimizer works inside the backward pass."""
    optimizer = config.optimizer
    if optimizer.in_backward != "auto":
        return optimizer.in_backward == "on"
    return (
        config.method.kind == "full"
        and optimizer.max_grad_norm is None
        and micro_batch_tokens == config.batch_tokens
    )


def known_shape(base: BaseModel) -> Shape | None:
    """The model's shape; None when its config is not Llama-like."""
    try:
        return shape_of(base.dir)
    except (KeyError, TypeError):
        return None


def offers() -> frozenset[str]:
    """Method and optimizer kinds that this machine has and a ladder may end at."""
    from importlib.util import find_spec

    from tunesmith.train.methods import METHODS

    kinds = {"qlora"} & set(METHODS)
    return frozenset(kinds | ({"adamw_8bit"} if find_spec("bitsandbytes") else set()))


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


def next_rung(at: Situation) -> tuple[str, Situation] | None:
    """The next rung that would gain something by the formula, and what changes there in words.

    None at the end of the ladder. For one that was climbed already and was still too little.
    """
    for show, ladder in LADDER:
        for lower in ladder(at):
            if need_of(lower) < need_of(at) and fitted(lower.config) != fitted(at.config):
                return f"{show(at)} -> {show(lower)}", lower
    return None


LADDER_KEYS = (
    "micro_batch_tokens",
    "activation_checkpointing",
    "method",
    "max_row_tokens",
    "optimizer",
)
"""The settings of `train` that the ladder may change."""


def fitted(config: TrainConfig) -> dict[str, Any]:
    """The settings that the ladder may have changed, as JSON values."""
    values = config.model_dump(mode="json")
    return {key: values[key] for key in LADDER_KEYS}


def _smaller_batches(at: Situation) -> Iterator[Situation]:
    if at.config.optimizer.in_backward == "on":
        return  # each gradient is used at once: a step is one micro batch
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
