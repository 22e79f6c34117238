"""Stage 2: a sealed dataset and a base model to a sealed run. Torch is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.store import Artifact, Run
    from tunesmith.train.stage import TrainResult

__all__ = ["run"]


def run(recipe: Recipe, at: Run, dataset: Artifact) -> TrainResult:
    """Train on a sealed dataset; see `tunesmith.train.stage.run`."""
    from tunesmith.train import stage

    return stage.run(recipe, at, dataset)
