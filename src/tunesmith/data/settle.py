"""What becomes of every row: decided once all are read, from their numbers alone.

The order is fixed: rows that repeat others are dropped, rows are held out, rows that leak are found, limits and mixes
are drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tunesmith.data import split as splitting
from tunesmith.data.clean.sets import Rows, drops
from tunesmith.data.mix import Share, mixed, shares
from tunesmith.data.passages import Passages
from tunesmith.data.plan import DataPlan
from tunesmith.data.rows import Row
from tunesmith.data.similar import Said, clusters, matches, said
from tunesmith.data.split import LEFT_OUT, SPLITS, Units
from tunesmith.data.spool import Spool, numpy
from tunesmith.errors import DataError, counted, listed
from tunesmith.store import reach

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Leak", "Settled", "settle", "shown_prompt"]

_SHOWN = 50
_BLOCK = 1 << 18
"""Rows whose sketches are held against those of held-out rows at a time: 128 MiB of them."""


@dataclass(frozen=True)
class Leak:
    """A row whose prompt stands, equal or nearly, in a split that is to be judged or chosen by.

    `splits` are the names of its own split and of the other's; `n_words` is the length of the passage that both hold,
    0 where the prompts as a whole are equal or nearly so.
    """

    row: int
    held_out: int
    splits: tuple[str, str]
    n_words: int = 0

    def described(self, spool: Spool) -> str:
        """Both places and the row's prompt; the other's too where it is another text."""
        mine, other = self.splits
        places = f"{spool.where(self.row)} ({mine}) = {spool.where(self.held_out)} ({other})"
        prompt, held_out = shown_prompt(spool, self.row), shown_prompt(spool, self.held_out)
        words = f"{counted(self.n_words, 'word')} in a row, " if self.n_words else ""
        return f"{places}: {words}{prompt}" + ("" if prompt == held_out else f", {held_out}")


def shown_prompt(spool: Spool, index: int) -> str:
    """The last line of a row's prompt, shortened, as a literal."""
    row = spool.row(index)
    prompt = (row.question or row.answer).rsplit("\n", 1)[-1]
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:60]}...")


@dataclass
class Settled:
    """What becomes of every row.

    Attributes:
        splits: (rows,) places in `SPLITS`, or `LEFT_OUT`.
        copies: (rows,) how often a row stands in its split; None: once.
        dropped: row -> rule and reason; exactly the rows that are `LEFT_OUT`, or of which there are 0 copies.
        overlaps: split -> rows left out because their prompts are held out.
        near: pairs of rows of two splits with nearly equal prompts, found and not dropped.
        shares: part of a mix -> its share.
        held_out_by: what kept rows on one side.
        strata_without: split -> number of strata of which it has no row.
    """

    splits: NDArray[np.uint8]
    copies: NDArray[np.int64] | None = None
    dropped: dict[int, tuple[str, str]] = field(default_factory=dict)
    overlaps: Counter[str] = field(default_factory=Counter)
    near: list[Leak] = field(default_factory=list)
    near_dropped: Counter[str] = field(default_factory=Counter)
    shares: Mapping[str, Share] = field(default_factory=dict)
    held_out_by: str = ""
    strata_without: dict[str, int] = field(default_factory=dict)

    def leave_out(self, row: int, rule: str, reason: str) -> None:
        """Leave a row out of every split."""
        self.splits[row] = LEFT_OUT
        self.dropped[row] = (rule, reason)

    @property
    def n_rows(self) -> dict[str, int]:
        """Split -> lines of its file."""
        if self.copies is None:
            return dict(splitting.counts_of(self.splits))
        return {name: int(self.copies[self.splits == n].sum()) for n, name in enumerate(SPLITS)}


def settle(plan: DataPlan, spool: Spool, benchmark: Sequence[Row] = ()) -> Settled:
    """Decide about all rows of a closed spool.

    Args:
        benchmark: rows of `plan.clean.against`.

    Raises:
        DataError: splits overlap and that is to be refused, cannot be made, or are empty.
    """
    reach("data-settle")
    settled = Settled(spool.facts["split"].copy())
    if plan.clean.compares_rows:
        _clean(settled, plan, spool, benchmark)
    given = {file.split for file in plan.files}
    refuse_empty(settled, plan, [name for name in SPLITS if name in given])
    if plan.held_out.splits:
        _hold_out(settled, plan, spool)
    if plan.on_overlap is not None:
        _keep_apart(settled, spool, _equal(settled, spool), plan.on_overlap, near=False)
    if plan.on_near_overlap is not None and spool.sketches is not None:
        leaks = list(_nearly_equal(settled, plan, spool))
        _keep_apart(settled, spool, leaks, plan.on_near_overlap, near=True)
    if plan.on_passages is not None:
        leaks = list(_in_passages(settled, plan, spool))
        _keep_apart(settled, spool, leaks, plan.on_passages, near=True)
    _limit(settled, plan)
    if plan.mix is not None:
        _mix(settled, plan, spool)
    # What is said of leaks is said of the rows that stay.
    gone = settled.dropped
    settled.near = [k for k in settled.near if k.row not in gone and k.held_out not in gone]
    refuse_empty(settled, plan, SPLITS)
    return settled


def refuse_empty(settled: Settled, plan: DataPlan, wanted: tuple[str, ...] | list[str]) -> None:
    """Stop when a split has no rows.

    Raises:
        DataError: names the splits and what emptied them.
    """
    rows = settled.n_rows
    empty = [name for name in wanted if not rows[name]]
    if not empty:
        return
    required = ", ".join(f"{name} = {value!r}" for name, value in plan.require.items())
    raise DataError(
        f"no rows are left for {' and '.join(empty)}",
        why=f"rows were kept only where {required}"
        if required
        else "all were dropped, or repeat prompts of held-out rows",
        fix="change data.require" if required else "give each split rows of its own",
    )


def _clean(settled: Settled, plan: DataPlan, spool: Spool, benchmark: Sequence[Row]) -> None:
    """Drop rows that repeat another one; of two in different splits the one that is trained on."""
    np, sketches = numpy(), spool.sketches
    order = np.argsort(-settled.splits.astype(np.int64), kind="stable")
    keys = spool.facts["whole"][order]
    if sketches is not None and settled.splits.any():
        sketches = sketches[order]
    rows = Rows(
        len(order),
        lambda index: spool.row(int(order[index])),
        lambda index: spool.where(int(order[index])),
        keys,
        sketches,
        is_held_out=lambda index: bool(settled.splits[order[index]]),
    )
    for drop in drops(plan.clean, rows, benchmark=benchmark):
        settled.leave_out(int(order[drop.index]), drop.rule, drop.reason)


def _said_at(spool: Spool, places: NDArray[np.int64], index: int) -> Said:
    return said(spool.row(int(places[index])))


def _hold_out(settled: Settled, plan: DataPlan, spool: Spool) -> None:
    """Take rows out of training for the splits without files."""
    np, facts, held_out = numpy(), spool.facts, plan.held_out
    places = np.flatnonzero(settled.splits == 0)
    strata = facts["stratum"][places] if held_out.stratify else None
    if held_out.time is not None:
        seconds = facts["time"][places]
        units = Units.of(seconds, None, "the same time")
        order = np.arange(len(units.sizes))[::-1]
        keys: list[str] = []
    else:
        first, made_by = _kept_together(plan, spool, places)
        units = Units.of(first, None if strata is None else _numbered(strata), made_by)
        keys = units.keys(facts["prompt"][places])
        order = None
    settled.held_out_by = units.made_by
    free = np.ones(len(units.sizes), dtype=np.bool_)
    for name in held_out.splits:
        n_wanted = held_out.n_wanted(name, len(places))
        ranked = order if order is not None else splitting.drawn_order(keys, plan.seed, name)
        by_time = held_out.time is not None
        held = splitting.hold_out(units, ranked[free[ranked]], n_wanted, name, in_order=by_time)
        free &= ~held
        settled.splits[places[held[units.of_row]]] = SPLITS.index(name)
        if strata is not None:
            there = len(np.unique(strata[held[units.of_row]]))
            settled.strata_without[name] = len(np.unique(strata)) - there


def _numbered(values: NDArray[Any]) -> NDArray[np.int64]:
    """Each value's place among the sorted ones."""
    numbers: NDArray[np.int64] = numpy().unique(values, return_inverse=True)[1].astype("i8")
    return numbers


def _kept_together(
    plan: DataPlan, spool: Spool, places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], str]:
    """For each training row the first row of its unit, and what makes units."""
    facts, held_out = spool.facts[places], plan.held_out
    # The first 8 bytes of SHA-256: as good as a 64-bit hash.
    keys = [facts["prompt"][:, :8].copy().view("<u8")[:, 0]]
    made_by = ["equal prompts"]
    if held_out.near_duplicates and spool.sketches is not None:
        is_all = len(places) == len(spool.facts)
        sketches = spool.sketches if is_all else spool.sketches[places]
        keys.append(
            clusters(
                sketches,
                partial(_said_at, spool, places),
                plan.near_similarity,
                answers="help",
                by="chain",
            )
        )
        made_by[0] = "equal or nearly equal prompts"
    if held_out.group is not None:
        keys.append(facts["group"])
        made_by.append(f"the same {held_out.group!r}")
    if held_out.by_template:
        keys.append(facts["template"])
        made_by.append("the same template")
    return splitting.together(*keys), " or ".join(made_by)


def _equal(settled: Settled, spool: Spool) -> list[Leak]:
    """Rows whose prompt stands in a later split."""
    keys = spool.facts["prompt"][:, :8].copy().view("<u8")[:, 0]
    rows, held = splitting.overlapping(keys, settled.splits)
    pairs = zip(rows.tolist(), held.tolist(), strict=True)
    return [_leak(settled, row, other) for row, other in pairs]


def _leak(settled: Settled, row: int, other: int) -> Leak:
    return Leak(row, other, (SPLITS[settled.splits[row]], SPLITS[settled.splits[other]]))


def _nearly_equal(settled: Settled, plan: DataPlan, spool: Spool) -> Iterator[Leak]:
    """Rows whose prompt is nearly equal to one of a later split, in the order of the splits."""
    np, sketches = numpy(), spool.sketches
    if sketches is None:
        return
    held = np.zeros(0, dtype=np.int64)
    for number in reversed(range(len(SPLITS))):
        rows = np.flatnonzero(settled.splits == number)
        targets = sketches[held]
        for start in range(0, len(rows) if len(held) else 0, _BLOCK):
            block = rows[start : start + _BLOCK]
            found = matches(
                sketches[block],
                targets,
                partial(_said_at, spool, block),
                partial(_said_at, spool, held),
                plan.near_similarity,
            )
            for row, other in found:
                yield _leak(settled, int(block[row]), int(held[other]))
        held = np.concatenate([held, rows])


def _in_passages(settled: Settled, plan: DataPlan, spool: Spool) -> Iterator[Leak]:
    """Rows that hold a passage of a row of a later split and were not found by their prompts."""
    np, n_words = numpy(), plan.overlap_words
    if n_words is None:
        return
    known = {leak.row for leak in settled.near}

    def rows_of(wanted: NDArray[Any]) -> Iterator[tuple[int, Row]]:
        for index in np.flatnonzero(wanted).tolist():
            yield index, spool.row(index)

    for number in reversed(range(len(SPLITS) - 1)):
        held = (settled.splits > number) & (settled.splits != LEFT_OUT)
        passages = Passages(rows_of(held), spool.row, n_words)
        for row, other in passages.find(rows_of(settled.splits == number)):
            if row not in known:
                yield replace(_leak(settled, row, other), n_words=n_words)


def _keep_apart(
    settled: Settled, spool: Spool, leaks: list[Leak], policy: str, *, near: bool
) -> None:
    """Refuse, drop or note rows that repeat held-out prompts."""
    if not leaks:
        return
    if policy == "refuse":
        raise _overlap(spool, leaks, near=near)
    if policy == "report":
        settled.near += leaks
        return
    counts = settled.near_dropped if near else settled.overlaps
    for leak in leaks:
        rule, how = ("near-overlap", "its prompt is nearly that of")
        if leak.n_words:
            rule, how = "passage-overlap", f"{leak.n_words} words in a row as in"
        elif not near:
            rule, how = "overlap", "its prompt is that of"
        counts[leak.splits[0]] += 1
        there = f"{spool.where(leak.held_out)} ({leak.splits[1]})"
        settled.leave_out(leak.row, rule, f"{how} {there}")


def _overlap(spool: Spool, leaks: list[Leak], *, near: bool) -> DataError:
    one, more_of_them = ("row shares its prompt", "rows share their prompts")
    if leaks[0].n_words:
        one, more_of_them = ("row shares a passage", "rows share passages")
    elif near:
        one, more_of_them = ("row almost shares its prompt", "rows almost share their prompts")
    lines = [leak.described(spool) for leak in leaks[:_SHOWN]]
    more = f"\n  ... and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else ""
    return DataError(
        f"{counted(len(leaks), one, more_of_them)} with held-out rows:\n{listed(lines, limit=_SHOWN)}{more}",
        why="a test on rows that were trained on measures memory, not skill",
        fix=f"remove them, or set data.on_{'near_' if near else ''}overlap to drop_from_train"
        + (", or to report to keep them" if near else ""),
    )


def _limit(settled: Settled, plan: DataPlan) -> None:
    """Draw the rows of splits that have a limit."""
    np = numpy()
    for name, limit in plan.limits.items():
        rows = np.flatnonzero(settled.splits == SPLITS.index(name))
        kept = splitting.drawn(len(rows), limit, plan.seed, name)
        reason = f"not drawn: data.max_{name}_rows={limit}"
        for row in rows[~kept].tolist():
            settled.leave_out(row, "limit", reason)


def _mix(settled: Settled, plan: DataPlan, spool: Spool) -> None:
    """Draw each part's share of the training rows."""
    np, mix = numpy(), plan.mix
    if mix is None:
        return
    names = list(mix.weights)
    of_file = np.array([names.index(file.part) if file.part else -1 for file in plan.files])
    parts = of_file[spool.facts["file"]]
    places = np.flatnonzero(settled.splits == 0)
    there = {name: int((parts[places] == n).sum()) for n, name in enumerate(names)}
    settled.shares = shares(mix, there)
    drawn = mixed(parts, places, settled.shares, plan.seed)
    settled.copies = np.ones(len(parts), dtype=np.int64)
    settled.copies[places] = drawn[places]
    for n, (name, share) in enumerate(settled.shares.items()):
        reason = f"not drawn: {share.wanted} of {counted(share.rows, 'row')} of {name} in the mix"
        for row in places[(drawn[places] == 0) & (parts[places] == n)].tolist():
            settled.leave_out(row, "mix", reason)
