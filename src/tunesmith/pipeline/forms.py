"""Every form of a bundle side by side: size, speed, memory, parity, and quality on the user's own task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import Form, Recipe
from tunesmith.errors import ConfigError, EngineError, InterruptedRun, ModelError
from tunesmith.pipeline.stages import Project, Stage, attempts, find
from tunesmith.registry import nearest
from tunesmith.store import Artifact, Run
from tunesmith.telemetry import progress

if TYPE_CHECKING:
    from tunesmith.evaluate.judging import Judge
    from tunesmith.export.timing import Timing

__all__ = ["FormRow", "FormsTable", "measure_forms", "measure_made"]


@dataclass(frozen=True)
class FormRow:
    """One form. What was not measured is None; `not_timed` then says why.

    Attributes:
        correct: right answers of `n`.
        interval: Wilson interval of the accuracy.
        points: accuracy minus the trained model's in the sealed report, in percentage points, and its
            paired interval; on the same rows.
        parity: greedy agreement, mean KL and perplexity ratio of the certificate.
        on_base: the base that it was put on to be timed, which `bytes` do not count; empty for a whole model.
        computed_in: the numbers in which it was computed; speeds compare where these are alike.
    """

    form: Form
    path: str
    bytes: int
    parity: Mapping[str, float]
    engine: str = ""
    load_seconds: float | None = None
    first_token_seconds: float | None = None
    tokens_per_second: float | None = None
    peak_rss_bytes: int | None = None
    correct: int | None = None
    n: int | None = None
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    points: float | None = None
    points_interval: tuple[float, float] | None = None
    verdict: str = ""
    on_base: str = ""
    not_timed: str = ""
    computed_in: str = ""


@dataclass(frozen=True)
class FormsTable:
    """The table, and where it is sealed.

    Attributes:
        notes: what must be known of the figures: of the answers, and what does not compare.
        failed: form -> why its process gave no figures; its row says so too.
    """

    rows: tuple[FormRow, ...]
    confidence: float
    notes: tuple[str, ...]
    artifact: Artifact
    failed: Mapping[Form, ModelError | EngineError]


def measure_forms(
    recipe: Recipe, forms: Sequence[str] = (), *, spelled: str = "RECIPE"
) -> FormsTable:
    """Measure the forms of the recipe's sealed bundle on this machine, and seal the table.

    Each is loaded in a process of its own, timed one request at a time, and answers the recipe's test
    rows. An interrupted measurement goes on with the forms that it has. A form whose process fails does not
    hold up the others.

    Args:
        forms: names; all of the bundle when empty.

    Raises:
        MissingError: the bundle is not made yet.
        ConfigError: the bundle has no such form.
        ModelError, EngineError: no form at all could be measured.
        InterruptedRun: the user stopped it; the figures so far are kept.
        TunesmithError: whatever evaluation raises.
    """
    stages: tuple[Stage, ...] = ("data", "train", "evaluate", "export")
    made = {stage: find(recipe, stage, spelled=spelled) for stage in stages}
    return measure_made(recipe, made, Project(recipe, fetch=False).folder, forms)


def measure_made(
    recipe: Recipe, made: Mapping[Stage, Artifact], folder: Path, forms: Sequence[str] = ()
) -> FormsTable:
    """The same for artifacts that are at hand; the table is sealed in a folder below `folder`."""
    from tunesmith.evaluate.judging import judging

    bundle = made["export"]
    chosen = _chosen(bundle, forms)
    opened = _opened(recipe, bundle, made["evaluate"], chosen, folder)
    failed: dict[Form, ModelError | EngineError] = {}
    with judging(recipe, made["data"], made["train"]) as judge, opened as at, _resumable():
        tuned = _tuned(made["evaluate"])
        prompts = {prompt.line: prompt.token_ids for prompt in judge.prompts}
        rows = []
        with progress("Forms", len(chosen) * len(prompts), unit="answers") as bar:
            for form in chosen:
                bar.advance(0, form)
                try:
                    row = _row(recipe, bundle, form, judge, prompts, tuned, at, bar)
                except (ModelError, EngineError) as error:
                    failed[form] = error
                    row = _changed(_bare(bundle, form), not_timed="its process failed")
                rows.append(row)
        if len(failed) == len(rows):
            raise next(iter(failed.values()))
        return _seal(at, rows, judge, failed)


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRun(
            "the measurement was stopped before its end",
            why="Ctrl-C was pressed; the forms that were measured are kept",
            fix="give the same command again: it goes on with the others",
        ) from error


def _chosen(bundle: Artifact, forms: Sequence[str]) -> list[Form]:
    has: list[Form] = list(bundle.facts["forms"])
    unknown = [form for form in forms if form not in has]
    if unknown:
        raise ConfigError(
            f"the bundle {bundle.dir} has no form {unknown[0]!r}{nearest(unknown[0], has)}",
            why=f"it was exported as: {', '.join(has)}",
            fix="add it to export.forms and export again, or name one that it has",
        )
    return [form for form in has if not forms or form in forms]


def _opened(
    recipe: Recipe, bundle: Artifact, report: Artifact, forms: Sequence[Form], folder: Path
) -> AbstractContextManager[Run]:
    """A folder of its own beside the runs; an unfinished one goes on."""
    inputs = {"forms": list(forms), "evaluate": recipe.evaluate.model_dump(mode="json")}
    parents = [bundle.as_parent(), report.as_parent()]
    name = f"forms-{Run.key_of('forms', inputs, parents)[:12]}"
    newest = max(attempts(folder, name), default=0)
    place = folder / (f"{name}-{newest}" if newest > 1 else name)
    if (place / "manifest.json").exists():
        place = folder / f"{name}-{newest + 1}"
    return Run.open(place, "forms", inputs=inputs, parents=parents, resume=True)


def _tuned(report: Artifact) -> dict[int, bool]:
    """Line -> whether the trained model's answer was right, from the sealed report."""
    text = report.path("rows.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    return {row["line"]: row["outcome"] in ("won", "both right") for row in rows}


def _row(
    recipe: Recipe,
    bundle: Artifact,
    form: Form,
    judge: Judge,
    prompts: Mapping[int, Sequence[int]],
    tuned: Mapping[int, bool],
    at: Run,
    bar: Any,
) -> FormRow:
    from tunesmith.export.table import time_form

    row = _bare(bundle, form)
    scratch = at.path("scratch/timing/x").parent
    timing = time_form(bundle, form, recipe.model, prompts, judge.sampling.max_tokens, scratch, bar)
    return _judged(row, timing, judge, tuned)


def _bare(bundle: Artifact, form: Form) -> FormRow:
    """What the sealed bundle says of a form."""
    from tunesmith.export.arithmetic import COMPUTED_IN
    from tunesmith.export.forms import KINDS
    from tunesmith.export.table import form_bytes, forms_of

    parity = bundle.facts["parity"][form]
    names = ("greedy_agreement", "mean_kl", "perplexity_ratio")
    return FormRow(
        form,
        forms_of(bundle)[form],
        form_bytes(bundle, form),
        {name: parity[name] for name in names if name in parity},
        on_base=f"{bundle.facts['base']['name']} in F32" if KINDS[form].on else "",
        computed_in=COMPUTED_IN[form],
    )


def _judged(row: FormRow, timing: Timing, judge: Judge, tuned: Mapping[int, bool]) -> FormRow:
    correct = judge.correct(timing.answers)
    score = judge.score(correct)
    lines = [prompt.line for prompt in judge.prompts]
    changes: dict[str, Any] = {}
    if all(line in tuned for line in lines):
        found = judge.compare([tuned[line] for line in lines], correct)
        changes = {
            "points": found.gain.points,
            "points_interval": found.gain.interval_points,
            "verdict": found.verdict,
        }
    return _changed(
        row,
        engine=timing.engine,
        load_seconds=timing.load_seconds,
        first_token_seconds=timing.first_token_seconds,
        tokens_per_second=timing.tokens_per_second,
        peak_rss_bytes=timing.peak_rss_bytes,
        correct=score.correct,
        n=score.n,
        accuracy=score.accuracy,
        interval=score.interval,
        **changes,
    )


def _changed(row: FormRow, **changes: Any) -> FormRow:
    return FormRow(**{**vars(row), **changes})


def _seal(
    at: Run, rows: Sequence[FormRow], judge: Judge, failed: Mapping[Form, ModelError | EngineError]
) -> FormsTable:
    from tunesmith.evaluate import provenance
    from tunesmith.export.arithmetic import comparison_notes
    from tunesmith.export.quality_plot import draw_png

    timed = [row.form for row in rows if not row.not_timed]
    notes = (*judge.notes, *comparison_notes(timed))

    facts = {
        "forms": [asdict(row) for row in rows],
        "confidence": judge.confidence,
        "task": judge.plan.task_config.kind,
        "max_answer_tokens": judge.sampling.max_tokens,
        "hardware": provenance.hardware(judge.plan.device),
        "versions": provenance.versions(),
        "command": provenance.command(),
        "notes": list(notes),
    }
    at.write_json("forms.json", facts)
    points = [
        (row.form, row.bytes, row.accuracy, row.interval)
        for row in rows
        if row.accuracy is not None and row.interval is not None
    ]
    if points:
        with at.writing("quality.png") as temporary:
            draw_png(points, judge.confidence, temporary)
    artifact = at.finish(facts)
    return FormsTable(tuple(rows), judge.confidence, notes, artifact, dict(failed))
