"""A recipe and a dataset resolved for this machine: everything that the loop will need, checked."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config import OptimizerConfig, Recipe, refuse_unread
from tunesmith.errors import DataError, EnvironmentProblem
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.devices import PrecisionChoice
from tunesmith.models.load import BaseModel, load_tokenizer, resolve_base
from tunesmith.models.token_cache import TokenCache
from tunesmith.store import Artifact
from tunesmith.train.masks import MaskFigures
from tunesmith.train.objectives import objective_of
from tunesmith.train.packing import Floats, MicroBatch, Step, pack, plan_epoch, refer
from tunesmith.train.resources import RESOURCE_KEYS, Resources, check_sizes, settle
from tunesmith.train.rows import EncodedRows, check_kind, check_masks, encode_rows

__all__ = ["Cadence", "TrainPlan", "plan_training"]

SAMPLE_ROWS = 2_000
"""Rows that are packed to see what each micro batch size makes of them."""


@dataclass(frozen=True)
class Cadence:
    """Every how many steps something is done, and what of it is kept."""

    validate_steps: int
    sample_steps: int
    sample_rows: int
    checkpoint_steps: int
    keep_checkpoints: int
    keep: str
    """Which weights are sealed: "last" or "best"."""


@dataclass(frozen=True)
class TrainPlan:
    """What is trained on what, how often and in which number format."""

    base: BaseModel
    tokenizer: Any = field(repr=False)
    renderer: ChatRenderer = field(repr=False)
    objective: Any
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
    resources: Resources = field(repr=False)
    proved: Mapping[str, MaskFigures] = field(default_factory=dict)
    """Split -> what the quick proofs found on all of its rows."""
    trunk_cache: str = "auto"
    """Where the frozen layers' output is kept: auto, ram, disk or off."""

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
        batches = _in_order(self.validation, self.micro_batch_tokens)
        known = self._references.get("validation")
        return batches if known is None else (refer(batch, known) for batch in batches)

    def batches_in_order(self) -> Iterator[MicroBatch]:
        """All training rows once, as they come."""
        return _in_order(self.rows, self.micro_batch_tokens)

    def referring(self, batch: MicroBatch) -> MicroBatch:
        """A micro batch of training rows with its part of what `refer_to` gave."""
        known = self._references.get("train")
        return batch if known is None else refer(batch, known)

    def refer_to(self, references: Mapping[str, Floats]) -> None:
        """From now on micro batches hold their rows' part of these; split -> (rows,)."""
        self._references.update(references)
        self._epochs.clear()

    def _pack(self, epoch: int) -> list[Step]:
        sizes = (self.batch_tokens, self.micro_batch_tokens)
        steps = _epoch_steps(self.rows, *sizes, (self.seed, epoch))
        known = self._references.get("train")
        return steps if known is None else [step.referring_to(known) for step in steps]

    _epochs: dict[int, list[Step]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _references: dict[str, Floats] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )


def plan_training(
    recipe: Recipe, dataset: Artifact, chosen: Mapping[str, Any] | None = None
) -> TrainPlan:
    """Read all that training will use, resolve it, and prove the masks.

    Args:
        recipe: the whole recipe.
        dataset: a sealed dataset.
        chosen: what an earlier attempt chose by measuring, which a resumed run must keep.

    Raises:
        ConfigError: settings contradict each other, or one would have no effect.
        DataError: rows are too long.
        TrainingError: a loss mask is wrong.
        CapacityError: it cannot fit in memory.
        MissingError, ModelError: the base model.
    """
    config = recipe.train
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise EnvironmentProblem(
            f"training was started with {os.environ['WORLD_SIZE']} processes",
            why="this version trains on one device",
            fix="start it without torchrun or accelerate launch",
        )
    check_sizes(config)
    check_kind(dataset)
    base = resolve_base(recipe.model)
    tokenizer = load_tokenizer(base)
    renderer = ChatRenderer(tokenizer)
    train_path, validation_path = dataset.path("train.jsonl"), dataset.path("validation.jsonl")
    limits: dict[str, Any] = {
        "on_long_row": config.on_long_row,
        "cache": TokenCache.of(config.token_cache_gib),
    }
    rows = encode_rows(train_path, renderer, max_row_tokens=config.max_row_tokens, **limits)
    _check_kind(config.objective, rows, train_path)
    resources = _resources(recipe, base, rows, chosen)
    settled = resources.config
    if settled.max_row_tokens != config.max_row_tokens:
        rows = encode_rows(train_path, renderer, max_row_tokens=settled.max_row_tokens, **limits)
    limits["max_row_tokens"] = settled.max_row_tokens
    validation = encode_rows(validation_path, renderer, **limits)
    proved = {
        "train": check_masks(rows.rows, train_path, renderer),
        "validation": check_masks(validation.rows, validation_path, renderer),
    }
    sizes = (config.batch_tokens, resources.micro_batch_tokens)
    steps_by_epoch = _count_steps(rows, sizes, config.epochs, recipe.seed)
    total_steps = sum(steps_by_epoch)
    if config.max_steps is not None:
        total_steps = min(total_steps, config.max_steps)
    cadence = _cadence(recipe, total_steps)
    plan = TrainPlan(
        base=base,
        tokenizer=tokenizer,
        renderer=renderer,
        objective=config.objective,
        method=settled.method,
        optimizer=settled.optimizer,
        rows=rows,
        validation=validation,
        batch_tokens=sizes[0],
        micro_batch_tokens=sizes[1],
        steps_by_epoch=steps_by_epoch,
        total_steps=total_steps,
        precision=resources.precision,
        precision_choice=resources.precision_choice,
        device=resources.device,
        threads=resources.threads,
        resources=resources,
        fast=config.fast,
        seed=recipe.seed,
        cadence=cadence,
        proved=proved,
        trunk_cache=config.trunk_cache,
    )
    _read_all(plan, recipe)
    refuse_unread(recipe, "train")
    refuse_unread(recipe, "model")
    return plan


def _read_all(plan: TrainPlan, recipe: Recipe) -> None:
    """Name the fields that the loop reads later, so that they count as read now."""
    for settings in (
        plan.objective,
        plan.method,
        plan.optimizer,
        recipe.train.method,
        recipe.train.optimizer,
    ):
        for name in type(settings).model_fields:
            getattr(settings, name)
    # What an earlier attempt chose stands instead of these when it is resumed.
    for name in RESOURCE_KEYS:
        getattr(recipe.train, name)


def _resources(
    recipe: Recipe, base: BaseModel, rows: EncodedRows, chosen: Mapping[str, Any] | None
) -> Resources:
    config = recipe.train
    sample = rows.first(SAMPLE_ROWS)
    return settle(
        config,
        base,
        lambda size: _epoch_steps(sample, config.batch_tokens, size, (recipe.seed, 0)),
        max((len(row.tokens) for row in rows.rows), default=1),
        chosen,
    )


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
        keep=config.keep,
    )


def _share(total_steps: int, parts: int) -> int:
    return max(1, math.ceil(total_steps / parts))


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
        groups=rows.groups,
    )


def _in_order(rows: EncodedRows, micro_batch_tokens: int) -> Iterator[MicroBatch]:
    inputs = [(row.tokens, row.trained) for row in rows.rows]
    return pack(inputs, micro_batch_tokens, groups=rows.groups)


def _check_kind(objective: Any, rows: EncodedRows, path: Path) -> None:
    """Refuse pairs for an objective of single answers, and the other way round."""
    needs_pairs = objective_of(objective).needs_pairs
    if not rows.rows or needs_pairs == (rows.groups is not None):
        return
    has, other = ("conversations", "sft") if needs_pairs else ("pairs of answers", "dpo")
    wants = "pairs (prompt, chosen, rejected)" if needs_pairs else "conversations"
    raise DataError(
        f"{path} holds {has}; train.objective.kind = {objective.kind!r} learns from {wants}",
        fix=f"--set train.objective.kind={other}, or name a dataset of {wants}",
    )
