"""The data stage: raw files to a sealed dataset, streamed.

Rows go through once, in chunks and by several processes, into a spool on the disk; what becomes of each is decided from
a few numbers that stay in memory; then the spool is written out by splits and the dataset is sealed. Equal input gives
equal files, whatever the number of processes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.config import Recipe
from tunesmith.data import databases
from tunesmith.data.appraisal import appraise
from tunesmith.data.card import CARD, card
from tunesmith.data.clean.against import benchmark_rows
from tunesmith.data.gather import gather
from tunesmith.data.intake import side_line
from tunesmith.data.parallel import terminable
from tunesmith.data.plan import DataPlan, plan_data
from tunesmith.data.report import report_of
from tunesmith.data.settle import Settled, settle
from tunesmith.data.split import LEFT_OUT, SPLITS
from tunesmith.data.spool import Spool, spooling
from tunesmith.errors import DataError, InterruptedRun
from tunesmith.store import Artifact, Run, reach, sha256_of_file

__all__ = ["SIDES", "DataResult", "run"]

SIDES = ("dropped", "changed", "findings")
"""Files of a sealed dataset beside its splits, each with one JSON object a line."""


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


def run(recipe: Recipe, at: Run, *, processes: int | None = None) -> DataResult:
    """Read, check, split and seal.

    Files: `SPLIT.jsonl`; `dropped.jsonl`, `changed.jsonl` and `findings.jsonl`; `databases/NAME.sqlite`; `report.json`
    and the card, `README.md`.

    Args:
        recipe: the whole recipe.
        at: opened with `sources(recipe)` as its parents.
        processes: worker processes; None for one a core where there is much to do. The result is the same.

    Raises:
        ConfigError: a key is set that would have no effect.
        DataError: rows are wrong, splits overlap or are empty, or a file changed since `sources`.
        StorageError: the disk refuses.
        InterruptedRun: Ctrl-C or SIGTERM came. In no case is anything sealed.
    """
    try:
        with terminable():
            return _run(plan_data(recipe), at, processes)
    except KeyboardInterrupt as error:
        raise InterruptedRun(
            "the build of the dataset was stopped",
            why="nothing of it is sealed; it is made from its files again, which are as they were",
            fix="run the same command again with --resume",
        ) from error


def _run(plan: DataPlan, at: Run, processes: int | None) -> DataResult:
    hashes = _hashes(plan, at)
    names = sorted([*plan.databases, *plan.scripts])
    with spooling(at) as spool:
        taken = gather(plan, hashes, spool, processes)
        benchmark = benchmark_rows(plan.clean.against, plan.options)
        _refuse_changed([*plan.clean.against, *plan.check_files], hashes)
        settled = settle(plan, spool, benchmark)
        appraisal = appraise(plan, taken.checker, settled, spool)
        report = _as_told(report_of(plan, taken, settled, spool, appraisal))
        _write_rows(settled, spool, at)
    databases.copy_databases(plan.databases, hashes, at)
    databases.make_databases(plan.scripts, at)
    at.write_json("report.json", report)
    at.write_text(CARD, card(report))
    facts = {
        "rows": report["rows"],
        "kind": report["kind"],
        "databases": names,
        "source": plan.source,
    }
    artifact = at.finish(facts)
    return DataResult(artifact, report["rows"], tuple(names), report)


def _as_told(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with files named below the folder that holds them all: a dataset is passed on, the user's folders
    are not, and its bytes do not depend on where it lies."""
    folders = [os.path.dirname(os.path.abspath(file["path"])) for file in report["files"]]
    above = os.path.commonpath(folders) if folders else ""
    files = [file | {"path": os.path.relpath(file["path"], above)} for file in report["files"]]
    return {**report, "files": files}


def _hashes(plan: DataPlan, at: Run) -> dict[Path, str]:
    """The hash that each file had when the run was opened.

    Raises:
        DataError: a file has come since, as into a folder that the recipe names.
    """
    known = {parent.path: parent.sha256 for parent in at.parents if parent.kind == "file"}
    if missing := [path for path in plan.all_files if str(path) not in known]:
        raise DataError(
            f"{missing[0]} was not among the dataset's files when the run began",
            why="a run is sealed with the hashes that its files have when it is opened",
            fix="run again; in Python open the run with data.sources(recipe) as its parents",
        )
    return {path: known[str(path)] for path in plan.all_files}


def _refuse_changed(files: Sequence[Path], hashes: Mapping[Path, str]) -> None:
    """Stop when a file that was read beside the rows is not the one that is sealed as a parent."""
    for path in files:
        if not path.is_file() or sha256_of_file(path) != hashes[path]:
            raise databases.changed(path)


def _write_rows(settled: Settled, spool: Spool, at: Run) -> None:
    """Write the spool out: `SPLIT.jsonl`, and a line for each row that is in none."""
    _account(settled, spool)
    copies = None if settled.copies is None else settled.copies.tolist()
    with ExitStack() as stack:
        files: list[IO[bytes]] = []
        for name in SPLITS:
            path = stack.enter_context(at.writing(f"{name}.jsonl"))
            files.append(stack.enter_context(path.open("wb")))
        reach("data-write")
        for index, (number, line) in enumerate(
            zip(settled.splits.tolist(), spool.lines(), strict=True)
        ):
            if number != LEFT_OUT:
                files[number].write(line if copies is None else line * copies[index])
    for name in SIDES:
        found = spool.side(name)
        with at.writing(f"{name}.jsonl") as path:
            _copy(found, path)


def _account(settled: Settled, spool: Spool) -> None:
    """A line in the side files for each row that was dropped, or changed and kept."""
    written: set[int] = set()
    for index, text, done in spool.changes():
        if index in settled.dropped:
            rule, reason = settled.dropped[index]
            line = side_line(spool.where(index), rule, reason, text)
            written.add(index)
            spool.add_side("dropped", line)
        else:
            line = side_line(
                spool.where(index), done["rule"], done["reason"], text, spool.text(index)
            )
            spool.add_side("changed", line)
    for index, (rule, reason) in sorted(settled.dropped.items()):
        if index not in written:
            line = side_line(spool.where(index), rule, reason, spool.text(index))
            spool.add_side("dropped", line)


def _copy(found: Path | None, path: Path) -> None:
    if found is None:
        path.touch()
    else:
        shutil.copyfile(found, path)
