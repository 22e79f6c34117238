"""A merge and its parents on the test rows of a recipe."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tunesmith.config import Recipe
from tunesmith.errors import ModelError
from tunesmith.pipeline.stages import Project, do_step
from tunesmith.store import MANIFEST, Artifact, Run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from tunesmith.export.merge import MergePlan, MergeResult
    from tunesmith.models.load import BaseModel

__all__ = ["check_after_merge", "check_rows", "export_merge", "rank_merge"]


def check_rows(recipe: Recipe) -> None:
    """Fail before a merge, not after it, when the recipe's rows are not there.

    Raises:
        TunesmithError: a raw file is missing or damaged.
    """
    Project(recipe, fetch=False).step("data", {}, anew=False)


def check_after_merge(plan: MergePlan, judging: Recipe | None, exporting: Recipe | None) -> None:
    """Refuse before a merge what `rank_merge` and `export_merge` would refuse after it.

    The recipes' datasets are built if they are not there.

    Args:
        judging: the recipe to rank by, if any.
        exporting: the recipe to export by, if any.

    Raises:
        ModelError: the models have no chat template, or nobody knows their base.
        TunesmithError: see `evaluate.ranking.check_rows` and `export.plan.plan_export`.
    """
    if judging is not None or exporting is not None:
        _check_template(plan)
    if judging is not None:
        from tunesmith.evaluate.ranking import check_rows as check_test_rows

        check_test_rows(judging, _dataset(judging)[1])
    if exporting is not None:
        from tunesmith.export.merge import foreseen
        from tunesmith.export.plan import plan_export

        merge = foreseen(plan)
        _check_base_known(merge, "add --base MODEL: what they were trained on")
        plan_export(exporting, _dataset(exporting)[1], merge, None)


def _check_template(plan: MergePlan) -> None:
    if plan.prompts.renderer is None:
        raise ModelError(
            f"{plan.asked.out} cannot be asked rows of a recipe",
            why="neither it nor its parents have a chat template",
            fix="merge models that were taught to chat",
        )


def _check_base_known(merge: Artifact, fix: str) -> None:
    if "base" not in merge.facts:
        raise ModelError(
            f"the base of {merge.dir} is not known",
            why="its parents do not name one, and forms and card need it",
            fix=fix,
        )


def rank_merge(recipe: Recipe, merged: MergeResult) -> Artifact:
    """The merged model and each parent answer the recipe's test rows; sealed beside the recipe's runs.

    The dataset is built first if it is not there. What was ranked before is used again.

    Raises:
        ModelError: the models have no chat template.
        TunesmithError: see `evaluate.ranking.rank`.
    """
    from tunesmith.evaluate.ranking import Contender, rank

    plan = merged.plan
    _check_template(plan)
    renderer = plan.prompts.renderer
    if renderer is None:
        raise AssertionError("it was checked above")
    project, dataset = _dataset(recipe)
    is_adapter = merged.dir.name == "adapter"
    contenders = [
        Contender(
            merged.artifact.dir.name,
            merged.artifact.sha256,
            _loader(merged.dir, plan.base if is_adapter else None),
            is_parent=False,
        ),
        *(
            Contender(
                member.given,
                member.parent.sha256,
                _loader(member.dir, plan.base if member.adapter is not None else None),
                is_parent=True,
            )
            for member in plan.members
        ),
    ]
    precision = str(merged.artifact.facts["precision"])
    section: dict[str, Any] = recipe.model_dump(mode="json")["evaluate"]
    inputs = {"seed": recipe.seed, "evaluate": section, "precision": precision}
    parents = [dataset.as_parent(), merged.artifact.as_parent(), *(m.parent for m in plan.members)]
    place = project.folder / f"rank-{Run.key_of('rank', inputs, parents)[:12]}"
    if (place / MANIFEST).is_file():
        return Artifact.open(place, "rank")
    with Run.open(place, "rank", inputs=inputs, parents=parents, resume=True) as at:
        return rank(recipe, at, dataset, contenders, renderer, precision=precision)


def export_merge(recipe: Recipe, merged: MergeResult, ranking: Artifact | None = None) -> Artifact:
    """The merge in the recipe's forms, each proved equal to it: a bundle that can be served.

    The dataset, whose rows the forms are compared on, is built first if it is not there. What was exported
    before is used again.

    Args:
        ranking: what `rank_merge` made of it; the card shows its figures.

    Raises:
        ModelError: the models have no chat template, nobody knows the merge's base, or the recipe names
            another one.
        TunesmithError: see `export.run`.
    """
    from tunesmith import export
    from tunesmith.export.stage import sign_sealed

    _check_template(merged.plan)
    _check_base_known(merged.artifact, "merge again with --base, into a new folder")
    project, dataset = _dataset(recipe)
    section: dict[str, Any] = recipe.model_dump(mode="json")["export"]
    # A bundle that is there can be signed; it is not made again for it.
    del section["signing_key"]
    inputs = {"name": recipe.name, "export": section}
    parents = [dataset.as_parent(), merged.artifact.as_parent()]
    parents += [] if ranking is None else [ranking.as_parent()]
    place = project.folder / f"export-merge-{Run.key_of('export', inputs, parents)[:12]}"
    if (place / MANIFEST).is_file():
        bundle = Artifact.open(place, "export")
        sign_sealed(recipe.export, bundle)
        return bundle
    with Run.open(place, "export", inputs=inputs, parents=parents, resume=True) as at:
        return export.run(recipe, at, dataset, merged.artifact, ranking).artifact


def _dataset(recipe: Recipe) -> tuple[Project, Artifact]:
    """The recipe's dataset, built if it is not there."""
    project = Project(recipe, fetch=False)
    step = project.step("data", {}, anew=False)
    return project, do_step(recipe, step, {}, began=time.monotonic(), resume=True).artifact


def _loader(folder: Path, base: BaseModel | None) -> Callable[[torch.dtype], Any]:
    """Loads a whole model, or an adapter on its base."""

    def load(dtype: torch.dtype) -> Any:
        from tunesmith.models.adapters import put_adapter
        from tunesmith.models.load import load_model

        return (
            load_model(folder, dtype)
            if base is None
            else put_adapter(load_model(base, dtype), folder)
        )

    return load
