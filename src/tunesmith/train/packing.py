"""Rows of tokens laid end to end in micro batches of a fixed number of positions.

A row of n tokens takes n - 1 positions: its last token is only ever a label, and in a causal model
nothing before it can see it. Rows keep apart as segments (position numbers restart, attention and
labels never cross), so a packed batch has the loss and the gradients of its rows one by one.
Shapes stay few because every micro batch has `micro_batch_tokens` positions, padded at its end;
what is longer than that (a row, or rows that belong together) gets a micro batch of two, four, ...
times as many, and the last one, which nothing is left to fill, as many eighths as it needs.

Tokens that rows begin with alike stand once, as a segment that others go on from (see `tree.py`):
those of all rows (the template's system prompt) in every micro batch, those of some rows (the
prompt of two answers, a few-shot prefix) where such rows meet.

No torch here: arrays are NumPy, so that planning an epoch costs no import.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from tunesmith.train.filling import Filler, Groups, Row
from tunesmith.train.tree import SHARED, SegmentTree

__all__ = [
    "HEAD_ROW_MULTIPLE",
    "IGNORED",
    "LEAST_SHARED_TOKENS",
    "PADDING",
    "SHARED",
    "Floats",
    "Groups",
    "Ints",
    "MicroBatch",
    "Row",
    "Step",
    "epoch_order",
    "pack",
    "plan_epoch",
    "refer",
    "shared_prefix_tokens",
]

IGNORED = -100
"""Label of a position that is not trained."""

HEAD_ROW_MULTIPLE = 32
"""The head's rows are rounded up to a multiple of this, so that its products have few shapes."""

PADDING = -1
"""Segment id of the padded end."""

LEAST_SHARED_TOKENS = 16
"""Fewest tokens that are worth a shared segment: attention's rectangles grow in such steps."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass. All arrays are int64; `positions` below counts batch positions.

    Segments form trees: a position sees, causally, its own segment up to itself and all of the
    segments above it. A row is the chain that ends with its segment; segments that only others go
    on from are never trained. The padding at the end belongs to no row (id 0, label IGNORED,
    segment PADDING).
    """

    input_ids: Ints
    """(positions,)"""
    labels: Ints
    """(positions,) the id to predict *at* this position (already shifted), or IGNORED."""
    position_ids: Ints
    """(positions,) place inside the row, from 0."""
    segment_ids: Ints
    """(positions,) index into the four arrays below, or PADDING."""
    segment_starts: Ints
    """(segments,) first position."""
    segment_lengths: Ints
    """(segments,) positions of the segment itself."""
    segment_parents: Ints
    """(segments,) the segment that this one goes on from, or -1; it comes before this one."""
    row_indices: Ints
    """(segments,) which input row ends with this segment, or SHARED."""
    head_positions: Ints
    """(head rows,) trained positions, then 0 up to a multiple of HEAD_ROW_MULTIPLE."""
    head_labels: Ints
    """(head rows,) their labels, then IGNORED."""
    row_tokens: int
    """Tokens of all rows, prompt and answer, without padding: what a throughput figure counts."""
    trained_tokens: int
    """Labels that are not IGNORED."""
    references: Floats = field(default_factory=lambda: np.zeros(0))
    """(rows,) log-probability in nats of each row of `members` before the first step, or empty."""

    @property
    def positions(self) -> int:
        """Positions of the forward pass, padding included."""
        return int(self.input_ids.size)

    @property
    def segment_offsets(self) -> Ints:
        """(segments,) positions of the segments above each one."""
        return self.position_ids[self.segment_starts]

    @property
    def leaves(self) -> Ints:
        """(rows,) the segment that each row ends with."""
        return np.flatnonzero(self.row_indices != SHARED)

    @property
    def members(self) -> Ints:
        """(rows,) the input rows, in the order of `rows()`."""
        return self.row_indices[self.leaves]

    @property
    def row_lengths(self) -> Ints:
        """(rows,) positions of each whole row."""
        return (self.segment_offsets + self.segment_lengths)[self.leaves]

    def chain(self, segment: int) -> list[int]:
        """The segments from a root down to this one."""
        found = [segment]
        while self.segment_parents[found[-1]] >= 0:
            found.append(int(self.segment_parents[found[-1]]))
        return found[::-1]

    def rows(self) -> Iterator[tuple[Ints, Ints]]:
        """Input ids and labels of each row, whole again: what a batch without packing holds."""
        for leaf in self.leaves.tolist():
            chain = self.chain(leaf)
            ends = self.segment_starts[chain] + self.segment_lengths[chain]
            places = [slice(*ends) for ends in zip(self.segment_starts[chain], ends, strict=True)]
            yield (
                np.concatenate([self.input_ids[place] for place in places]),
                np.concatenate([self.labels[place] for place in places]),
            )


@dataclass(frozen=True)
class Step:
    """The micro batches of one optimizer step."""

    micro_batches: tuple[MicroBatch, ...]

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of the whole step: the normaliser of its loss."""
        return sum(batch.trained_tokens for batch in self.micro_batches)

    @property
    def row_tokens(self) -> int:
        """Tokens of all rows of the step, without padding."""
        return sum(batch.row_tokens for batch in self.micro_batches)

    def referring_to(self, references: Floats) -> Step:
        """The same with each micro batch's part of (input rows,) log-probabilities."""
        return Step(tuple(refer(batch, references) for batch in self.micro_batches))


def refer(batch: MicroBatch, references: Floats) -> MicroBatch:
    """The micro batch with its rows' part of (input rows,) log-probabilities."""
    return replace(batch, references=references[batch.members])


def epoch_order(row_count: int, *, seed: int, epoch: int) -> Ints:
    """Order in which an epoch visits its rows: a permutation that only (row_count, seed, epoch) decide."""
    return np.random.default_rng([seed, epoch]).permutation(row_count).astype(np.int64)


def plan_epoch(
    rows: Sequence[Row],
    *,
    batch_tokens: int,
    micro_batch_tokens: int,
    seed: int,
    epoch: int,
    groups: Groups | None = None,
) -> list[Step]:
    """Every row exactly once, in steps of at most `batch_tokens` positions (more only for one long row).

    The same arguments give the same plan on every machine. `groups`: see `pack`; an epoch visits
    them in random order.

    Raises:
        ValueError: a row is empty or its mask has another length; `batch_tokens` < `micro_batch_tokens`;
            `groups` is no partition of the rows.
    """
    if batch_tokens < micro_batch_tokens:
        raise ValueError(f"batch_tokens={batch_tokens} < micro_batch_tokens={micro_batch_tokens}")
    order = epoch_order(len(rows if groups is None else groups), seed=seed, epoch=epoch)
    prefix_tokens = shared_prefix_tokens(rows)
    batches = pack(
        rows, micro_batch_tokens, order=order.tolist(), groups=groups, prefix_tokens=prefix_tokens
    )
    steps: list[Step] = []
    waiting: list[MicroBatch] = []
    for batch in batches:
        full = sum(other.positions for other in waiting) + batch.positions > batch_tokens
        if waiting and full:
            steps.append(Step(tuple(waiting)))
            waiting = []
        waiting.append(batch)
    if waiting:
        steps.append(Step(tuple(waiting)))
    return steps


def shared_prefix_tokens(rows: Sequence[Row]) -> int:
    """How many first tokens are the same in all rows and may stand once in a micro batch.

    The token after them is not trained in any row (their last position has no label of its own),
    and each row has one more input after them.
    """
    if not rows:
        return 0
    first = rows[0][0]
    shared = len(first)
    for tokens, trained in rows:
        answer = next((place for place, flag in enumerate(trained) if flag and place), len(tokens))
        shared = min(shared, answer - 1, len(tokens) - 2)
        if shared <= 0:
            return 0
        if list(tokens[:shared]) != list(first[:shared]):
            pairs = zip(tokens[:shared], first[:shared], strict=True)
            shared = next(place for place, (one, two) in enumerate(pairs) if one != two)
    return max(shared, 0)


def pack(
    rows: Sequence[Row],
    micro_batch_tokens: int,
    *,
    order: Iterable[int] | None = None,
    groups: Groups | None = None,
    prefix_tokens: int = 0,
    least_shared_tokens: int = LEAST_SHARED_TOKENS,
) -> Iterator[MicroBatch]:
    """Micro batches that hold the groups of `order` (all as they come, when not given).

    Args:
        rows: tokens and masks.
        micro_batch_tokens: positions of a micro batch.
        order: indices of groups.
        groups: rows that share a micro batch; every row alone when not given.
        prefix_tokens: at most `shared_prefix_tokens(rows)`; that many first tokens stand once at the
            start of every micro batch, as segment 0.
        least_shared_tokens: rows of a micro batch that begin alike for this many tokens more share
            them; 0 turns that off.

    Raises:
        ValueError: a row is empty or its mask has another length; `micro_batch_tokens` < 1; more
            `prefix_tokens` than the rows share; `groups` is no partition of the rows.
    """
    if micro_batch_tokens < 1:
        raise ValueError(f"micro_batch_tokens={micro_batch_tokens} is not positive")
    _check(rows, groups)
    if prefix_tokens and prefix_tokens > shared_prefix_tokens(rows):
        raise ValueError(f"prefix_tokens={prefix_tokens}, rows share {shared_prefix_tokens(rows)}")
    filler = Filler(rows, groups, prefix_tokens, least_shared_tokens)
    for tree, capacity in filler.batches(micro_batch_tokens, order):
        yield _lay_out(tree, rows, capacity)


def _check(rows: Sequence[Row], groups: Groups | None) -> None:
    for index, (tokens, trained) in enumerate(rows):
        if len(tokens) == 0:
            raise ValueError(f"row {index} has no tokens")
        if len(tokens) != len(trained):
            raise ValueError(f"row {index} has {len(tokens)} tokens and a mask of {len(trained)}")
    if groups is None:
        return
    members = sorted(index for group in groups for index in group)
    if members != list(range(len(rows))) or not all(groups):
        raise ValueError(f"groups hold {len(members)} rows of {len(rows)}: no partition of them")


def _lay_out(tree: SegmentTree, rows: Sequence[Row], capacity: int) -> MicroBatch:
    found = list(tree.segments())
    input_ids = np.zeros(capacity, dtype=np.int64)
    labels = np.full(capacity, IGNORED, dtype=np.int64)
    position_ids = np.zeros(capacity, dtype=np.int64)
    segment_ids = np.full(capacity, PADDING, dtype=np.int64)
    lengths = np.asarray([one.end - one.start for one, _ in found], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    for index, ((one, _), start, size) in enumerate(
        zip(found, starts.tolist(), lengths.tolist(), strict=True)
    ):
        place = slice(start, start + size)
        input_ids[place] = one.inputs[one.start : one.end]
        position_ids[place] = np.arange(one.start, one.end)
        segment_ids[place] = index
        if one.row != SHARED:
            answers = _labels(rows[one.row])[one.start :]
            labels[start : start + answers.size] = answers
    head = np.flatnonzero(labels != IGNORED)
    head_rows = -(-max(head.size, 1) // HEAD_ROW_MULTIPLE) * HEAD_ROW_MULTIPLE
    head_positions = np.zeros(head_rows, dtype=np.int64)
    head_positions[: head.size] = head
    head_labels = np.full(head_rows, IGNORED, dtype=np.int64)
    head_labels[: head.size] = labels[head]
    return MicroBatch(
        input_ids=input_ids,
        labels=labels,
        position_ids=position_ids,
        segment_ids=segment_ids,
        segment_starts=starts,
        segment_lengths=lengths,
        segment_parents=np.asarray([parent for _, parent in found], dtype=np.int64),
        row_indices=np.asarray([one.row for one, _ in found], dtype=np.int64),
        head_positions=head_positions,
        head_labels=head_labels,
        row_tokens=sum(len(rows[one.row][0]) for one, _ in found if one.row != SHARED),
        trained_tokens=int(head.size),
    )


def _labels(row: Row) -> Ints:
    """(tokens - 1,) the id that follows each input, or IGNORED."""
    ids, flags = np.asarray(row[0], dtype=np.int64), np.asarray(row[1], dtype=bool)
    return np.where(flags[1:], ids[1:], IGNORED)
