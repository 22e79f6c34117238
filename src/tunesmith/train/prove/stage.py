"""All proofs in order: rows, gradients, files, rehearsals."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import Recipe
from tunesmith.errors import DataError, ModelError, TrainingError
from tunesmith.models.memory import GIB
from tunesmith.store import Artifact
from tunesmith.telemetry import progress, silenced
from tunesmith.train.ladder import LADDER_KEYS
from tunesmith.train.prove import files, gradients, rehearsal
from tunesmith.train.prove.gradients import Gradients, Noise, PlainGradients, measure_plain
from tunesmith.train.prove.quick import Judged, take_row_proofs
from tunesmith.train.prove.report import PROOFS, QUICK, Finding, Ledger, Report, with_needs
from tunesmith.train.prove.sample import FEWEST_ROWS, SAMPLE_TOKENS, Sample, draw, small_recipe
from tunesmith.train.prove.temporary import temporary
from tunesmith.train.shortage import StepTooLarge
from tunesmith.train.stopping import terminable

if TYPE_CHECKING:
    from tunesmith.train.memory import Rehearsal
    from tunesmith.train.packing import Groups, Row
    from tunesmith.train.plan import TrainPlan
    from tunesmith.train.session import Session

__all__ = ["Rooms", "prove"]

STEPS = files.STEPS_BEFORE + files.STEPS_AFTER
ROWS_OF_LOGITS = 3
SHOWN_LINES = 4


@dataclass(frozen=True)
class Rooms:
    """What other stages lend, since the train stage may not import them.

    Attributes:
        merge: a model with an adapter to one model, in place.
        evaluate: (sample dataset, trained run, unused folder) -> the sealed report and a line on it.
        export: the same with the report that `evaluate` gave, or None -> the bundle and a line.
    """

    merge: Callable[[Any], Any]
    evaluate: Callable[[Artifact, Artifact, Path], tuple[Artifact, str]]
    export: Callable[[Artifact, Artifact, Artifact | None, Path], tuple[Artifact, str]]


def prove(
    recipe: Recipe,
    dataset: Artifact,
    folder: Path,
    rooms: Rooms | None = None,
    *,
    only: Collection[str] = (),
    spelled: str = "RECIPE",
) -> Report:
    """Take the proofs on the recipe's model and a sample of its rows; nothing is left behind.

    What a killed process left is removed by the next one. SIGTERM ends it as Ctrl-C does.

    Args:
        recipe: the recipe.
        dataset: its sealed dataset.
        folder: of the workspace; a temporary folder is made in it, so that the rehearsals meet the
            disk that the stages will meet.
        rooms: other stages' parts; without them only the proofs that need no model are taken.
        only: take these, and what they need; all when empty.
        spelled: recipe and options as the user typed them, for the remedies.

    Raises:
        ConfigError, MissingError, EnvironmentProblem: nothing can be proved before these are mended.
        StorageError: there is no room even for a temporary folder.
        KeyboardInterrupt: SIGINT or SIGTERM came.
    """
    began = time.monotonic()
    asked = with_needs(() if rooms is None else only or PROOFS)
    with progress("prove", len(asked), unit="proofs") as bar:
        ledger = Ledger(
            lambda name: bar.advance(len(ledger.proofs) - bar.done, PROOFS[name]), asked
        )
        with silenced(), terminable():
            judged = take_row_proofs(ledger, recipe, dataset, spelled)
            facts: dict[str, Any] = {}
            if rooms is not None and asked.difference(QUICK):
                with temporary(folder) as place:
                    bench = Bench(recipe, dataset, place, rooms, spelled, ledger, judged)
                    bench.take_all()
                    facts = bench.facts()
        bar.advance(len(ledger.proofs) - bar.done)
    shared = {
        "recipe": recipe.name,
        "dataset": {"path": str(dataset.dir), "sha256": dataset.sha256},
        "method": recipe.train.method.kind,
    }
    return Report(ledger.in_order(), shared | facts, time.monotonic() - began)


@dataclass
class Bench:
    """What the proofs work on, made as they go.

    Attributes:
        plan: training as the recipe has it; None when it refuses.
        small: training on the sample.
        session: the model as it is trained, awake.
        rows: the sample's rows as tokens and masks.
        plain: gradients of the plain path, and how far it is from itself.
        whole: gradients of the session for all rows in one packed micro batch.
        rehearsal: what the longest micro batch took.
    """

    recipe: Recipe
    dataset: Artifact
    place: Path
    rooms: Rooms
    spelled: str
    ledger: Ledger
    judged: dict[str, Judged]
    plan: TrainPlan | None = None
    sample: Sample | None = None
    small: TrainPlan | None = None
    session: Session | None = None
    rows: list[Row] = field(default_factory=list)
    plain: PlainGradients | None = None
    whole: Gradients | None = None
    rehearsal: Rehearsal | None = None
    trained: Artifact | None = None
    report: Artifact | None = None

    def take_all(self) -> None:
        """The proofs that need a model, in an order that keeps one model in memory where it can."""
        take = self.ledger.take
        reason = self._no_rows()
        if reason:
            for name in self.ledger.asked.difference(QUICK):
                self.ledger.skip(name, reason)
            return
        take("build", self._build, "mend what is named, then prove again")
        take("split", self._split)
        take("packed", self._packed)
        take("fast", self._fast)
        take("resume", self._resume)
        take("save", self._save)
        self.session = self.plain = self.whole = None
        gc.collect()
        take("merge", self._merge)
        gc.collect()
        take("longest", self._longest)
        gc.collect()
        take("training", self._training)
        take("evaluation", self._evaluation)
        take("export", self._export)

    def _no_rows(self) -> str:
        """Why there is nothing to draw a sample from; empty when there is, or when that is no red proof's doing."""
        if not self.judged:
            return "needs stop and mask"
        red = [name for name in QUICK if not self.ledger.is_green(name)]
        count = len(self.judged["train"].good_lines)
        few = red and count < FEWEST_ROWS
        return f"needs {', '.join(red)}: {count} training rows are right" if few else ""

    def facts(self) -> dict[str, Any]:
        """What the report says of model, machine and sample."""
        if self.small is None or self.sample is None:
            return {}
        plan = self.small
        return {
            "base": {"name": plan.base.name, "sha256": plan.base.sha256},
            "objective": plan.objective.kind,
            "method": plan.method.kind,
            "precision": plan.precision,
            "device": plan.device,
            "threads": plan.threads,
            "sample": self.sample.as_facts(self.recipe.seed),
        }

    def _build(self) -> Finding:
        from tunesmith.train.plan import plan_training

        # What the plan refuses of the rows, the proofs before this one have named.
        rows_are_right = all(self.ledger.is_green(name) for name in ("mask", "stop", "whole"))
        try:
            self.plan = plan_training(self.recipe, self.dataset)
            if self.recipe.train.fit:
                # What the ladder ends at is what is proved; where it ends in vain, `longest` says so.
                with suppress(StepTooLarge):
                    self._rehearsed(self.plan)
        except (DataError, TrainingError, ModelError):
            if rows_are_right:
                raise
        self.sample = draw(self.dataset, self.judged, self.place / "data", self.recipe.seed)
        self.small = plan_training(self._sample_recipe(), self.sample.dataset)
        self.rows = [(row.tokens, row.trained) for row in self.small.rows.rows]
        self.plain = measure_plain(
            self._measured, self.rows, self.recipe.seed, self.small.rows.groups
        )
        self.session = self._measured()
        lines = "; ".join(self.session.fast_lines[:SHOWN_LINES])
        return Finding(detail=f"{self.small.base.name}, {self.small.precision}; {lines}")

    def _sample_recipe(self) -> Recipe:
        size = SAMPLE_TOKENS // 2
        changes = {
            **self._fixed(),
            "batch_tokens": size,
            "micro_batch_tokens": size,
            "epochs": float(STEPS),
            "max_steps": STEPS,
        }
        return small_recipe(self.recipe, changes)

    def _fixed(self) -> dict[str, Any]:
        """Settings that were measured or fitted once, and are not to be chosen again for the sample."""
        if self.plan is None:
            return {}
        resources = self.plan.resources
        in_backward = "on" if resources.in_backward else "off"
        return {
            "precision": resources.precision,
            "threads": resources.threads,
            # What the ladder of `--fit` ended at: climbed anew for the sample it would end elsewhere.
            **{key: getattr(resources.config, key) for key in LADDER_KEYS},
            "optimizer": self.plan.optimizer.model_copy(update={"in_backward": in_backward}),
            "fit": False,
        }

    def _fresh(self, **changes: Any) -> Session:
        """A new session on the sample, as training builds it, with no tensor left at zero."""
        from tunesmith.train.session import build

        assert self.small is not None
        session = build(replace(self.small, **changes))
        gradients.wake(session, self.recipe.seed)
        return session

    def _measured(self, **changes: Any) -> Session:
        """The same, with gradients that stay after the backward pass."""
        assert self.small is not None
        resources = replace(self.small.resources, in_backward=False)
        return self._fresh(resources=resources, **changes)

    def _compared(self, one: Gradients, reference: Gradients, noise: Noise) -> dict[str, Any]:
        """The values of a finding that compares gradients."""
        figure, where = gradients.distance(one, reference)
        return {
            "ok": figure <= noise.limit,
            "figure": figure,
            "limit": noise.limit,
            "unit": "relative, worst tensor",
            "detail": f"at {where}; limit from {noise.size:.1e}, {noise.source}",
        }

    @property
    def _groups(self) -> Groups | None:
        return None if self.small is None else self.small.rows.groups

    def _whole_gradients(self) -> Gradients:
        """All rows in one packed micro batch, as the session is trained."""
        assert self.session is not None
        if self.whole is None:
            step, _ = gradients.plans(self.rows, self.recipe.seed, self._groups)
            self.whole = gradients.take(self.session, step.micro_batches)
        return self.whole

    def _split(self) -> Finding:
        assert self.session is not None
        assert self.plain is not None
        _, splits = gradients.plans(self.rows, self.recipe.seed, self._groups)
        packed = self._whole_gradients()
        worst: dict[str, Any] = {"figure": -1.0}
        for name, step in splits:
            one = gradients.take(self.session, step.micro_batches)
            found = self._compared(one, packed, self.plain.order)
            if found["figure"] > worst["figure"]:
                worst = {**found, "detail": f"{name} {found['detail']}"}
        names = ", ".join(name for name, _ in splits)
        worst["detail"] = f"{len(self.rows)} rows as {names} positions; worst: {worst['detail']}"
        return Finding(
            **worst,
            why="the result would depend on train.micro_batch_tokens",
            remedy="one micro batch a step: --set train.micro_batch_tokens=N equal to "
            f"train.batch_tokens ({self.recipe.train.batch_tokens}); and report this",
        )

    def _packed(self) -> Finding:
        assert self.session is not None
        assert self.plain is not None
        alone = gradients.take(self.session, gradients.one_by_one(self.rows, self._groups))
        return Finding(
            **self._compared(self._whole_gradients(), alone, self.plain.order),
            why="rows that lie side by side would see each other",
            remedy=f"the plain path pads rows instead: `tunesmith train {self.spelled} --set "
            "train.fast=false`; prove it too, and report this",
        )

    def _fast(self) -> Finding:
        assert self.session is not None
        assert self.plain is not None
        if not self.session.plan.fast:
            return Finding(skipped="train.fast is false: training runs the plain path")
        return Finding(
            **self._compared(self._whole_gradients(), self.plain.whole, self.plain.path),
            why="training would follow other gradients than the model's",
            remedy=f"`tunesmith train {self.spelled} --set train.fast=false`; and report this",
        )

    def _longest(self) -> Finding:
        if self.plan is None:
            return Finding(skipped="needs mask, stop and whole: training has no rows to pack yet")
        found = self.rehearsal or self._rehearsed(self.plan)
        taken = "".join(
            f"; {rung}" for rung in self.plan.resources.measured.get("fit", []) if "->" in rung
        )
        return Finding(
            figure=found.needed_bytes / GIB,
            limit=found.budget_bytes / GIB,
            unit="GiB",
            detail=f"{found.positions} positions, the most of any micro batch; {found.recompute}; "
            f"{found.predicted_bytes / GIB:.2f} GiB were predicted{taken}",
        )

    def _rehearsed(self, plan: TrainPlan) -> Rehearsal:
        """Run the longest micro batch; the plan is then that of the ladder's last rung."""
        from tunesmith.train.fitting import fitted_session
        from tunesmith.train.plan import plan_training

        def plan_of(choice: Mapping[str, Any]) -> TrainPlan:
            return plan_training(self.recipe, self.dataset, choice)

        session, self.rehearsal = fitted_session(plan, plan_of, lambda line: None)
        self.plan = session.plan
        return self.rehearsal

    def _resume(self) -> Finding:
        assert self.session is not None
        assert self.small is not None
        if self.small.resources.in_backward:
            self.session = self._fresh()
        place = self.place / "checkpoints"
        return files.resumed_equals(self.session, self._fresh, place, self.spelled)

    def _save(self) -> Finding:
        assert self.session is not None
        assert self.small is not None
        rows = self.small.rows.rows[:ROWS_OF_LOGITS]
        return files.saved_equals(self.session, rows, self.place / "saved")

    def _merge(self) -> Finding:
        assert self.small is not None
        if self.small.method.kind == "full":
            return Finding(skipped="all weights are trained: there is nothing to merge")
        # As the export merges: in fp32, on the base with all of its weights whole.
        whole = replace(self.small, precision="fp32")
        model = files.load_saved(whole, self.place / "saved", original=True)
        rows = self.small.rows.rows[:ROWS_OF_LOGITS]
        return files.merged_equals(model, self.rooms.merge, rows)

    def _training(self) -> Finding:
        assert self.sample is not None
        fixed = self._fixed()
        finding, self.trained = rehearsal.short_training(
            self.recipe, fixed, self.sample.dataset, self.place / "train"
        )
        return finding

    def _evaluation(self) -> Finding:
        assert self.sample is not None
        assert self.trained is not None
        place = self.place / "evaluate"
        self.report, line = self.rooms.evaluate(self.sample.dataset, self.trained, place)
        return Finding(detail=line)

    def _export(self) -> Finding:
        assert self.sample is not None
        assert self.trained is not None
        place = self.place / "export"
        _, line = self.rooms.export(self.sample.dataset, self.trained, self.report, place)
        return Finding(detail=line)
