"""Several stages in order.

A stage's key is the hash of everything its result depends on: its section of the recipe, the seed,
the code's format number, and the content of its parents. Its artifact lies in
`<workspace>/<name>/<stage>-<key>`. A sealed artifact with that key is used again, an unfinished one
is resumed, and otherwise the stage runs. A sealed artifact is never overwritten: `--from` makes a
new one beside it, with the suffix `-2`, `-3` and so on, and the newest attempt is the one that counts.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tunesmith.config import DEFAULT_FORMS, Recipe, refuse_unread
from tunesmith.errors import (
    ArtifactError,
    ConfigError,
    InterruptedRun,
    MissingError,
    TunesmithError,
    listed,
)
from tunesmith.store import MANIFEST, Artifact, Parent, Run, by_content, write_atomically
from tunesmith.telemetry import peak_rss_bytes

__all__ = [
    "STAGES",
    "TIMING",
    "Done",
    "Project",
    "Stage",
    "Step",
    "attempts",
    "check",
    "do_step",
    "find",
    "plan",
    "run",
    "run_stage",
]

Stage = Literal["data", "train", "evaluate", "export"]
Action = Literal["reuse", "resume", "run"]

STAGES: tuple[Stage, ...] = ("data", "train", "evaluate", "export")
MADE_FROM: Mapping[Stage, tuple[Stage, ...]] = {
    "data": (),
    "train": ("data",),
    "evaluate": ("data", "train"),
    "export": ("data", "train", "evaluate"),
}
COMMANDS: Mapping[Stage, str] = {
    "data": "data build",
    "train": "train",
    "evaluate": "evaluate",
    "export": "export",
}
FORMATS: Mapping[Stage, int] = {"data": 2, "train": 3, "evaluate": 1, "export": 2}
"""Raised when a stage's code changes what it makes from equal inputs; old artifacts are then stale."""

NOT_MADE = "not made yet"

TIMING = "scratch/timing.json"
"""Seconds and memory of a stage: measured around it, so outside of what it seals."""


@dataclass(frozen=True)
class Step:
    """What happens to one stage, and why.

    Attributes:
        directory: where its artifact lies or will lie; None while a parent's content is not known.
        artifact: the sealed artifact, when it is used again.
        inputs: what the key was made from.
        parents: what the artifact is made from.
    """

    stage: Stage
    action: Action
    directory: Path | None
    why: str
    artifact: Artifact | None = None
    inputs: Mapping[str, Any] | None = None
    parents: tuple[Parent, ...] = ()


@dataclass(frozen=True)
class Done:
    """A stage's artifact, and what it took to make it, in this run or an earlier one.

    Attributes:
        reused: it was made by an earlier run.
        seconds: wall time over all attempts but those that were killed or failed; None when it was not
            measured.
        peak_rss_bytes: largest resident memory of the process up to the stage's end.
    """

    stage: Stage
    artifact: Artifact
    reused: bool
    seconds: float | None
    peak_rss_bytes: int | None


def plan(recipe: Recipe, *, start: Stage | None = None, until: Stage = "export") -> list[Step]:
    """What `run` would do; writes nothing.

    Args:
        recipe: the recipe.
        start: this stage and all after it run anew, even if their artifacts are there.
        until: the last stage.

    Raises:
        ConfigError: sections that contradict each other, or `start` after `until`.
        MissingError: a raw file or the base model is not there.
        ArtifactError: a sealed artifact is damaged.
    """
    check(recipe, start, until)
    project = Project(recipe, fetch=False)
    if until != "data":
        project.require_base()
    made: dict[Stage, Artifact] = {}
    steps = []
    for stage in _up_to(until):
        step = project.step(stage, made, anew=_is_forced(stage, start))
        if step.artifact is not None:
            made[stage] = step.artifact
        steps.append(step)
    return steps


def run(
    recipe: Recipe,
    *,
    start: Stage | None = None,
    until: Stage = "export",
    tell: Callable[[Step], None] | None = None,
    tell_done: Callable[[Done], None] | None = None,
) -> list[Done]:
    """Make every stage's artifact up to `until`; what is there and unchanged is used again.

    Args:
        recipe: the recipe.
        start: this stage and all after it run anew.
        until: the last stage.
        tell: called with each step before it is done.
        tell_done: called with each stage's result.

    Raises:
        TunesmithError: whatever a stage raises; the stages before it stay sealed.
    """
    check(recipe, start, until)
    project = Project(recipe, fetch=True)
    if until != "data":
        project.require_base()
    made: dict[Stage, Artifact] = {}
    done = []
    for stage in _up_to(until):
        began = time.monotonic()
        step = project.step(stage, made, anew=_is_forced(stage, start))
        if tell is not None:
            tell(step)
        if step.action != "reuse" and until == "export":
            _check_packages(recipe)
        done.append(do_step(recipe, step, made, began=began, resume=True))
        made[stage] = done[-1].artifact
        if tell_done is not None:
            tell_done(done[-1])
    return done


def run_stage(
    recipe: Recipe,
    stage: Stage,
    *,
    resume: bool = False,
    spelled: str = "RECIPE",
    tell: Callable[[Step], None] | None = None,
    processes: int | None = None,
) -> Done:
    """One stage, whose parents must be sealed in the workspace for this recipe.

    Args:
        recipe: the recipe.
        stage: which.
        resume: go on with an unfinished run.
        spelled: recipe and options as the user typed them, for the commands in errors.
        tell: called with the step before it is done.
        processes: worker processes of the data stage; None for one a core where there is much to do.

    Raises:
        MissingError: a parent is not made yet; the message names the command that makes it.
        UsedDirectoryError: there is an unfinished run, and `resume` is not set.
        TunesmithError: whatever the stage raises.
    """
    check(recipe, None, stage)
    project = Project(recipe, fetch=True)
    made = _parents(project, stage, spelled)
    began = time.monotonic()
    step = project.step(stage, made, anew=False)
    if resume and step.action == "run":
        _refuse_another_run(project.folder, step)
    # What is not gone on with is refused: nothing begins that could be told.
    if tell is not None and (resume or step.action != "resume"):
        tell(step)
    return do_step(recipe, step, made, began=began, resume=resume, processes=processes)


def find(recipe: Recipe, stage: Stage, *, spelled: str = "RECIPE") -> Artifact:
    """The stage's sealed artifact for this recipe as it is now; writes nothing.

    Raises:
        MissingError: it is not made yet; the message names the command that makes it.
    """
    project = Project(recipe, fetch=False)
    made = _parents(project, stage, spelled)
    return _sealed(project.step(stage, made, anew=False), spelled)


def _parents(project: Project, stage: Stage, spelled: str) -> dict[Stage, Artifact]:
    made: dict[Stage, Artifact] = {}
    for parent in MADE_FROM[stage]:
        made[parent] = _sealed(project.step(parent, made, anew=False), spelled)
    return made


def _sealed(step: Step, spelled: str) -> Artifact:
    if step.artifact is None:
        is_other = step.inputs is not None and step.action == "run" and step.why != NOT_MADE
        raise MissingError(
            f"the stage {step.stage!r} is not made for this recipe",
            why=step.why,
            fix=("give the same --set and recipe as then; or make it: " if is_other else "")
            + f"tunesmith run {spelled} --until {step.stage}   (or only this stage: "
            f"tunesmith {COMMANDS[step.stage]} {spelled})",
        )
    return step.artifact


@dataclass(frozen=True)
class Project:
    """A recipe with its folder and base model.

    Attributes:
        fetch: download or convert the base model when it is not on this disk.
    """

    recipe: Recipe
    fetch: bool

    @cached_property
    def folder(self) -> Path:
        return Path(self.recipe.workspace).expanduser().absolute() / self.recipe.name

    @cached_property
    def base(self) -> Parent | None:
        """The base model; None when it is not on this disk and must not be fetched now."""
        from tunesmith.models.load import base_on_disk, resolve_base

        model = self.recipe.model
        base = resolve_base(model) if self.fetch else base_on_disk(model)
        refuse_unread(self.recipe, "model")
        return None if base is None else base.as_parent()

    def require_base(self) -> None:
        """Fail now, not after the data stage, when there is no such base model."""
        _ = self.base

    def step(self, stage: Stage, made: Mapping[Stage, Artifact], *, anew: bool) -> Step:
        """What is to be done for a stage, given the sealed artifacts before it."""
        unmade = next((parent for parent in MADE_FROM[stage] if parent not in made), None)
        if unmade is not None:
            return Step(stage, "run", None, f"depends on {unmade}, which is made first")
        if stage == "train" and self.base is None:
            return Step(stage, "run", None, "depends on the base model, which is fetched first")
        parents, inputs = self._made_from(stage, made)
        key = Run.key_of(stage, inputs, parents)
        name = f"{stage}-{key[:12]}"
        newest = max(attempts(self.folder, name), default=0)
        action: Action
        if anew and newest:
            place, action, why = self.folder / f"{name}-{newest + 1}", "run", "forced by --from"
        else:
            place = self.folder / (f"{name}-{newest}" if newest > 1 else name)
            action, why = self._state(stage, place, inputs, parents)
        artifact = _open(place, stage, key) if action == "reuse" else None
        return Step(stage, action, place, why, artifact, inputs, tuple(parents))

    def _made_from(
        self, stage: Stage, made: Mapping[Stage, Artifact]
    ) -> tuple[list[Parent], dict[str, Any]]:
        section = self.recipe.model_dump(mode="json")[stage]
        inputs = {"format": FORMATS[stage], "seed": self.recipe.seed, stage: section}
        if stage == "data":
            from tunesmith import data

            sources = list(data.sources(self.recipe))
            inputs[stage] = by_content(section, sources)
            # Rows are measured in the tokens of the model that the recipe names, if it does.
            inputs |= data.token_inputs(self.recipe)
            return sources, inputs
        if stage == "export":
            # A bundle that is there can be signed; it is not made again for it.
            inputs[stage] = {key: section[key] for key in section if key != "signing_key"}
        parents = [made[parent].as_parent() for parent in MADE_FROM[stage]]
        if stage == "train" and self.base is not None:
            parents.append(self.base)
        return parents, inputs

    def _state(
        self, stage: Stage, place: Path, inputs: Mapping[str, Any], parents: Sequence[Parent]
    ) -> tuple[Action, str]:
        if (place / MANIFEST).is_file():
            return "reuse", "unchanged"
        if (place / "run.json").is_file():
            return "resume", "an unfinished run of the same inputs is there"
        earlier = _newest_sealed(self.folder, stage)
        return "run", _what_changed(earlier, inputs, parents) if earlier else NOT_MADE


def check(recipe: Recipe, start: Stage | None, until: Stage) -> None:
    """Reject what can only fail later: sections that contradict each other."""
    values = recipe.model_dump(mode="json")
    problems = []
    if start is not None and STAGES.index(start) > STAGES.index(until):
        problems.append(f"--from {start} comes after --until {until}")
    forms, exports = values["export"]["forms"], until == "export"
    is_full = values["train"]["method"]["kind"] == "full"
    if exports and forms is not None and "adapter" in forms and is_full:
        problems.append(
            f"export.forms ({recipe.origin('export.forms')}) holds `adapter`, but train.method.kind "
            f"is `full` ({recipe.origin('train.method.kind')}), which trains no adapter"
        )
    problems += _without_effect(recipe, values)
    if problems:
        raise ConfigError(
            f"the recipe contradicts itself:\n{listed(problems)}",
            why="a stage would refuse it later, after the stages before it had run",
            fix="edit the recipe: remove or change what is named",
        )


def _check_packages(recipe: Recipe) -> None:
    """Refuse forms whose packages are missing before the stages before the export run for hours.

    Raises:
        EnvironmentProblem: names the extras that bring the packages.
    """
    from tunesmith.export.packages import check_packages

    check_packages(recipe.model_dump(mode="json")["export"]["forms"] or DEFAULT_FORMS)


def _without_effect(recipe: Recipe, values: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are set and that a later stage will not read, told before the first one runs.

    Each stage refuses its own unread keys when it starts; these are the ones that can be told from
    the recipe alone.
    """
    train, export = values["train"], values["export"]
    forms = export["forms"] or DEFAULT_FORMS
    dead = {"train.sample_every_steps": train["sample_rows"] == 0}
    dead |= {f"export.limits.{form}": form not in forms for form in export["limits"]}
    for key, unread in dead.items():
        if unread and recipe.origin(key) != "default":
            yield f"{key} ({recipe.origin(key)}) has no effect with the other settings as they are"


def _up_to(until: Stage) -> tuple[Stage, ...]:
    return STAGES[: STAGES.index(until) + 1]


def _is_forced(stage: Stage, start: Stage | None) -> bool:
    return start is not None and STAGES.index(stage) >= STAGES.index(start)


def do_step(
    recipe: Recipe,
    step: Step,
    made: Mapping[Stage, Artifact],
    *,
    began: float,
    resume: bool,
    processes: int | None = None,
) -> Done:
    """Do a step, or use its artifact again; `began` is when the stage's clock was started."""
    if step.artifact is not None:
        Run.tidy(step.artifact.dir)
        if step.stage == "export" and recipe.export.signing_key is not None:
            from tunesmith.export.stage import sign_sealed

            sign_sealed(recipe.export, step.artifact)
        timing = _timing(step.artifact.dir)
        seconds, peak = timing.get("seconds"), timing.get("peak_rss_bytes")
        return Done(step.stage, step.artifact, True, seconds, peak)
    if step.directory is None or step.inputs is None:
        raise AssertionError("a step is done only after the stages that it depends on")
    place = step.directory
    before = _timing(place).get("seconds") or 0.0
    with Run.open(place, step.stage, inputs=step.inputs, parents=step.parents, resume=resume) as at:
        try:
            _call(step.stage, recipe, at, made, processes)
        except (InterruptedRun, KeyboardInterrupt) as error:
            _remove_if_untouched(place)
            is_begun = place.is_dir()
            if is_begun:
                _write_timing(place, before + time.monotonic() - began)
            if isinstance(error, InterruptedRun):
                raise
            raise InterruptedRun(
                f"the stage {step.stage!r} was stopped before its end",
                why="Ctrl-C was pressed; nothing is sealed, whole files are kept",
                fix="give the same command again"
                + (f", with --resume for `tunesmith {COMMANDS[step.stage]}`" if is_begun else ""),
            ) from error
        except TunesmithError:
            _remove_if_untouched(place)
            raise
    peak = _write_timing(place, before + time.monotonic() - began)
    seconds = _timing(place)["seconds"]
    return Done(step.stage, Artifact.open(place, step.stage), False, seconds, peak)


def _call(
    stage: Stage, recipe: Recipe, at: Run, made: Mapping[Stage, Artifact], processes: int | None
) -> None:
    """Call the stage; each is imported only when it runs."""
    if stage == "data":
        from tunesmith import data

        data.run(recipe, at, processes=processes)
    elif stage == "train":
        from tunesmith import train

        train.run(recipe, at, made["data"])
    elif stage == "evaluate":
        from tunesmith import evaluate

        evaluate.run(recipe, at, made["data"], made["train"])
    else:
        from tunesmith import export

        export.run(recipe, at, made["data"], made["train"], made["evaluate"])


def attempts(folder: Path, name: str) -> Iterator[int]:
    """Numbers of the attempts that are there; the first has no suffix."""
    for place in folder.glob(f"{name}*"):
        suffix = re.fullmatch(r"(?:-(\d+))?", place.name.removeprefix(name))
        if suffix and place.is_dir():
            yield int(suffix[1] or 1)


def _open(place: Path, stage: Stage, key: str) -> Artifact:
    artifact = Artifact.open(place, stage)
    if artifact.key != key:
        raise ArtifactError(
            f"{place} holds an artifact with another key ({artifact.key[:12]})",
            why="it was copied or renamed",
            fix=f"delete {place} and run again",
        )
    return artifact


def _runs(folder: Path, stage: str) -> Iterator[Path]:
    """A recipe's own folders of a stage; those of merges (`export-merge-...`) are not."""
    return folder.glob(f"{stage}-[0-9a-f]*")


def _newest_sealed(folder: Path, stage: Stage) -> Artifact | None:
    places = [place for place in _runs(folder, stage) if (place / MANIFEST).is_file()]
    newest = max(places, key=lambda place: (place / MANIFEST).stat().st_mtime, default=None)
    try:
        return None if newest is None else Artifact.open(newest, stage)
    except ArtifactError:
        return None  # It only explains a change; a damaged one explains nothing.


def _what_changed(old: Artifact, inputs: Mapping[str, Any], parents: Sequence[Parent]) -> str:
    changes = _changes((old.inputs, old.parents), inputs, parents)
    shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if changes[3:] else "")
    return shown or NOT_MADE


def _changes(
    old: tuple[Mapping[str, Any], Sequence[Parent]],
    inputs: Mapping[str, Any],
    parents: Sequence[Parent],
) -> list[str]:
    before, now = dict(_flat(old[0])), dict(_flat(inputs))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    changes = [f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys]
    if [(p.kind, p.sha256) for p in old[1]] != [(p.kind, p.sha256) for p in parents]:
        hashes = {p.sha256 for p in old[1]}
        new = [p.kind for p in parents if p.sha256 not in hashes]
        changes.append(f"changed: {', '.join(dict.fromkeys(new)) or 'fewer parents'}")
    return changes


def _refuse_another_run(folder: Path, step: Step) -> None:
    """`--resume` with other data or settings would begin anew beside the run that was meant."""
    unfinished = [
        place / "run.json"
        for place in _runs(folder, step.stage)
        if (place / "run.json").is_file() and not (place / MANIFEST).is_file()
    ]
    if not unfinished or step.inputs is None:
        return
    newest = max(unfinished, key=lambda claim: claim.stat().st_mtime)
    try:
        found = json.loads(newest.read_text(encoding="utf-8"))
        old = found["inputs"], tuple(Parent(**parent) for parent in found["parents"])
    except (ValueError, KeyError, TypeError):
        return  # A damaged claim cannot be resumed by any settings, and explains nothing.
    raise ConfigError(
        f"the unfinished run {newest.parent} is not one of this recipe as it is now:\n"
        + listed(_changes(old, step.inputs, step.parents)),
        why="going on with other data or settings would mix two runs",
        fix="restore what differs, or leave --resume away to begin a new run beside it",
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _timing(place: Path) -> Mapping[str, Any]:
    path = place / TIMING
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # Cut off by a crash: the time is not known, and nothing depends on it.
    return found if isinstance(found, dict) else {}


def _write_timing(place: Path, seconds: float) -> int:
    peak = peak_rss_bytes()
    record = {"seconds": round(seconds, 3), "peak_rss_bytes": peak}
    write_atomically(place / TIMING, json.dumps(record))
    return peak


def _remove_if_untouched(place: Path) -> None:
    """Leave no directory behind when a stage was refused before it wrote anything."""
    claim = {"run.json", ".lock"}
    if place.is_dir() and all(p.name in claim or p.is_dir() for p in place.rglob("*")):
        shutil.rmtree(place)
