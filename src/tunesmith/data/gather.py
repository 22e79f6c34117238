"""All files of a plan into the spool: chunks by worker processes, what they found taken over in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tunesmith.data import databases
from tunesmith.data.check import Checker, CheckOptions, tell_domains
from tunesmith.data.intake import Intake, Piece
from tunesmith.data.named import idle_conditions, idle_fields
from tunesmith.data.parallel import ordered_map
from tunesmith.data.plan import DataPlan
from tunesmith.data.problems import Problems
from tunesmith.data.read import open_source
from tunesmith.data.rows import RawRow, Row
from tunesmith.data.schemas import HEAD_ROWS, Told, tell, to_row
from tunesmith.data.split import SPLITS
from tunesmith.data.spool import Digest, Spool, numpy
from tunesmith.data.unreadable import Unread, fix_for
from tunesmith.errors import counted
from tunesmith.registry import nearest
from tunesmith.telemetry import progress

__all__ = ["FIX", "FileFound", "Gathered", "gather"]

_MANY = 50_000
"""Rows whose comparison takes long enough to be announced."""
FIX = "mend the lines named; `tunesmith data show FILE` prints a row as the model would see it"


@dataclass
class FileFound:
    """What was found in one file."""

    path: Path
    split: str
    part: str
    told: Told
    form: str = ""
    n_bytes: int = 0
    sha256: str = ""
    n_read: int = 0
    n_rows: int = 0
    kinds: set[str] = field(default_factory=set)
    unread: Unread = field(default_factory=Unread)


@dataclass
class Gathered:
    """What all files together held."""

    files: list[FileFound] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    counts: Counter[str] = field(default_factory=Counter)
    meta_fields: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    checker: Checker = field(default_factory=lambda: Checker(CheckOptions()))


def gather(
    plan: DataPlan, hashes: Mapping[Path, str], spool: Spool, processes: int | None
) -> Gathered:
    """Read all files into the spool, so that all problems are named at once.

    Raises:
        DataError: something is wrong in the files.
    """
    numpy()
    taken = Gathered()
    databases.check_databases(plan.databases, taken.problems)
    spool.names = [str(file.path) for file in plan.files]
    told, checks, names = _tell(plan)
    taken.checker = Checker(checks)
    pieces = _pieces(plan, hashes, told, taken)
    target = "tunesmith.data.intake:digest"
    intake = _with_known_fields(_intake(plan, checks), names, taken.problems)
    n_bytes = sum(file.path.stat().st_size for file in plan.files if file.path.is_file())
    with (
        closing(ordered_map(target, intake, pieces, processes=processes)) as digests,
        progress("data", max(n_bytes // 1_000, 1), unit="kB") as bar,
    ):
        for found in digests:
            _add(found, taken, spool)
            # A compressed file holds more than it is long.
            step = min(found.n_bytes // 1_000, bar.total - bar.done)
            bar.advance(step, counted(taken.counts["read"], "row"))
        if taken.counts["rows"] >= _MANY:
            bar.print(f"data: {taken.counts['rows']:,} rows are read and are compared now")
    _refuse_mixed_kinds(taken)
    told_of = [file.told for file in taken.files]
    idle = idle_conditions(plan.clean.drop_where, taken.named, n_rows=taken.counts["rows"])
    for setting, why in chain(idle_fields(plan.options.mapping, told_of, taken.named), idle):
        taken.problems.add(setting, why)
    for file in taken.files:
        file.unread.refuse_most(str(file.path), taken.problems)
    taken.problems.raise_any(fix_for((file.unread for file in taken.files), FIX))
    spool.close()
    return taken


def _tell(plan: DataPlan) -> tuple[list[Told], CheckOptions, set[str]]:
    """Each file's schema, the checks with the domain of the answers, and names of fields, from the first rows."""
    told: list[Told] = []
    head: list[Row] = []
    names: set[str] = set()
    for file in plan.files:
        first = _head(file.path, plan.form)
        told.append(tell(first, plan.options))
        names.update(name for raw in first for name in raw.fields)
        for raw in first[: max(0, HEAD_ROWS - len(head))]:
            row = to_row(raw, told[-1], plan.options, Problems())
            head += [row] if row is not None else []
    names.update(name for row in head for name in row.meta)
    return told, plan.check.told(tell_domains(head)), names


def _with_known_fields(intake: Intake, names: set[str], problems: Problems) -> Intake:
    """Without fields to split by that none of the first rows has: a wrong name is one problem, not one of each row."""
    asked = {"stratify": intake.stratify, "group": intake.group, "time": intake.time}
    unknown: dict[str, Any] = {}
    for use, name in asked.items():
        if name is None or name in names or (use, name) == ("stratify", "answer"):
            continue
        if not names or intake.require:  # Others than the first may be the rows that are kept.
            continue
        setting = "data.split.field" if use == "time" else f"data.split.{use}"
        known = ", ".join(sorted(names))
        problems.add(
            setting, f"no field {name!r} in the rows{nearest(name, names)}; they have {known}"
        )
        unknown[use] = None
    return replace(intake, **unknown)


def _head(path: Path, form: str = "auto") -> list[RawRow]:
    """The first rows of a file; what is wrong in them is told when they are read."""
    return list(islice(open_source(path, form=form).rows(Problems()), HEAD_ROWS))


def _intake(plan: DataPlan, checks: CheckOptions) -> Intake:
    held_out, clean = plan.held_out, plan.clean
    return Intake(
        options=plan.options,
        require=plan.require,
        databases=tuple(sorted([*plan.databases, *plan.scripts])),
        stratify=held_out.stratify,
        group=held_out.group,
        time=held_out.time,
        by_template=held_out.by_template,
        sketches=held_out.near_duplicates
        or plan.on_near_overlap is not None
        or clean.near
        or bool(clean.against),
        clean=clean,
        check=checks,
        source_field=plan.source_field,
    )


def _pieces(
    plan: DataPlan, hashes: Mapping[Path, str], schemas: Sequence[Told], taken: Gathered
) -> Iterator[Piece]:
    """All chunks of all files, in order; each file is held to its hash when it is through."""
    for number, (file, told) in enumerate(zip(plan.files, schemas, strict=True)):
        found = FileFound(file.path, file.split, file.part, told)
        taken.files.append(found)
        if told.others and not told.schema:
            # Each of its rows would be a problem of its own, and the same one.
            taken.problems.add(str(file.path), told.why)
            continue
        source = open_source(file.path, form=plan.form)
        for chunk in source.chunks():
            yield Piece(chunk, told, number, SPLITS.index(file.split), file.part)
        found.form, found.n_bytes, found.sha256 = source.form, source.n_bytes, source.sha256
        if source.sha256 and source.sha256 != hashes[file.path]:
            raise databases.changed(file.path)


def _add(found: Digest, taken: Gathered, spool: Spool) -> None:
    """Take over what a chunk held."""
    file = taken.files[found.file]
    file.n_read += found.counts["read"]
    file.n_rows += found.counts["rows"]
    file.kinds |= found.kinds
    file.unread.merge(found.unread)
    taken.problems.merge(found.problems)
    taken.counts += found.counts
    taken.meta_fields |= found.meta_fields
    taken.named |= found.named
    if found.checker is not None:
        taken.checker.merge(found.checker)
    if not taken.problems.n_problems:  # Nothing will be sealed otherwise.
        spool.add(found)


def _refuse_mixed_kinds(taken: Gathered) -> None:
    """One dataset trains one objective: rows of several kinds do not mix."""
    kinds = sorted({kind for file in taken.files for kind in file.kinds})
    if len(kinds) > 1:
        for file in taken.files:
            held = " and ".join(sorted(file.kinds)) or "no"
            taken.problems.add(
                str(file.path), f"{held} rows ({file.told.schema}) beside files of another kind"
            )
