"""Checkpoints: everything that the next step depends on, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.store import sha256_of_file, storage_errors, write_atomically
from tunesmith.telemetry import console

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "latest", "prune", "save"]

STATE = "state.safetensors"
SEAL = "checkpoint.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read back and whose hash is right.

    Attributes:
        step: optimizer steps done.
        tensors: trained weights, optimizer moments and random state by name.
        facts: counters of the loop, as JSON values.
    """

    step: int
    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]


def save(
    folder: Path, step: int, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
) -> Path:
    """Write a checkpoint beside the older ones; it gets its name only when it is complete.

    Args:
        folder: holds all checkpoints of a run.
        step: optimizer steps done.
        tensors: contiguous tensors on any device.
        facts: counters of the loop.

    Raises:
        StorageError: the disk refuses; older checkpoints are untouched.
    """
    from safetensors.torch import save_file

    place = folder / f"{PREFIX}{step:08d}"
    half = folder / f".{place.name}.part"
    with storage_errors(place):
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        try:
            save_file(dict(tensors), half / STATE)
            seal = {"step": step, "facts": dict(facts), "sha256": sha256_of_file(half / STATE)}
            write_atomically(half / SEAL, json.dumps(seal))
            shutil.rmtree(place, ignore_errors=True)
            os.replace(half, place)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return place


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is reported and the one before it taken."""
    for place in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        checkpoint = _read(place)
        if checkpoint is not None:
            return checkpoint
        console().print(f"checkpoint {place} is damaged; taking the one before it")
    return None


def _read(place: Path) -> Checkpoint | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        seal = json.loads((place / SEAL).read_text(encoding="utf-8"))
        if sha256_of_file(place / STATE) != seal["sha256"]:
            return None
        return Checkpoint(int(seal["step"]), load_file(place / STATE), seal["facts"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for place in sorted(folder.glob(f"{PREFIX}*"), reverse=True)[keep:]:
        shutil.rmtree(place)
