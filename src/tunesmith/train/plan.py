"""A recipe and a dataset resolved for this machine: everything that the loop will need, checked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config import OptimizerConfig, Recipe, refuse_unread
from tunesmith.errors import ConfigError, EnvironmentProblem
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.devices import PrecisionChoice, choose_precision, default_threads, device_name
from tunesmith.models.load import BaseModel, load_tokenizer, resolve_base
from tunesmith.store import Artifact
from tunesmith.train.packing import MicroBatch, Step, pack, plan_epoch
from tunesmith.train.rows import EncodedRows, check_masks, encode_rows

__all__ = ["Cadence", "TrainPlan", "plan_training"]


@dataclass(frozen=True)
class Cadence:
    """Every how many steps something is done."""

    validate_steps: int
    sample_steps: int
    sample_rows: int
    checkpoint_steps: int
    keep_checkpoints: int


@dataclass(frozen=True)
class TrainPlan:
    """What is trained on what, how often and in which number format."""

    base: BaseModel
    tokenizer: Any = field(repr=False)
    renderer: ChatRenderer = field(repr=False)
    objective: str
    method: Any
    optimizer: OptimizerConfig
    rows: EncodedRows = field(repr=False)
    validation: EncodedRows = field(repr=False)
    batch_tokens: int
    micro_batch_tokens: int
    steps_by_epoch: tuple[int, ...]
    total_steps: int
    precision: str
    precision_choice: PrecisionChoice | None
    device: str
    threads: int
    fast: bool
    seed: int
    cadence: Cadence

    def step_at(self, index: int) -> Step:
        """The micro batches of optimizer step `index`, from 0; steps are packed epoch by epoch."""
        epoch, first = self.epoch_of(index)
        if epoch not in self._epochs:
            self._epochs.clear()
            self._epochs[epoch] = self._pack(epoch)
        return self._epochs[epoch][index - first]

    def epoch_of(self, index: int) -> tuple[int, int]:
        """The epoch of a step and the index of that epoch's first step."""
        first = 0
        for epoch, steps in enumerate(self.steps_by_epoch):
            if index < first + steps:
                return epoch, first
            first += steps
        raise IndexError(f"step {index} of {first}")

    def validation_batches(self) -> Iterator[MicroBatch]:
        """All validation rows, packed as the training rows are."""
        return pack([(r.tokens, r.trained) for r in self.validation.rows], self.micro_batch_tokens)

    def _pack(self, epoch: int) -> list[Step]:
        return _epoch_steps(
            self.rows, self.batch_tokens, self.micro_batch_tokens, (self.seed, epoch)
        )

    _epochs: dict[int, list[Step]] = field(default_factory=dict, repr=False, compare=False)


def plan_training(
    recipe: Recipe, dataset: Artifact, chosen: Mapping[str, Any] | None = None
) -> TrainPlan:
    """Read all that training will use, resolve it, and prove the masks.

    Args:
        recipe: the whole recipe.
        dataset: a sealed dataset.
        chosen: precision and threads of an earlier attempt, which a resumed run must keep.

    Raises:
        ConfigError: settings contradict each other, or one would have no effect.
        DataError: rows are too long.
        TrainingError: a loss mask is wrong.
        MissingError, ModelError: the base model.
    """
    config = recipe.train
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise EnvironmentProblem(
            f"training was started with {os.environ['WORLD_SIZE']} processes",
            why="this version trains on one device",
            fix="start it without torchrun or accelerate launch",
        )
    if config.batch_tokens % config.micro_batch_tokens:
        raise ConfigError(
            f"train.batch_tokens = {config.batch_tokens} is not a whole number of "
            f"train.micro_batch_tokens = {config.micro_batch_tokens}",
            fix=f"--set train.batch_tokens={_rounded(config.batch_tokens, config.micro_batch_tokens)}",
        )
    base = resolve_base(recipe.model)
    tokenizer = load_tokenizer(base)
    renderer = ChatRenderer(tokenizer)
    limits: dict[str, Any] = {
        "max_row_tokens": config.max_row_tokens,
        "on_long_row": config.on_long_row,
    }
    train_path, validation_path = dataset.path("train.jsonl"), dataset.path("validation.jsonl")
    rows = encode_rows(train_path, renderer, **limits)
    validation = encode_rows(validation_path, renderer, **limits)
    check_masks(rows.rows, train_path, renderer)
    check_masks(validation.rows, validation_path, renderer)
    sizes = (config.batch_tokens, config.micro_batch_tokens)
    steps_by_epoch = _count_steps(rows, sizes, config.epochs, recipe.seed)
    total_steps = sum(steps_by_epoch)
    if config.max_steps is not None:
        total_steps = min(total_steps, config.max_steps)
    cadence = _cadence(recipe, total_steps)
    device = device_name()
    threads = config.threads or default_threads()
    measure = config.precision == "auto" and not chosen
    choice = choose_precision(device, threads) if measure else None
    precision = choice.precision if choice else config.precision
    plan = TrainPlan(
        base=base,
        tokenizer=tokenizer,
        renderer=renderer,
        objective=config.objective.kind,
        method=config.method,
        optimizer=config.optimizer,
        rows=rows,
        validation=validation,
        batch_tokens=sizes[0],
        micro_batch_tokens=sizes[1],
        steps_by_epoch=steps_by_epoch,
        total_steps=total_steps,
        precision=chosen["precision"] if chosen else precision,
        precision_choice=choice,
        device=device,
        threads=chosen["threads"] if chosen else threads,
        fast=config.fast,
        seed=recipe.seed,
        cadence=cadence,
    )
    _read_all(plan)
    refuse_unread(recipe, "train")
    refuse_unread(recipe, "model")
    return plan


def _read_all(plan: TrainPlan) -> None:
    """Name the fields that the loop reads later, so that they count as read now."""
    for settings in (plan.method, plan.optimizer):
        for name in type(settings).model_fields:
            getattr(settings, name)


def _cadence(recipe: Recipe, total_steps: int) -> Cadence:
    config = recipe.train
    rows = config.sample_rows
    every = (config.sample_every_steps or _share(total_steps, 3)) if rows else total_steps
    return Cadence(
        validate_steps=config.validate_every_steps or _share(total_steps, 8),
        sample_steps=every,
        sample_rows=rows,
        checkpoint_steps=config.checkpoint_every_steps or _share(total_steps, 10),
        keep_checkpoints=config.keep_checkpoints,
    )


def _share(total_steps: int, parts: int) -> int:
    return max(1, math.ceil(total_steps / parts))


def _rounded(value: int, unit: int) -> int:
    return max(unit, round(value / unit) * unit)


def _count_steps(
    rows: EncodedRows, sizes: tuple[int, int], epochs: float, seed: int
) -> tuple[int, ...]:
    """Optimizer steps of each epoch; a part of an epoch takes its first steps."""
    counts = []
    for epoch in range(math.ceil(epochs)):
        steps = len(_epoch_steps(rows, *sizes, (seed, epoch)))
        part = min(1.0, epochs - epoch)
        counts.append(max(1, round(steps * part)))
    return tuple(counts)


def _epoch_steps(
    rows: EncodedRows, batch_tokens: int, micro_batch_tokens: int, draw: tuple[int, int]
) -> list[Step]:
    return plan_epoch(
        [(row.tokens, row.trained) for row in rows.rows],
        batch_tokens=batch_tokens,
        micro_batch_tokens=micro_batch_tokens,
        seed=draw[0],
        epoch=draw[1],
    )
