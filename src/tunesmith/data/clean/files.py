"""Files cleaned: each row read, ruled on, and written to the clean rows or to a side file."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tunesmith.config import CleanConfig
from tunesmith.data.clean.against import FIX, benchmark_rows, refuse_itself
from tunesmith.data.clean.cleaner import Cleaner
from tunesmith.data.clean.keeping import Kept, Ruling
from tunesmith.data.clean.output import OUT_FILES, put_out, refuse_foreign_folder
from tunesmith.data.clean.plan import CleanPlan, plan_clean
from tunesmith.data.clean.sets import Rows, drops, exact_key
from tunesmith.data.named import conditions_in, fields_in, idle_conditions, idle_fields, once
from tunesmith.data.near import said
from tunesmith.data.parallel import ordered_map
from tunesmith.data.problems import Problems
from tunesmith.data.read import Chunk, expand, open_source, parse_chunk, parse_each
from tunesmith.data.rows import BadRow, RawRow, Row
from tunesmith.data.schemas import HEAD_ROWS, Options, Told, read_row, tell
from tunesmith.data.sketches import numpy, sketch
from tunesmith.data.unreadable import RULE, Unread, fix_for
from tunesmith.store import storage_errors
from tunesmith.telemetry import progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["OUT_FILES", "CleanResult", "clean_files"]

_LONG_BYTES = 8_000_000


@dataclass(frozen=True)
class CleanResult:
    """What cleaning did: `rows_in` is `rows_out` and all of `dropped` together.

    Attributes:
        changed: rule -> rows that it changed and that were kept.
        dropped: rule -> rows that it dropped.
        rows_changed: rows kept that any rule changed.
        files: path, schema, what it was told by, and rows of each file read.
        examples: rule -> the first few (where, reason).
    """

    rows_in: int
    rows_out: int
    rows_changed: int
    changed: Mapping[str, int]
    dropped: Mapping[str, int]
    files: tuple[Mapping[str, Any], ...]
    examples: Mapping[str, Sequence[tuple[str, str]]]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, for `report.json`."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "rows_changed": self.rows_changed,
            "changed": dict(self.changed),
            "dropped": dict(self.dropped),
            "files": [dict(file) for file in self.files],
        }


@dataclass(frozen=True)
class Job:
    """What is done with every chunk; sent once to each worker process."""

    plan: CleanPlan
    options: Options


@dataclass
class Digest:
    """What a chunk became: its rows with what was ruled on each, and the numbers of those that stay."""

    rulings: list[Ruling] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    unread: Unread = field(default_factory=Unread)
    keys: list[int] = field(default_factory=list)
    sketches: NDArray[np.uint32] | None = None
    named: set[str] = field(default_factory=set)


def clean_files(
    files: Sequence[Path | str],
    config: CleanConfig,
    *,
    out: Path | BinaryIO | None = None,
    sides: Path | None = None,
    options: Options | None = None,
    form: str = "auto",
    processes: int | None = None,
) -> CleanResult:
    """Clean files. Nothing is written before every row is ruled on, and then all or nothing.

    Args:
        files: files or folders of any form and schema, or "-" for stdin.
        config: the rules.
        out: folder for `rows.jsonl` (canonical rows), `dropped.jsonl`, `changed.jsonl` and `report.json`; a stream
            gets the rows alone; None writes nothing.
        sides: folder for the other files when `out` is a stream.
        options: how rows are read, where their fields do not tell it.
        form: of the files, where their content does not tell it.
        processes: see `parallel.ordered_map`.

    Raises:
        ConfigError: rules contradict each other, or a file is named twice, or held against itself.
        DataError: rows cannot be read; all are named.
        MissingError: a file is not there.
        UsedDirectoryError: the folder holds other files than an earlier cleaning's.
        EnvironmentProblem: a rule needs a package that is not installed.
        StorageError: the disk refuses.
    """
    plan = plan_clean(config)
    folder = out if isinstance(out, Path) else sides
    if folder is not None:
        refuse_foreign_folder(folder, files)
    refuse_itself(files, plan.against)
    benchmark = benchmark_rows(plan.against, options or Options())
    with storage_errors(Path(tempfile.gettempdir())), Kept() as kept:
        facts = _take_all(files, Job(plan, options or Options()), kept, form, processes)
        _rule_on_sets(plan, kept, benchmark)
        result = _result(kept, facts)
        if result.rows_in != result.rows_out + sum(result.dropped.values()):
            raise AssertionError(f"rows were lost or invented: {result.as_dict()}")
        if out is not None:
            put_out(kept, out, sides, result.as_dict())
    return result


def _take_all(
    files: Sequence[Path | str], job: Job, kept: Kept, form: str, processes: int | None
) -> list[dict[str, Any]]:
    """Read every file into `kept`.

    Raises:
        DataError: something in them cannot be read; all of it is named.
    """
    problems = Problems()
    unread: list[Unread] = []
    facts: list[dict[str, Any]] = []
    named: set[str] = set()
    every: list[Told] = []
    paths = once(expand(files))
    with _bar(paths) as advance:
        for path in paths:
            source = open_source(path, form=form)
            n_before = len(kept)
            unread.append(Unread())
            chunks = source.chunks()
            first = list(islice(chunks, 1))
            told = _told(first, job.options)
            every.append(told)
            if told.others and not told.schema:
                problems.add(str(path), told.why)
                continue
            pieces = ((chunk, told) for chunk in chain(first, chunks))
            made = ordered_map(f"{__name__}:digest", job, pieces, processes=processes)
            with closing(made) as digests:
                for digest in digests:
                    problems.merge(digest.problems)
                    unread[-1].merge(digest.unread)
                    named |= digest.named
                    advance(_keep(digest, kept))
            unread[-1].refuse_most(str(path), problems)
            facts.append(
                {
                    "path": str(path),
                    "schema": told.schema,
                    "why": told.why,
                    "rows": len(kept) - n_before,
                    "unreadable": unread[-1].n_rows,
                    "sha256": source.sha256,
                }
            )
    idle = idle_conditions(job.plan.drop_where, named, n_rows=len(kept))
    for setting, why in chain(idle_fields(job.options.mapping, every, named), idle):
        problems.add(setting, why)
    problems.raise_any(fix_for(unread, FIX))
    return facts


def _keep(digest: Digest, kept: Kept) -> int:
    """Take a chunk's rows over; how many bytes they have, nearly."""
    for ruling in digest.rulings:
        kept.add(ruling)
    kept.add_numbers(digest.keys, digest.sketches)
    return sum(len(ruling.text) for ruling in digest.rulings)


@contextmanager
def _bar(paths: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """A bar on stderr when there is much to read; call it with the bytes done."""
    n_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    if n_bytes < _LONG_BYTES:
        yield lambda _: None
        return
    with progress("cleaning", n_bytes // 1_000, unit="kB") as bar:
        # A packed file holds more than it is long.
        yield lambda n: bar.advance(min(n // 1_000, bar.total - bar.done))
        bar.print("cleaning: all rows are read and are compared now")


def _told(first: Sequence[Chunk], options: Options) -> Told:
    head: list[RawRow] = []
    for chunk in first:
        head += parse_chunk(chunk)[0][:HEAD_ROWS]
    return tell(head, options)


def digest(job: Job, piece: tuple[Chunk, Told]) -> Digest:
    """Read and clean a chunk's rows; what a worker process does."""
    chunk, told = piece
    cleaner, found = Cleaner(job.plan), Digest()
    stay: list[Row] = []
    for raw in parse_each(chunk, found.problems):
        found.unread.n_all += 1
        found.named.update(fields_in(raw, job.options.mapping))
        row = read_row(raw, told, job.options)
        if isinstance(row, BadRow):
            reason = found.unread.take(row, found.problems, drop=job.plan.drop_unreadable)
            if reason:
                # A dropped row's kind is never asked for.
                found.rulings.append(
                    Ruling(row.where, "text", row.text, "", (("drop", RULE, reason),))
                )
            continue
        found.named.update(conditions_in(row, job.plan.drop_where))
        cleaned = cleaner.row(row)
        steps = tuple((d.action, d.rule, d.reason) for d in cleaned.decisions)
        now = cleaned.row.text if cleaned.row is not None and cleaned.row is not row else ""
        found.rulings.append(Ruling(row.where, row.kind, row.text, now, steps))
        if cleaned.row is not None:
            stay.append(cleaned.row)
    if job.plan.exact:
        found.keys = [exact_key(row) for row in stay]
    if job.plan.near or job.plan.against:
        found.sketches = sketch([said(row) for row in stay])
    return found


def _rule_on_sets(plan: CleanPlan, kept: Kept, benchmark: Sequence[Row]) -> None:
    if not plan.compares_rows:
        return
    np = numpy()
    live = kept.live
    rows = Rows(
        len(live),
        row_of=lambda at: kept.row(live[at]),
        where_of=lambda at: kept.where(live[at]),
        keys=np.array(kept.keys, dtype=np.uint64) if plan.exact else None,
        sketches=kept.sketches(),
    )
    for drop in drops(plan, rows, benchmark=benchmark):
        kept.drop(live[drop.index], drop.rule, drop.reason)


_EXAMPLES = 3


def _result(kept: Kept, facts: list[dict[str, Any]]) -> CleanResult:
    dropped: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    examples: dict[str, list[tuple[str, str]]] = {}
    n_changed = 0
    for ruled in kept.rulings():
        last = ruled.dropped_by
        if last is not None:
            dropped[last[0]] += 1
            steps = [last]
        else:
            steps = [(rule, reason) for _, rule, reason in ruled.steps]
            changed.update({rule for rule, _ in steps})
            n_changed += bool(steps)
        for rule, reason in steps:
            if len(shown := examples.setdefault(rule, [])) < _EXAMPLES:
                shown.append((ruled.where, reason))
    return CleanResult(
        rows_in=len(kept),
        rows_out=len(kept) - sum(dropped.values()),
        rows_changed=n_changed,
        changed=dict(changed.most_common()),
        dropped=dict(dropped.most_common()),
        files=tuple(facts),
        examples=examples,
    )
