"""A failure record's micro batch run again, with every layer watched: does it go wrong in the same place?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import ModelConfig, TrainConfig
from tunesmith.errors import MissingError, ModelError
from tunesmith.models.load import BaseModel, resolve_base
from tunesmith.train import randomness
from tunesmith.train.methods import trainable
from tunesmith.train.nonfinite import Failure, Finding, locate_in
from tunesmith.train.objectives import Objective, objective_of
from tunesmith.train.record import FailureRecord, read_record, runs_of
from tunesmith.train.session import ModelPlan, load_trainable

if TYPE_CHECKING:
    import torch

__all__ = ["ReplayResult", "replay"]


@dataclass(frozen=True)
class ReplayResult:
    """What a failure record's micro batch did when it was run again.

    Attributes:
        is_reproduced: the same thing went wrong in the same place.
        expected: what was found in training.
        found: what was found now; None when everything is finite.
        precision: number format of this run.
        step: optimizer steps done before the micro batch.
        lines: its lines in `<split>.jsonl`.
    """

    is_reproduced: bool
    expected: Finding | None
    found: Finding | None
    precision: str
    trained_precision: str
    split: str
    step: int
    lines: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def replay(
    place: Path, *, precision: str | None = None, base_dir: Path | None = None
) -> ReplayResult:
    """Run a failure record's micro batch again on its base model.

    Args:
        place: the failure record.
        precision: "fp32" or "bf16"; that of the training run when not given.
        base_dir: folder of the base model, when it is no longer where it was.

    Raises:
        MissingError: no failure record, or no base model.
        ArtifactError: the failure record is damaged.
        ModelError: the base model is another one than in training.
    """
    record = read_record(place)
    model_facts = record.facts["model"]
    base = _base(model_facts["base"], base_dir)
    config = TrainConfig.model_validate({key: model_facts[key] for key in ("method", "objective")})
    settings = {key: model_facts[key] for key in ("precision", "device", "threads", "seed", "fast")}
    plan = ModelPlan(base=base, method=config.method, **settings)
    plan = replace(plan, precision=precision or plan.precision)
    model, _ = load_trainable(plan)
    _put(record.weights, model, place)
    randomness.restore(record.random)
    found = _run(record, model, objective_of(config.objective))
    expected = record.finding
    same = found is not None and expected is not None and found.is_same(expected)
    facts = record.facts
    return ReplayResult(
        is_reproduced=same,
        expected=expected,
        found=found,
        precision=plan.precision,
        trained_precision=model_facts["precision"],
        split=facts["split"],
        step=facts["step"],
        lines=tuple(facts["lines"]),
    )


def _run(record: FailureRecord, model: Any, objective: Objective) -> Finding | None:
    facts = record.facts
    failure = Failure(
        split=facts["split"],
        step=facts["step"],
        batches=record.batches,
        normaliser=facts["normaliser"],
        random=dict(record.random),
        loss=float(facts["loss"]),
        norm=float(facts["norm"]),
    )
    is_training = failure.split == "train"
    model.train(is_training)
    return locate_in(model, runs_of(model, objective, failure), with_norm=is_training)[1]


def _base(facts: Mapping[str, str], moved_to: Path | None) -> BaseModel:
    place = moved_to or Path(facts["dir"])
    if not place.is_dir():
        raise MissingError(
            f"the base model {facts['name']} is not in {place}",
            why="it was moved or deleted after the training run",
            fix="name its folder with --base",
        )
    base = resolve_base(ModelConfig(base=str(place)))
    if base.sha256 != facts["sha256"]:
        raise ModelError(
            f"{place} holds another base model than the one in training",
            why=f"its hash is {base.sha256[:12]}, that of {facts['name']} was {facts['sha256'][:12]}",
            fix="name the folder of the right one with --base",
        )
    return base


def _put(weights: Mapping[str, torch.Tensor], model: Any, place: Path) -> None:
    import torch

    parameters = trainable(model)
    if set(parameters) != set(weights):
        raise ModelError(
            f"the trained weights of the failure record {place} do not fit its base model",
            why=f"{len(set(parameters) ^ set(weights))} of their names differ",
            fix="replay it with the version of tunesmith that wrote it",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
