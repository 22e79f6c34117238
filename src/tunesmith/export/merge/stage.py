"""Merge models into one, and seal it: nothing appears under its name before it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunesmith import __version__
from tunesmith.errors import BusyError, InterruptedRun, StorageError, UsedDirectoryError
from tunesmith.export.merge.asked import Asked
from tunesmith.export.merge.concat import check_concat, stored_bytes, write_concat
from tunesmith.export.merge.members import Member
from tunesmith.export.merge.plan import MergePlan, plan_merge
from tunesmith.export.merge.quantised import BaseEffect, asked_rows, quantised_base_effect
from tunesmith.export.merge.tensors import check_room
from tunesmith.export.merge.write import write_model
from tunesmith.store import (
    MANIFEST,
    Artifact,
    FileEntry,
    Parent,
    Run,
    flush_to_disk,
    storage_errors,
    writing_folder,
)

__all__ = ["MergeResult", "foreseen", "run"]

FORMAT = 1
"""Raised when the code makes something else of equal inputs."""
_SPARE = 1.02
_OTHER_BYTES = 32_000_000
"""Tokenizer, config and manifest."""


@dataclass(frozen=True)
class MergeResult:
    """A sealed merge.

    Attributes:
        dir: the model's folder in it, to be used as `model.base` or by any tool; an adapter's after `concat`.
        effects: for each parent that was trained on a quantised base, what the original base changes.
        reused: the folder held this very merge already.
    """

    artifact: Artifact
    dir: Path
    plan: MergePlan
    effects: Mapping[str, BaseEffect]
    reused: bool = False


def run(asked: Asked, check: Callable[[MergePlan], None] = lambda _plan: None) -> MergeResult:
    """Merge, measure what must be said about quantised bases, and seal the result at `asked.out`.

    A folder that holds the merge of the same contents by the same settings is used again.

    Args:
        check: called before the work; raises what would be refused after it.

    Raises:
        TunesmithError: see `plan_merge`, or raised by `check`.
        UsedDirectoryError: the folder holds something else.
        StorageError: too little room, or the disk refuses; nothing is left behind.
        BusyError: another process merges into the same folder.
        InterruptedRun: Ctrl-C; nothing is left behind.
    """
    plan = plan_merge(asked)
    is_concat = asked.method == "concat"
    if is_concat:
        check_concat(plan.members)
    name = "adapter" if is_concat else "model"
    out = asked.out.expanduser().absolute()
    if (out / MANIFEST).is_file():
        again = _again(plan, out, name)
        check(plan)
        return again
    need = stored_bytes(plan) if is_concat else sum(s.bytes for s in plan.out.values())
    check_room(out, int(need * _SPARE) + _OTHER_BYTES, name)
    check(plan)
    with _in_place(out) as half:
        effects = _write(plan, half, name)
    artifact = Artifact.open(out, "merge")
    return MergeResult(artifact, out / name, plan, effects)


def foreseen(plan: MergePlan) -> Artifact:
    """What the merge will be sealed as, for checks before it: no hashes, and nothing that is counted or
    measured in the work."""
    name = "adapter/adapter_config.json" if plan.asked.method == "concat" else "model/config.json"
    return Artifact(
        dir=plan.asked.out,
        kind="merge",
        key="",
        created="",
        version=__version__,
        inputs=_inputs(plan),
        facts=_facts(plan, {}, {}),
        parents=tuple(_parents(plan)),
        files={name: FileEntry(0, "")},
        sha256="",
    )


def _again(plan: MergePlan, out: Path, name: str) -> MergeResult:
    """What is sealed there, if it is this merge.

    Raises:
        UsedDirectoryError: it is not.
        ArtifactError: it was changed since it was sealed.
    """
    sealed = Artifact.open(out)
    if sealed.key != Run.key_of("merge", _inputs(plan), _parents(plan)):
        raise UsedDirectoryError(
            f"{out} holds a sealed {sealed.kind} of other inputs",
            why="a sealed artifact is never overwritten",
            fix="name a new folder with --out, or delete that one",
        )
    sealed.verify()
    measured = sealed.facts["quantised_bases"]
    effects = {given: BaseEffect(**effect) for given, effect in measured.items()}
    return MergeResult(sealed, out / name, plan, effects, reused=True)


def _inputs(plan: MergePlan) -> dict[str, Any]:
    return {"format": FORMAT, "merge": asdict(plan.settings)}


def _parents(plan: MergePlan) -> list[Parent]:
    parents = [member.parent for member in plan.members]
    return parents if plan.base is None else [*parents, plan.base.as_parent()]


@contextmanager
def _in_place(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends well."""
    from safetensors import SafetensorError

    _refuse_busy(out)
    try:
        with writing_folder(out) as half:
            yield half
            if out.is_dir() and any(out.iterdir()):
                raise UsedDirectoryError(
                    f"{out} was filled meanwhile",
                    why="a merge overwrites nothing",
                    fix="name a new folder with --out",
                )
    except KeyboardInterrupt as error:
        raise InterruptedRun(
            "the merge was stopped before its end",
            why="Ctrl-C was pressed; nothing is left behind",
            fix="give the same command again",
        ) from error
    except SafetensorError as error:
        raise StorageError(
            f"cannot write {out}", why=str(error), fix="free some space, or name another --out"
        ) from error


def _refuse_busy(out: Path) -> None:
    lock = out.with_name(f".{out.name}.part") / ".lock"
    if not lock.is_file():
        return
    try:
        with FileLock(lock).acquire(timeout=0):
            pass
    except Timeout as error:
        raise BusyError(
            f"{out} is being written by another process",
            why="its lock is held",
            fix="wait for it to end, or name another --out",
        ) from error


def _write(plan: MergePlan, half: Path, name: str) -> dict[str, BaseEffect]:
    with Run.open(half, "merge", inputs=_inputs(plan), parents=_parents(plan)) as at:
        folder = at.path(f"{name}/config.json").parent
        with storage_errors(plan.asked.out):
            counts = (write_concat if name == "adapter" else write_model)(plan, folder)
            for file in folder.iterdir():
                flush_to_disk(file)
        effects = _effects(plan)
        at.finish(_facts(plan, counts, effects))
    return effects


def _effects(plan: MergePlan) -> dict[str, BaseEffect]:
    """What the original base changes for each adapter that was trained on a quantised one."""
    found: dict[str, BaseEffect] = {}
    for member in plan.members:
        if member.quantised is None or member.adapter is None:
            continue
        if plan.base is None or plan.prompts.renderer is None:
            continue
        rows, starts, of = asked_rows(member.made_from, plan.prompts.renderer)
        found[member.given] = quantised_base_effect(
            plan.base, member.dir, member.quantised, rows, starts, of
        )
    return found


def _facts(
    plan: MergePlan, counts: Mapping[str, Any], effects: Mapping[str, BaseEffect]
) -> dict[str, Any]:
    settings = plan.settings
    shares = settings.weights if settings.method != "slerp" else (1 - settings.t, settings.t)
    method: dict[str, Any] = {"kind": settings.method}
    if settings.method == "slerp":
        method["t"] = settings.t
    else:
        method |= {"weights": list(settings.weights), "normalise": settings.normalise}
    if settings.kind.base:
        method["lambda"] = settings.scale
    if settings.kind.keep != "all":
        method["density"] = list(settings.densities)
    if settings.kind.keep == "random":
        method["seed"] = settings.seed
    base = _base_fact(plan)
    return {
        "method": method,
        "parents": [_parent_fact(m, w) for m, w in zip(plan.members, shares, strict=True)],
        **({"base": base} if base else {}),
        "precision": _precision(plan),
        **counts,
        "untied_head": plan.untied,
        "quantised_bases": {given: effect.as_dict() for given, effect in effects.items()},
        "notes": list(plan.notes),
        **plan.prompts.as_facts(),
    }


def _base_fact(plan: MergePlan) -> dict[str, str] | None:
    """The base as runs name it: the one that was used, or that all parents were trained on."""
    if plan.base is not None:
        return {"name": plan.base.name, "sha256": plan.base.sha256}
    sealed = {(m.base["name"], m.base["sha256"]) if m.base else None for m in plan.members}
    only = sealed.pop() if len(sealed) == 1 else None
    return None if only is None else {"name": only[0], "sha256": only[1]}


def _parent_fact(member: Member, weight: float) -> dict[str, Any]:
    return {
        "path": member.given,
        "kind": member.kind,
        "sha256": member.parent.sha256,
        "weight": weight,
        "quantised_base": member.quantised["kind"] if member.quantised else None,
    }


def _precision(plan: MergePlan) -> str:
    """In which precision its answers are judged: that of its parents when they agree."""
    found = {str(member.facts.get("precision", "fp32")) for member in plan.members}
    return found.pop() if len(found) == 1 else "fp32"
