"""The proofs of `tunesmith prove`: the dataset they need, and what they borrow of other stages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import DEFAULT_FORMS, LimitConfig, Recipe
from tunesmith.errors import StorageError
from tunesmith.pipeline.stages import Project, Step, attempts, check, do_step
from tunesmith.store import Artifact, Run

if TYPE_CHECKING:
    from tunesmith.train.prove import Report
    from tunesmith.train.prove.stage import Rooms

__all__ = ["Proved", "prove", "rooms_of"]

REHEARSED_TOKENS = 16
"""Longest answer in a rehearsed evaluation or export."""


@dataclass(frozen=True)
class Proved:
    """What the proofs found, and where the report lies.

    Attributes:
        artifact: the sealed report; None when the disk refused it, and then `not_stored` says why.
    """

    report: Report
    artifact: Artifact | None
    not_stored: str = ""


def prove(
    recipe: Recipe,
    *,
    quick: bool = False,
    only: Collection[str] = (),
    spelled: str = "RECIPE",
    tell: Callable[[Step], None] | None = None,
) -> Proved:
    """Take the proofs on the recipe's model and data; the dataset is built first if it is not there.

    Args:
        recipe: the recipe.
        quick: only the proofs that need no model, as at the start of every training.
        only: only these proofs and what they need; not with `quick`, which takes all of its own.
        spelled: recipe and options as the user typed them, for the remedies.
        tell: called with the data stage's step before it is done.

    Raises:
        ValueError: `only` with `quick`.
        TunesmithError: what must be mended before anything can be proved; a red proof raises nothing.
    """
    from tunesmith.train.prove import prove as take_proofs

    if quick and only:
        raise ValueError(f"quick=True takes its own proofs; only={tuple(only)!r} would be ignored")
    check(recipe, None, "export")
    project = Project(recipe, fetch=True)
    project.require_base()
    began = time.monotonic()
    step = project.step("data", {}, anew=False)
    if tell is not None:
        tell(step)
    dataset = do_step(recipe, step, {}, began=began, resume=True).artifact
    rooms = None if quick else rooms_of(recipe)
    report = take_proofs(recipe, dataset, project.folder, rooms, only=only, spelled=spelled)
    try:
        return Proved(report, _store_proofs(project, dataset, report))
    except StorageError as error:
        return Proved(report, None, f"{error.what}: {error.why}")


def _store_proofs(project: Project, dataset: Artifact, report: Report) -> Artifact:
    """Seal a report beside the runs; every proving has an artifact of its own."""
    sections = project.recipe.model_dump(mode="json")
    inputs = {key: sections[key] for key in ("seed", "train", "evaluate", "export")}
    parents = [dataset.as_parent(), *([project.base] if project.base else [])]
    name = f"prove-{Run.key_of('prove', inputs, parents)[:12]}"
    newest = max(attempts(project.folder, name), default=0)
    place = project.folder / (f"{name}-{newest + 1}" if newest else name)
    try:
        with Run.open(place, "prove", inputs=inputs, parents=parents) as at:
            at.write_json("proofs.json", report.as_dict())
            counts = {proof.name: proof.status for proof in report.proofs}
            return at.finish({"ok": report.ok, "proofs": counts})
    except StorageError:
        shutil.rmtree(place, ignore_errors=True)
        raise


def rooms_of(recipe: Recipe) -> Rooms:
    """What the proofs borrow of the stages that training may not know."""
    from tunesmith.train.prove.stage import Rooms

    def merge(model: Any) -> Any:
        from tunesmith.export import weights

        return weights.merge(model)

    def rehearse_evaluation(
        dataset: Artifact, trained: Artifact, place: Path
    ) -> tuple[Artifact, str]:
        from tunesmith import evaluate

        longest = min(recipe.evaluate.max_answer_tokens, REHEARSED_TOKENS)
        changes = {"max_answer_tokens": longest, "resamples": 100}
        small = _changed(recipe, "evaluate", changes)
        parents = [dataset.as_parent(), trained.as_parent()]
        with Run.open(place, "evaluate", inputs={}, parents=parents) as at:
            evaluate.run(small, at, dataset, trained)
        report = Artifact.open(place, "evaluate")
        return report, f"{report.facts['n']} test rows, answers of at most {longest} tokens"

    def rehearse_export(
        dataset: Artifact, trained: Artifact, report: Artifact | None, place: Path
    ) -> tuple[Artifact, str]:
        from tunesmith import export

        parents = [dataset.as_parent(), trained.as_parent()]
        with Run.open(place, "export", inputs={}, parents=parents) as at:
            export.run(_short_export(recipe), at, dataset, trained, report)
        bundle = Artifact.open(place, "export")
        size = sum(entry.bytes for entry in bundle.files.values())
        return bundle, f"{', '.join(bundle.facts['forms'])}; {size / 1e6:.0f} MB sealed"

    return Rooms(merge, rehearse_evaluation, rehearse_export)


def _short_export(recipe: Recipe) -> Recipe:
    """An export that proves little of each form: a step of training is no model to hold to limits."""
    config = recipe.export
    anything = LimitConfig(
        greedy_agreement=0.0, mean_kl=1e9, perplexity_ratio=1e9, max_abs_dlogit=1e9
    )
    changes: dict[str, Any] = {
        "parity_prompts": min(2, config.parity_prompts),
        "parity_tokens": min(REHEARSED_TOKENS, config.parity_tokens),
        "limits": dict.fromkeys(config.forms or DEFAULT_FORMS, anything),
    }
    return _changed(recipe, "export", changes)


def _changed(recipe: Recipe, section: str, changes: Mapping[str, Any]) -> Recipe:
    settings = getattr(recipe, section).model_copy(update=dict(changes))
    return recipe.model_copy(update={section: settings})
