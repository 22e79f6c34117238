"""What of the machine a run uses: precision, threads, micro batch, memory; measured, or as asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.config import TrainConfig
from tunesmith.errors import CapacityError, ConfigError
from tunesmith.models.devices import PrecisionChoice, choose_precision, default_threads, device_name
from tunesmith.models.load import BaseModel
from tunesmith.models.memory import GIB, Recompute, Shape
from tunesmith.train import measure
from tunesmith.train.ladder import (
    Situation,
    climb,
    fitted,
    is_in_backward,
    known_shape,
    need_of,
    needs_of,
    offers,
)
from tunesmith.train.memory import memory_budget
from tunesmith.train.packing import Step

__all__ = ["RESOURCE_KEYS", "Packed", "Resources", "check_sizes", "settle"]

RESOURCE_KEYS = (
    "precision",
    "threads",
    "micro_batch_tokens",
    "memory_gib",
    "activation_checkpointing",
    "fit",
)
"""The settings of `train` that are resolved here."""

DEFAULT_MICRO_TOKENS = 1_024
"""Where nothing can be measured: a model whose shape is not known."""
THREAD_SECONDS, MICRO_SECONDS = 0.4, 1.0

Packed = Callable[[int], Sequence[Step]]
"""(micro batch size) -> the optimizer steps that the rows make."""


@dataclass(frozen=True)
class Resources:
    """What was settled before the model is loaded.

    Attributes:
        asked: the settings of `train` as the user wrote them.
        config: the same after the ladder of `--fit`.
        memory_bytes: what the process may take.
        is_budget_set: the user said so.
        checkpointing: `train.activation_checkpointing`.
        in_backward: the optimizer works inside the backward pass.
        told: what was measured and chosen, a line each.
        measured: the same for the run's record.
    """

    asked: TrainConfig
    config: TrainConfig
    device: str
    precision: str
    precision_choice: PrecisionChoice | None
    threads: int
    micro_batch_tokens: int
    memory_bytes: int
    is_budget_set: bool
    checkpointing: str | int
    in_backward: bool
    told: tuple[str, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)

    def as_choice(self) -> dict[str, Any]:
        """What a resumed run must keep: chosen anew it might no longer equal the straight one."""
        return {
            "precision": self.precision,
            "threads": self.threads,
            "micro_batch_tokens": self.micro_batch_tokens,
            "fitted": fitted(self.config) if self.config.fit else {},
            "measured": dict(self.measured),
        }


@dataclass(frozen=True)
class _Asked:
    """Input of the choices."""

    config: TrainConfig
    base: BaseModel
    packed: Packed
    longest_row: int
    device: str


def settle(
    config: TrainConfig,
    base: BaseModel,
    packed: Packed,
    longest_row: int,
    chosen: Mapping[str, Any] | None = None,
) -> Resources:
    """Choose what is `auto`, by about two seconds of measuring, and take the ladder when asked to.

    Args:
        config: `train` of the recipe.
        base: the model; its shape decides what is timed.
        packed: how training rows are packed, by micro batch size; a sample of them is enough.
        longest_row: tokens.
        chosen: `as_choice` of an earlier attempt.

    Raises:
        ConfigError: settings contradict each other.
        CapacityError: the model cannot fit, or nothing on the ladder does.
    """
    device = device_name()
    asked = _Asked(config, base, packed, longest_row, device)
    budget = memory_budget(config.memory_gib, device)
    if chosen:
        # Read here, so that they do not count as keys without effect: the first attempt used them.
        _ = config.precision, config.threads
        kept = _resources(asked, budget, _kept(config, chosen), chosen)
        return replace(kept, measured=chosen.get("measured", {}))
    told: list[str] = []
    measured: dict[str, Any] = {}
    shape = known_shape(base)
    choice = choose_precision(device, config.threads) if config.precision == "auto" else None
    if choice:
        told.append(f"bf16 {choice.bf16_gflops:.0f}, fp32 {choice.fp32_gflops:.0f} GFLOP/s")
    precision = choice.precision if choice else config.precision
    threads = _threads(asked, shape, precision, told, measured)
    _use_threads(threads)
    micro = _micro_batch(asked, shape, (precision, budget), told, measured)
    settled: dict[str, Any] = {
        "precision": precision,
        "threads": threads,
        "micro_batch_tokens": micro,
    }
    if shape is not None:
        config, settled["micro_batch_tokens"] = _fit(asked, shape, settled, budget, told, measured)
    elif config.fit:
        told.append("fit: nothing predicted, since the model's config is not Llama-like")
    found = _resources(asked, budget, config, settled)
    return replace(found, precision_choice=choice, told=tuple(told), measured=measured)


def check_sizes(config: TrainConfig) -> None:
    """Settings that contradict each other.

    Raises:
        ConfigError: names them all.
    """
    micro, optimizer = config.micro_batch_tokens, config.optimizer
    if micro != "auto" and config.batch_tokens % micro:
        rounded = max(micro, round(config.batch_tokens / micro) * micro)
        raise ConfigError(
            f"train.batch_tokens = {config.batch_tokens} is not a whole number of "
            f"train.micro_batch_tokens = {micro}",
            fix=f"--set train.batch_tokens={rounded}",
        )
    if optimizer.in_backward != "on":
        return
    if optimizer.max_grad_norm is not None:
        raise ConfigError(
            f"train.optimizer.in_backward = on with max_grad_norm = {optimizer.max_grad_norm}",
            why="the global norm is known only after the last gradient, when the first are used and gone",
            fix="--set train.optimizer.max_grad_norm=null, or --set train.optimizer.in_backward=auto",
        )
    if micro not in ("auto", config.batch_tokens):
        raise ConfigError(
            f"train.optimizer.in_backward = on with {config.batch_tokens // int(micro)} micro batches a "
            "step",
            why="each gradient is used at once, so there is nothing to add the next micro batch's to",
            fix=f"--set train.batch_tokens={micro}",
        )


def _threads(
    asked: _Asked, shape: Shape | None, precision: str, told: list[str], measured: dict[str, Any]
) -> int:
    if asked.config.threads is not None:
        return asked.config.threads
    counts = measure.thread_counts()
    if shape is None or asked.device != "cpu" or len(counts) == 1:
        return default_threads()
    clock = measure.LayerClock(shape, precision, asked.device)
    seconds = measure.best_seconds(counts, clock.threads, seconds=THREAD_SECONDS)
    threads = measure.smallest_near_best(seconds)
    told.append(measure.told(seconds, threads, "threads"))
    measured["threads_milliseconds"] = measure.as_facts(seconds)
    return threads


def _use_threads(threads: int) -> None:
    """From now on: what is timed next is timed as training will run."""
    import torch

    torch.set_num_threads(threads)


def _micro_batch(
    asked: _Asked,
    shape: Shape | None,
    limits: tuple[str, int],
    told: list[str],
    measured: dict[str, Any],
) -> int:
    config = asked.config
    if config.micro_batch_tokens != "auto":
        return config.micro_batch_tokens
    if config.optimizer.in_backward == "on":
        return config.batch_tokens
    sizes = measure.micro_batch_sizes(config.batch_tokens)
    if shape is None or len(sizes) == 1:
        return min(sizes, key=lambda size: abs(size - DEFAULT_MICRO_TOKENS))
    precision, budget = limits
    positions, steps = _packings(asked, sizes)
    sizes = measure.sensible(steps)
    start = _situation(asked, shape, precision)
    fitting = [s for s in sizes if need_of(replace(start, micro_batch_tokens=s)) <= budget]
    sizes = fitting or sizes[:1]
    kind = config.method.kind
    is_widened = measure.is_widened(kind, precision)
    clock = measure.LayerClock(shape, precision, asked.device, is_widened)
    layer = measure.best_seconds(sizes, clock.tokens, seconds=MICRO_SECONDS)
    seconds = measure.epoch_seconds(layer, positions)
    near = measure.NEAR_FOR_LITTLE_MEMORY if kind == "qlora" else measure.NEAR
    micro = measure.smallest_near_best(seconds, near)
    told.append(measure.told(seconds, micro, "tokens a micro batch"))
    measured["micro_batch_layer_milliseconds"] = measure.as_facts(layer)
    measured["micro_batch_positions"] = {str(size): positions[size] for size in sizes}
    return micro


def _packings(asked: _Asked, sizes: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """By micro batch size: positions and optimizer steps that the same rows make."""
    positions, steps = {}, {}
    for size in sizes:
        made = asked.packed(size)
        positions[size] = sum(batch.positions for step in made for batch in step.micro_batches)
        steps[size] = len(made)
    return positions, steps


def _situation(asked: _Asked, shape: Shape, precision: str) -> Situation:
    return Situation(
        config=asked.config,
        micro_batch_tokens=DEFAULT_MICRO_TOKENS,
        longest_row=asked.longest_row,
        precision=precision,
        shape=shape,
        offers=offers(),
    )


def _fit(
    asked: _Asked,
    shape: Shape,
    settled: Mapping[str, Any],
    budget: int,
    told: list[str],
    measured: dict[str, Any],
) -> tuple[TrainConfig, int]:
    """Settings and micro batch after the ladder; as they are without `train.fit`.

    Raises:
        CapacityError: nothing on the ladder fits; or, without it, weights, gradients and optimizer
            alone are over the budget, whatever the activations.
    """
    start = replace(
        _situation(asked, shape, settled["precision"]),
        micro_batch_tokens=settled["micro_batch_tokens"],
        recompute=_asked_recompute(asked.config),
    )
    if not asked.config.fit:
        _refuse_hopeless(asked, start, budget)
        return asked.config, start.micro_batch_tokens
    at, lines = climb(start, budget)
    told += [f"fit: {line}" for line in lines]
    measured["fit"] = lines
    return at.config, at.micro_batch_tokens


def _asked_recompute(config: TrainConfig) -> Recompute:
    asked = config.activation_checkpointing
    return Recompute(asked, asked) if isinstance(asked, int) else Recompute()


def _refuse_hopeless(asked: _Asked, at: Situation, budget: int) -> None:
    """What can be known before the model is loaded, so that the system's own killer is not met."""
    need = needs_of(at)
    least = need.weights + need.trainable + need.gradients + need.optimizer
    if least > budget:
        raise CapacityError(
            f"weights, gradients and optimizer take {least / GIB:.2f} GiB; training may take "
            f"{budget / GIB:.2f} GiB",
            why=f"{asked.base.name} has {at.shape.parameters / 1e6:.0f} million weights, trained by "
            f"{asked.config.method.kind} in {at.precision}",
            fix="--fit lowers settings one by one until a step fits; or choose a smaller model "
            "(`tunesmith doctor` lists what fits here)",
        )


def _resources(
    asked: _Asked, budget: int, config: TrainConfig, settled: Mapping[str, Any]
) -> Resources:
    micro = int(settled["micro_batch_tokens"])
    # A net: whatever was settled, above or by an earlier attempt, holds together as if it were asked for.
    check_sizes(config.model_copy(update={"micro_batch_tokens": micro}))
    return Resources(
        asked=asked.config,
        config=config,
        device=asked.device,
        precision=settled["precision"],
        precision_choice=None,
        threads=settled["threads"],
        micro_batch_tokens=micro,
        memory_bytes=budget,
        is_budget_set=config.memory_gib is not None,
        checkpointing=config.activation_checkpointing,
        in_backward=is_in_backward(config, micro),
    )


def _kept(config: TrainConfig, chosen: Mapping[str, Any]) -> TrainConfig:
    """The settings of an earlier attempt."""
    fitted = chosen.get("fitted")
    if not fitted:
        return config
    return TrainConfig.model_validate({**config.model_dump(mode="json"), **fitted}, strict=False)
