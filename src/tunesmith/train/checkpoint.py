"""Checkpoints: everything that the next step depends on, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.store import (
    flush_to_disk,
    reach,
    sha256_of_file,
    sha256_of_json,
    storage_errors,
    write_atomically,
    writing_folder,
)
from tunesmith.telemetry import console

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "at_step", "is_any", "latest", "prune", "save"]

STATE = "state.safetensors"
SEAL = "checkpoint.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read back and whose hashes are right.

    Attributes:
        step: optimizer steps done.
        tensors: trained weights, optimizer moments and random state by name.
        facts: counters of the loop, cursor of the data and identity of the run, as JSON values.
        place: its folder.
    """

    step: int
    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]
    place: Path


def save(
    folder: Path, step: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
) -> Path:
    """Write a checkpoint beside the older ones; it gets its name only when it is on the disk.

    Args:
        folder: holds all checkpoints of a run.
        step: optimizer steps done.
        tensors: contiguous tensors on any device.
        facts: what else the run needs, as JSON values.

    Raises:
        StorageError: the disk refuses; older checkpoints are untouched.
    """
    from safetensors.torch import save_file

    place = folder / f"{PREFIX}{step:08d}"
    with writing_folder(place) as half:
        reach("checkpoint-begin")
        save_file(dict(tensors), half / STATE)
        flush_to_disk(half / STATE)
        reach("checkpoint-state")
        seal = {"step": step, "facts": dict(facts), "state_sha256": sha256_of_file(half / STATE)}
        write_atomically(half / SEAL, json.dumps(seal | {"sha256": sha256_of_json(seal)}))
        reach("checkpoint-seal")
    reach("checkpoint-named")
    return place


def is_any(folder: Path) -> bool:
    """Whether there is a checkpoint, whole or damaged."""
    return any(folder.glob(f"{PREFIX}*"))


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is reported and the one before it taken."""
    for place in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        checkpoint = _whole(place)
        if checkpoint is not None:
            return checkpoint
    return None


def at_step(folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint of a step; None when there is none, or it is damaged, which is reported."""
    place = folder / f"{PREFIX}{step:08d}"
    return _whole(place) if place.is_dir() else None


def prune(folder: Path, keep: int, best: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints and that of the step `best`.

    Raises:
        StorageError: the disk refuses.
    """
    newest_first = sorted(folder.glob(f"{PREFIX}*"), reverse=True)
    best_name = "" if best is None else f"{PREFIX}{best:08d}"
    with storage_errors(folder):
        reach("prune-begin")
        for place in newest_first[keep:]:
            if place.name != best_name:
                _delete(place)
        reach("prune-end")


def _delete(place: Path) -> None:
    """Under a name that is no checkpoint's first, so that a half-deleted one is not called damaged."""
    doomed = place.with_name(f".{place.name}.part")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(place, doomed)
    for file in sorted(doomed.iterdir()):
        file.unlink()
        reach("prune-one")
    doomed.rmdir()


def _whole(place: Path) -> Checkpoint | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        seal = json.loads((place / SEAL).read_text(encoding="utf-8"))
        sealed_sha256 = seal.pop("sha256")
        if sha256_of_json(seal) != sealed_sha256:
            raise ValueError("its checkpoint.json is not what was written")
        if sha256_of_file(place / STATE) != seal["state_sha256"]:
            raise ValueError("its state.safetensors is not what was written")
        tensors = load_file(place / STATE)
        return Checkpoint(int(seal["step"]), tensors, seal["facts"], place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        console().print(
            f"checkpoint {place} is damaged ({error}); taking the one before it", soft_wrap=True
        )
        return None
