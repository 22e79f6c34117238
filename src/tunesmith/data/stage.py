"""The data stage: raw files to a sealed dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.config import Recipe
from tunesmith.data import databases
from tunesmith.data.card import card
from tunesmith.data.convert import PREFERENCE, convert
from tunesmith.data.plan import DataPlan, plan_data
from tunesmith.data.problems import Problems
from tunesmith.data.read import RawFile, read_file
from tunesmith.data.rows import Row
from tunesmith.data.split import (
    SPLITS,
    drawn,
    find_overlaps,
    hold_out,
    prompt_key,
    refuse_overlaps,
)
from tunesmith.errors import DataError
from tunesmith.store import Artifact, Run

__all__ = ["DataResult", "read_files", "run"]


@dataclass(frozen=True)
class DataResult:
    """A sealed dataset.

    Attributes:
        rows: split -> number of rows.
        databases: names of the SQLite files under `databases/`.
        report: what `report.json` holds.
    """

    artifact: Artifact
    rows: Mapping[str, int]
    databases: tuple[str, ...]
    report: Mapping[str, Any]


@dataclass
class _Gathered:
    """Rows of each split on their way, and what happened to them."""

    splits: dict[str, list[Row]] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)
    n_not_required: int = 0
    n_overlaps: Counter[str] = field(default_factory=Counter)


def run(recipe: Recipe, at: Run) -> DataResult:
    """Read, check, split and seal. Files: `SPLIT.jsonl`, `databases/NAME.sqlite`, report and card.

    Args:
        recipe: the whole recipe.
        at: opened with `sources(recipe)` as its parents.

    Raises:
        ConfigError: a key is set that would have no effect.
        DataError: rows are wrong, splits overlap or are empty, or a file changed since `sources`.
        StorageError: the disk refuses. In no case is anything sealed.
    """
    plan = plan_data(recipe)
    gathered = _gather(plan, _hashes(plan, at))
    _split(gathered, plan)
    names = sorted([*plan.databases, *plan.scripts])
    report = _report(plan, gathered, names)
    for split in SPLITS:
        text = "".join(f"{row.text}\n" for row in gathered.splits[split])
        at.write_text(f"{split}.jsonl", text)
    databases.copy_databases(plan.databases, _hashes(plan, at), at)
    databases.make_databases(plan.scripts, at)
    at.write_json("report.json", report)
    at.write_text("card.md", card(report))
    artifact = at.finish({"rows": report["rows"], "databases": names, "source": plan.source})
    return DataResult(artifact, report["rows"], tuple(names), report)


def read_files(
    files: Sequence[Path], fields: tuple[str, str] | None = None, system: str | None = None
) -> list[Row]:
    """Canonical rows of raw or sealed files.

    Raises:
        DataError: names everything that is wrong in them.
    """
    problems = Problems()
    read = [read_file(path, problems) for path in files]
    rows = [row for file in read for row in convert(file, fields, system, problems)[1]]
    problems.raise_any(_FIX)
    return rows


_FIX = "mend the lines named; `tunesmith data show FILE` prints a row as the model would see it"


def _hashes(plan: DataPlan, at: Run) -> dict[Path, str]:
    """The hash that each file had when the run was opened."""
    known = {parent.path: parent.sha256 for parent in at.parents if parent.kind == "file"}
    paths = [path for split in SPLITS for path in plan.files[split]]
    paths += [*plan.databases.values(), *plan.scripts.values()]
    if missing := [path for path in paths if str(path) not in known]:
        raise ValueError(f"open the run with sources(recipe) as its parents: {missing[0]}")
    return {path: known[str(path)] for path in paths}


def _gather(plan: DataPlan, hashes: Mapping[Path, str]) -> _Gathered:
    """Read all files of all splits, so that all problems are named at once."""
    problems = Problems()
    gathered = _Gathered()
    databases.check_databases(plan.databases, problems)
    names = [*plan.databases, *plan.scripts]
    for split in SPLITS:
        rows: list[Row] = []
        for path in plan.files[split]:
            file = read_file(path, problems)
            _refuse_changed(file, hashes)
            schema, found = convert(file, plan.fields, plan.system, problems)
            kept = [row for row in found if _has_required(row, plan.require or {})]
            gathered.n_not_required += len(found) - len(kept)
            gathered.files.append(_facts(file, split, schema, len(found)))
            rows += kept
        if names:
            databases.check_rows(rows, names, problems)
        gathered.splits[split] = rows
    _refuse_pairs_beside_rows(gathered.files, problems)
    problems.raise_any(_FIX)
    return gathered


def _refuse_pairs_beside_rows(files: Sequence[Mapping[str, Any]], problems: Problems) -> None:
    """One dataset trains one objective: pairs and single answers do not mix."""
    pairs = [file for file in files if file["schema"] == PREFERENCE]
    if pairs and len(pairs) < len(files):
        for file in files:
            held = "pairs" if file["schema"] == PREFERENCE else f"{file['schema']} rows"
            problems.add(file["path"], f"{held} beside files of another kind")


def _facts(file: RawFile, split: str, schema: str, n_rows: int) -> dict[str, Any]:
    return {
        "split": split,
        "path": str(file.path),
        "bytes": file.n_bytes,
        "sha256": file.sha256,
        "schema": schema,
        "rows": n_rows,
    }


def _refuse_changed(file: RawFile, hashes: Mapping[Path, str]) -> None:
    if file.sha256 and file.sha256 != hashes[file.path]:
        raise databases.changed(file.path)


def _has_required(row: Row, require: Mapping[str, Any]) -> bool:
    """Whether the fields have exactly these values; true is not 1."""
    return all(
        name in row.meta and type(row.meta[name]) is type(value) and row.meta[name] == value
        for name, value in require.items()
    )


def _split(gathered: _Gathered, plan: DataPlan) -> None:
    """Hold out what has no file, keep prompts apart, draw what is limited."""
    splits = gathered.splits
    _refuse_empty(splits, plan, [split for split in SPLITS if plan.files[split]])
    n_rows = len(splits["train"])
    for split, ratio in (plan.ratios or {}).items():
        n_wanted = round(ratio * n_rows)
        splits["train"], splits[split] = hold_out(splits["train"], n_wanted, plan.seed, split)
    overlaps = find_overlaps(splits)
    if not plan.drops_overlaps:
        refuse_overlaps(overlaps)
    for split in SPLITS:
        repeated = {id(overlap.row) for overlap in overlaps if overlap.split == split}
        gathered.n_overlaps[split] = len(repeated)
        kept = [row for row in splits[split] if id(row) not in repeated]
        splits[split] = drawn(kept, plan.limits.get(split), plan.seed, split)
    _refuse_empty(splits, plan, SPLITS)


def _refuse_empty(
    splits: Mapping[str, Sequence[Row]], plan: DataPlan, wanted: Sequence[str]
) -> None:
    empty = [split for split in wanted if not splits[split]]
    if empty:
        required = ", ".join(f"{name} = {value!r}" for name, value in (plan.require or {}).items())
        raise DataError(
            f"no rows are left for {' and '.join(empty)}",
            why=f"rows were kept only where {required}"
            if required
            else "all repeat prompts of held-out rows",
            fix="change data.require" if required else "give each split rows of its own",
        )


def _report(plan: DataPlan, gathered: _Gathered, names: Sequence[str]) -> dict[str, Any]:
    """What `report.json` says: counts, and where each row came from."""
    splits = gathered.splits
    keys = {split: [prompt_key(row) for row in splits[split]] for split in SPLITS}
    return {
        "source": plan.source,
        "seed": plan.seed,
        "rows": {split: len(splits[split]) for split in SPLITS},
        "repeated_prompts": {split: len(k) - len(set(k)) for split, k in keys.items()},
        "held_out_by_ratio": dict(plan.ratios or {}),
        "limits": {split: limit for split, limit in plan.limits.items() if limit is not None},
        "left_out": {
            "by_require": gathered.n_not_required,
            "by_overlap": {split: n for split, n in gathered.n_overlaps.items() if n},
        },
        "meta_fields": sorted({name for rows in splits.values() for r in rows for name in r.meta}),
        "databases": list(names),
        "files": gathered.files,
    }
