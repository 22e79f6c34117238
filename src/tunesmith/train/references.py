"""Log-probabilities of all rows under the model as it is before the first step.

A preference objective holds every step against them. They never change, so they are computed once,
with the packing of training, and kept in the run's folder for a resumed attempt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.store import reach, sha256_of_json, storage_errors, writing
from tunesmith.telemetry import console
from tunesmith.train.identity import identity
from tunesmith.train.packing import Floats, MicroBatch
from tunesmith.train.plan import TrainPlan
from tunesmith.train.stopping import Check, go_on

__all__ = ["FILE", "key_of", "references_of"]

FILE = "references.safetensors"
KEY, SUM = "of", "sha256"
SPLITS = ("train", "validation")

SETTINGS = ("rows", "validation rows", "model.base", "seed", "precision", "train.fast")


def references_of(
    model: Any, plan: TrainPlan, folder: Path | None, check: Check = go_on
) -> dict[str, Floats]:
    """Split -> (rows,) summed log-probabilities in nats of each row's trained tokens.

    Args:
        model: with its weights as they are before the first step: an adapter adds nothing there.
        plan: its rows.
        folder: where they are kept, and read back from when they are of the same rows and model.
        check: called before each micro batch; what it raises ends the pass, and nothing is kept.

    Raises:
        StorageError: they cannot be written.
    """
    key = key_of(plan)
    kept = _read(folder / FILE, key) if folder else None
    if kept is not None:
        return kept
    count = len(plan.rows.rows) + len(plan.validation.rows)
    console().print(f"log-probabilities of {count} answers before the first step")
    is_training = model.training
    model.eval()
    try:
        found = {
            "train": _logps(model, plan.batches_in_order(), len(plan.rows.rows), check),
            "validation": _logps(
                model, plan.validation_batches(), len(plan.validation.rows), check
            ),
        }
    finally:
        model.train(is_training)
    if folder:
        _write(folder / FILE, found, key)
    return found


def key_of(plan: TrainPlan) -> str:
    """Hash of all that the references depend on: rows, base, number format, and where weights start."""
    facts = identity(plan)
    names = [name for name in facts if name in SETTINGS or name.startswith("train.method")]
    return sha256_of_json({name: facts[name] for name in names})


def _logps(model: Any, batches: Any, count: int, check: Check) -> Floats:
    from tunesmith.train.fast.preference import row_logps

    found = np.full(count, np.nan)
    batch: MicroBatch
    for batch in batches:
        reach("references-batch")
        check()
        found[batch.members] = row_logps(model, batch).numpy()
    return found


def _write(place: Path, found: Mapping[str, Floats], key: str) -> None:
    from safetensors.numpy import save_file

    with storage_errors(place), writing(place) as half:
        save_file(dict(found), half, metadata={KEY: key, SUM: _sum_of(found)})
        reach("references-written")


def _read(place: Path, key: str) -> dict[str, Floats] | None:
    """None when there are none, or they are damaged or of something else: they are made again."""
    from safetensors import SafetensorError, safe_open

    if not place.is_file():
        return None
    try:
        with safe_open(place, framework="numpy") as file:
            if (file.metadata() or {}).get(KEY) != key:
                return None
            found = {name: file.get_tensor(name) for name in SPLITS}
            return found if file.metadata()[SUM] == _sum_of(found) else None
    except (OSError, KeyError, SafetensorError):
        return None


def _sum_of(found: Mapping[str, Floats]) -> str:
    return hashlib.sha256(b"".join(found[split].tobytes() for split in SPLITS)).hexdigest()
