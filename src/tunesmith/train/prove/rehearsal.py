"""The train stage rehearsed on the sample, so that what it does last does not fail last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.config import Recipe
from tunesmith.store import Artifact, Run
from tunesmith.train.prove.report import Finding
from tunesmith.train.prove.sample import SAMPLE_TOKENS, small_recipe

__all__ = ["short_training"]


def short_training(
    recipe: Recipe, fixed: dict[str, Any], sample: Artifact, folder: Path
) -> tuple[Finding, Artifact]:
    """The real stage on the sample: one step, validation, a sample answer, the seal.

    Args:
        recipe: as the user wrote it.
        fixed: settings that were measured before, such as the precision.
        sample: the sealed sample.
        folder: an unused folder on the workspace's disk.

    Raises:
        TunesmithError: whatever the stage raises.
    """
    from tunesmith.train import stage

    changes = {
        **fixed,
        "batch_tokens": SAMPLE_TOKENS,
        "micro_batch_tokens": SAMPLE_TOKENS,
        "max_steps": 1,
        "sample_rows": min(1, recipe.train.sample_rows),
    }
    short = small_recipe(recipe, changes)
    with Run.open(folder, "train", inputs={}, parents=[sample.as_parent()]) as at:
        result = stage.run(short, at, sample)
    size = sum(entry.bytes for entry in result.artifact.files.values())
    detail = (
        f"1 step, validation loss {result.validation_loss:.3f} nats, {len(result.artifact.files)} "
        f"files of {size / 1e6:.1f} MB sealed"
    )
    return Finding(detail=detail), result.artifact
