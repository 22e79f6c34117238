"""Proofs on the user's own model and data, before training. Torch is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.train.prove.report import PROOFS, Proof, Report

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tunesmith.config import Recipe
    from tunesmith.store import Artifact
    from tunesmith.train.prove.stage import Rooms

__all__ = ["PROOFS", "Proof", "Report", "prove"]


def prove(
    recipe: Recipe,
    dataset: Artifact,
    folder: Path,
    rooms: Rooms | None = None,
    *,
    only: Collection[str] = (),
    spelled: str = "RECIPE",
) -> Report:
    """Take the proofs; see `tunesmith.train.prove.stage.prove`."""
    from tunesmith.train.prove import stage

    return stage.prove(recipe, dataset, folder, rooms, only=only, spelled=spelled)
