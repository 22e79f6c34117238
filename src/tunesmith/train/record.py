"""A failure record: what is needed to run the micro batch again whose loss or gradient was not finite.

It is a folder of safetensors and JSON, hashed, written whole or not at all: the trained weights and
the random state before the micro batch, its arrays, and what identifies the base model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.errors import ArtifactError, MissingError, StorageError
from tunesmith.store import (
    flush_to_disk,
    put_back,
    sha256_of_file,
    sha256_of_json,
    write_atomically,
    writing_folder,
)
from tunesmith.train import randomness
from tunesmith.train.nonfinite import Failure, Finding, NotFinite, locate_in
from tunesmith.train.objectives import Objective
from tunesmith.train.packing import MicroBatch

if TYPE_CHECKING:
    import torch

    from tunesmith.train.session import Session

__all__ = ["FailureRecord", "explained", "read_record", "runs_of"]

FORMAT = 1
FACTS = "failure.json"
WEIGHTS = "weights.safetensors"
RANDOM = "random.safetensors"
BATCH = "micro-batch-{}.safetensors"


@dataclass(frozen=True)
class FailureRecord:
    """A failure record that was read back and whose hashes are right.

    Attributes:
        facts: step, lines, model and finding, as JSON values.
        weights: trained weights by name.
        random: random state before the first micro batch.
        batches: the micro batch that failed, or all of the step when only their sum did.
    """

    place: Path
    facts: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    random: Mapping[str, torch.Tensor]
    batches: tuple[MicroBatch, ...]

    @property
    def finding(self) -> Finding | None:
        """What was found when it was written; None when it did not show again."""
        return finding_of(self.facts["finding"])


def explained(
    session: Session, found: NotFinite, folder: Path, *, taken_back: bool = False
) -> NotFinite:
    """The error with the place where it began, and a failure record in `folder` that shows it again.

    Leaves the session without gradients; while it works all of them are held, also those that an
    optimizer in the backward pass would drop.

    Args:
        session: after the failed step.
        found: what the step raised.
        folder: for the record.
        taken_back: updates that an optimizer made inside of the step are undone.
    """
    failure = found.failure
    model, is_training = session.model, failure.split == "train"
    states: list[dict[str, torch.Tensor]] = []
    runs = [_noting(states, run) for run in runs_of(model, session.objective, failure)]
    randomness.restore(failure.random)
    model.train(is_training)
    # An optimizer that works inside the backward pass must neither use nor drop what is looked for here.
    with getattr(session.optimizer, "keeping", nullcontext)():
        index, finding = locate_in(model, runs, with_norm=is_training)
    model.train()
    model.zero_grad(set_to_none=True)
    batches = failure.batches if index is None else [failure.batches[index]]
    lines = _lines_of(session, failure.split, batches)
    place = folder / f"nonfinite-step-{failure.step + is_training}"
    try:
        facts = _facts(session, failure, finding) | {"lines": lines}
        _write(place, session.parameters, states[index or 0], batches, facts)
        seen = (
            f"`tunesmith replay {place}` shows it again, with --precision fp32 whether it goes away"
        )
    except StorageError as error:
        seen = f"no failure record could be written ({error.why})"
    found.why = (
        f"{_sentence(finding, session, taken_back)}; the micro batch holds these lines of {failure.split}.jsonl: "
        + ", ".join(map(str, lines))
    )
    found.fix = f"{_remedy(finding, session)}; {seen}"
    return found


def _noting(states: list[dict[str, torch.Tensor]], run: Callable[[], float]) -> Callable[[], float]:
    def noted() -> float:
        states.append(randomness.capture())
        return run()

    return noted


def runs_of(model: Any, objective: Objective, failure: Failure) -> list[Callable[[], float]]:
    """Each micro batch as a function that runs it and returns its loss; a validation runs forward only."""

    def run(batch: Any) -> Callable[[], float]:
        if failure.split == "train":
            return lambda: float(objective(model, batch, failure.normaliser)[0])
        return lambda: float(objective.evaluate(model, batch)[0])

    return [run(batch) for batch in failure.batches]


def finding_of(values: Mapping[str, Any] | None) -> Finding | None:
    """A finding back from its JSON values."""
    if values is None:
        return None
    trail = tuple((str(name), float(largest)) for name, largest in values["trail"])
    return Finding(**{**values, "weights": tuple(values["weights"]), "trail": trail})


def read_record(place: Path) -> FailureRecord:
    """Read a failure record back and check all of it.

    Raises:
        MissingError: there is no failure record.
        ArtifactError: it is damaged, or of a version that this one does not read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    put_back(place.parent, place.name)
    if not (place / FACTS).is_file():
        raise MissingError(
            f"{place} is no failure record",
            why=f"it has no {FACTS}" if place.is_dir() else "there is no such folder",
            fix="name the folder that the error of the training run named",
        )
    try:
        facts = json.loads((place / FACTS).read_text(encoding="utf-8"))
        sealed_sha256 = facts.pop("sha256")
        if sha256_of_json(facts) != sealed_sha256:
            raise ValueError(f"{FACTS} is not what was written")
        if facts["format"] != FORMAT:
            raise ValueError(f"it has the format {facts['format']}, this version reads {FORMAT}")
        for name, sha256 in facts["files"].items():
            if sha256_of_file(place / name) != sha256:
                raise ValueError(f"{name} is not what was written")
        batches = tuple(
            _batch_of(load_file(place / BATCH.format(index)), counts)
            for index, counts in enumerate(facts["micro_batches"])
        )
        weights, random = load_file(place / WEIGHTS), load_file(place / RANDOM)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ArtifactError(
            f"the failure record {place} is damaged: {error}",
            why="it was changed or cut off after it was written",
            fix="train again until the same step, which writes it again",
        ) from error
    return FailureRecord(place, facts, weights, random, batches)


def _facts(session: Session, failure: Failure, finding: Finding | None) -> dict[str, Any]:
    plan = session.plan
    return {
        "format": FORMAT,
        "split": failure.split,
        "step": failure.step,
        "loss": str(failure.loss),
        "norm": str(failure.norm),
        "normaliser": failure.normaliser,
        "finding": None if finding is None else asdict(finding),
        "model": {
            "base": {"name": plan.base.name, "dir": str(plan.base.dir), "sha256": plan.base.sha256},
            "objective": plan.objective.model_dump(mode="json"),
            "method": plan.method.model_dump(mode="json"),
            "precision": plan.precision,
            "device": plan.device,
            "threads": plan.threads,
            "seed": plan.seed,
            "fast": plan.fast,
        },
    }


def _write(
    place: Path,
    weights: Mapping[str, torch.Tensor],
    random: Mapping[str, torch.Tensor],
    batches: Sequence[MicroBatch],
    facts: Mapping[str, Any],
) -> None:
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    with writing_folder(place) as half:
        save_file(
            {name: value.detach().contiguous() for name, value in weights.items()}, half / WEIGHTS
        )
        save_file(dict(random), half / RANDOM)
        for index, batch in enumerate(batches):
            save_arrays(_arrays(batch), half / BATCH.format(index))
        files = sorted(half.iterdir())
        for file in files:
            flush_to_disk(file)
        sealed = {
            **facts,
            "micro_batches": [_counts(batch) for batch in batches],
            "files": {file.name: sha256_of_file(file) for file in files},
        }
        sealed["sha256"] = sha256_of_json(sealed)
        write_atomically(half / FACTS, json.dumps(sealed, indent=2, ensure_ascii=False) + "\n")


def _arrays(batch: MicroBatch) -> dict[str, Any]:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {
        name: np.ascontiguousarray(value)
        for name, value in values.items()
        if isinstance(value, np.ndarray)
    }


def _counts(batch: MicroBatch) -> dict[str, int]:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def _batch_of(tensors: Mapping[str, torch.Tensor], counts: Mapping[str, int]) -> MicroBatch:
    values: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    return MicroBatch(**values | dict(counts))


def _lines_of(session: Session, split: str, batches: Sequence[Any]) -> list[int]:
    rows = session.plan.rows if split == "train" else session.plan.validation
    return sorted({rows.rows[int(index)].line for batch in batches for index in batch.members})


def _sentence(finding: Finding | None, session: Session, taken_back: bool) -> str:
    if finding is None and session.plan.resources.in_backward and not taken_back:
        return (
            "run a second time it was finite: weights nearer to the output were updated by then, as "
            "train.optimizer.in_backward has it, and that could not be taken back"
        )
    if finding is None:
        return "run a second time it was finite: this machine does not compute the same thing twice"
    return finding.sentence()


def _remedy(finding: Finding | None, session: Session) -> str:
    bad = () if finding is None else finding.weights
    if any(name not in session.parameters for name in bad):
        return "the base model itself holds values that are not finite: take another copy of it"
    if bad or session.plan.precision == "fp32":
        return "lower train.optimizer.learning_rate, or look at these lines"
    return "lower train.optimizer.learning_rate, or set train.precision to fp32"
