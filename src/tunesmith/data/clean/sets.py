"""Rows dropped by what other rows are: exact, near and semantic duplicates, and what a benchmark holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data.clean.cleaner import Cleaner
from tunesmith.data.clean.contamination import Benchmark
from tunesmith.data.clean.plan import CleanPlan
from tunesmith.data.near import Said, label_of, said
from tunesmith.data.rows import Row
from tunesmith.data.similar import clusters
from tunesmith.data.sketches import numpy, sketch

if TYPE_CHECKING:
    from numpy import uint32, uint64
    from numpy.typing import NDArray

__all__ = ["Drop", "Rows", "drops", "exact_key"]

_BLOCK = 1 << 13


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that goes, by its place among the rows compared."""

    index: int
    rule: str
    reason: str


@dataclass(frozen=True)
class Rows:
    """Rows by their index, wherever they are kept.

    Attributes:
        n_rows: how many there are.
        row_of: the row at an index.
        where_of: "file:line" at an index.
        keys: (n_rows,) of `exact_key`, when they are there already.
        sketches: (n_rows, WIDTH), when they are there already.
        is_held_out: whether a row is not trained on, so that it may stand in a benchmark; none when None.
    """

    n_rows: int
    row_of: Callable[[int], Row]
    where_of: Callable[[int], str]
    keys: NDArray[uint64] | None = None
    sketches: NDArray[uint32] | None = None
    is_held_out: Callable[[int], bool] | None = None

    def said_of(self, index: int) -> Said:
        """What a row asks and answers."""
        return said(self.row_of(index))


def exact_key(row: Row) -> int:
    """64 bits that are equal for rows of equal conversations, or of equal texts of one class.

    Other fields do not count, but for `database`.
    """
    parts: dict[str, Any] = {name: row.value[name] for name in row.value if name != "meta"}
    label = label_of(row) if row.kind == "text" else ""
    text = json.dumps([row.kind, parts, row.meta.get("database"), label], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def drops(
    plan: CleanPlan,
    rows: Rows,
    *,
    benchmark: Sequence[Row] = (),
) -> list[Drop]:
    """Every row that a rule on several rows drops, in order, each once with the first rule that does.

    Args:
        benchmark: rows of `plan.against`.

    Raises:
        CapacityError: more rows than can be compared by meaning.
        EnvironmentProblem: a package that a rule needs is not installed.
        ModelError, MissingError: the model of `plan.semantic_model` cannot be loaded.
    """
    found: dict[int, Drop] = {}
    sketches = rows.sketches
    if sketches is None and (plan.near or benchmark):
        sketches = _sketched(rows)
    if benchmark and sketches is not None:
        # As the rows were: one that was masked is no longer near to one that was not.
        alike = map(Cleaner(plan).changed, benchmark)
        for hit in Benchmark(alike, plan.against_words).find(rows.n_rows, rows.row_of, sketches):
            if rows.is_held_out is None or not rows.is_held_out(hit.row_index):
                found[hit.row_index] = Drop(hit.row_index, "contamination", hit.reason)
    if plan.exact:
        _note(found, _exact(rows), "exact", "the same as {}", rows)
    if plan.near and sketches is not None:
        kept = [index for index in range(rows.n_rows) if index not in found]
        for index, first in _near(rows, kept, sketches, plan):
            is_exact = exact_key(rows.row_of(index)) == exact_key(rows.row_of(first))
            reason = "exactly the same as {}" if is_exact else "nearly the same as {}"
            found[index] = Drop(index, "near", reason.format(rows.where_of(first)))
    if plan.semantic:
        kept = [index for index in range(rows.n_rows) if index not in found]
        same = _semantic(rows, kept, plan)
        _note(found, same, "semantic", "means the same as {}", rows)
    return [found[index] for index in sorted(found)]


def _note(
    found: dict[int, Drop], pairs: Iterator[tuple[int, int]], rule: str, reason: str, rows: Rows
) -> None:
    for index, first in pairs:
        found.setdefault(index, Drop(index, rule, reason.format(rows.where_of(first))))


def _sketched(rows: Rows) -> NDArray[uint32]:
    np = numpy()
    blocks = [
        sketch([rows.said_of(at) for at in range(start, min(start + _BLOCK, rows.n_rows))])
        for start in range(0, rows.n_rows, _BLOCK)
    ]
    made: NDArray[uint32] = np.concatenate(blocks) if blocks else sketch([])
    return made


def _exact(rows: Rows) -> Iterator[tuple[int, int]]:
    """(row, first row of the same conversation) of each row that repeats one."""
    np = numpy()
    keys = rows.keys
    if keys is None:
        made = (exact_key(rows.row_of(index)) for index in range(rows.n_rows))
        keys = np.fromiter(made, dtype=np.uint64, count=rows.n_rows)
    _, first, places = np.unique(keys, return_index=True, return_inverse=True)
    firsts = first[places]
    for index in np.flatnonzero(firsts != np.arange(rows.n_rows)).tolist():
        yield index, int(firsts[index])


def _near(
    rows: Rows, kept: Sequence[int], sketches: NDArray[uint32], plan: CleanPlan
) -> Iterator[tuple[int, int]]:
    if len(kept) < rows.n_rows:
        sketches = sketches[list(kept)]
    found = clusters(sketches, lambda at: rows.said_of(kept[at]), plan.near_threshold)
    for at, first in enumerate(found.tolist()):
        if at != first:
            yield kept[at], kept[first]


def _semantic(rows: Rows, kept: Sequence[int], plan: CleanPlan) -> Iterator[tuple[int, int]]:
    """Questions that mean the same and whose answers are equal."""
    from tunesmith.data.clean.semantic import same_meaning

    texts = [rows.said_of(index) for index in kept]
    found = same_meaning(texts, plan.semantic_threshold, plan.semantic_model)
    for at, first in enumerate(found.tolist()):
        if at != first:
            yield kept[at], kept[first]
