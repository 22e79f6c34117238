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
    put_back,
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

    place = _place(folder, step)
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
    return bool(_newest_first(folder))


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is reported and the one before it taken."""
    for place in _newest_first(folder):
        checkpoint = _whole(place)
        if checkpoint is not None:
            return checkpoint
    return None


def at_step(folder: Path, step: int) -> Checkpoint | None:
    """The checkpoint of a step; None when there is none, or it is damaged, which is reported."""
    place = _place(folder, step)
    return _whole(place) if place in _newest_first(folder) else None


def prune(folder: Path, saved: int, keep: int, best: int | None = None) -> None:
    """Delete what a run needs no more, after a checkpoint was saved.

    Of a later step than that there are only what an attempt before could not read and, if somebody put one
    there, a whole one: those that are damaged are deleted, a whole one stays. Neither is among the `keep`.

    Args:
        folder: holds all checkpoints of a run.
        saved: step of the checkpoint that was just saved.
        keep: the newest so many up to that step stay.
        best: that of this step stays too.

    Raises:
        StorageError: the disk refuses.
    """
    with storage_errors(folder):
        newest_first = _newest_first(folder)
        later = [place for place in newest_first if place.name > _place(folder, saved).name]
        up_to_saved = newest_first[len(later) :]
        stay = {*up_to_saved[:keep], *(() if best is None else (_place(folder, best),))}
        reach("prune-begin")
        for place in (*filter(_is_damaged, later), *up_to_saved):
            if place not in stay:
                _delete(place)
        reach("prune-end")


def _place(folder: Path, step: int) -> Path:
    return folder / f"{PREFIX}{step:08d}"


def _newest_first(folder: Path) -> list[Path]:
    put_back(folder, PREFIX)
    return sorted(folder.glob(f"{PREFIX}*"), reverse=True)


def _delete(place: Path) -> None:
    """Under a name that is no checkpoint's first, so that a half-deleted one is not called damaged."""
    doomed = place.with_name(f".{place.name}.part")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(place, doomed)
    for file in sorted(doomed.iterdir()):
        file.unlink()
        reach("prune-one")
    doomed.rmdir()


class _Damaged(Exception):
    """What is read is not what was written, or a part of it is gone."""


def _whole(place: Path) -> Checkpoint | None:
    """What `_read` gives; None when it cannot be read, which is reported."""
    try:
        return _read(place)
    except (OSError, _Damaged) as error:
        console().print(f"checkpoint {place} is damaged and is not used: {error}", soft_wrap=True)
        return None


def _is_damaged(place: Path) -> bool:
    """False also where the disk refuses to read it: it may be whole then."""
    try:
        _read(place)
    except _Damaged:
        return True
    except OSError:
        return False
    return False


def _read(place: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    damages = (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)
    try:
        seal = json.loads((place / SEAL).read_text(encoding="utf-8"))
        sealed_sha256 = seal.pop("sha256")
        if sha256_of_json(seal) != sealed_sha256:
            raise ValueError("its checkpoint.json is not what was written")
        if sha256_of_file(place / STATE) != seal["state_sha256"]:
            raise ValueError("its state.safetensors is not what was written")
        tensors = load_file(place / STATE)
        return Checkpoint(int(seal["step"]), tensors, seal["facts"], place)
    except damages as error:
        raise _Damaged(str(error)) from error
