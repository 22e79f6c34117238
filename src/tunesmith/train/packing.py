"""Rows of tokens laid end to end in micro batches of a fixed number of positions.

A row of n tokens takes n - 1 positions: its last token is only ever a label, and in a causal model
nothing before it can see it. Rows keep apart as segments (position numbers restart, attention and
labels never cross), so a packed batch has the loss and the gradients of its rows one by one.
Shapes stay few because every micro batch has `micro_batch_tokens` positions, padded at its end;
only a row that is longer than that gets a micro batch of two, four, ... times as many.

Tokens that all rows begin with (the template's system prompt) stand once at the start of a micro
batch: every row's segment goes on from them. In a causal model their states are the same in each
row, and their gradient is the sum over the rows, so this too changes nothing but the work.

No torch here: arrays are NumPy, so that planning an epoch costs no import.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "HEAD_ROW_MULTIPLE",
    "IGNORED",
    "PADDING",
    "PREFIX",
    "Ints",
    "MicroBatch",
    "Row",
    "Step",
    "epoch_order",
    "pack",
    "plan_epoch",
    "shared_prefix_tokens",
]

IGNORED = -100
"""Label of a position that is not trained."""

HEAD_ROW_MULTIPLE = 32
"""The head's rows are rounded up to a multiple of this, so that its products have few shapes."""

PADDING = -1
PREFIX = -2
"""Segment ids of positions that belong to no row: the padded end, and the start that all rows share."""

LOOKAHEAD_ROWS = 64
"""How far ahead of the oldest waiting row a row may be pulled forward to fill a gap."""

Row = tuple[Sequence[int], Sequence[bool]]
"""Token ids of one row and, for each, whether it is trained (learned as an output)."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass. All arrays are int64; `positions` below counts batch positions.

    The first `prefix_tokens` positions are shared by all rows (segment PREFIX, never trained); the
    padding at the end belongs to no row (id 0, label IGNORED, segment PADDING).
    """

    input_ids: Ints
    """(positions,)"""
    labels: Ints
    """(positions,) the id to predict *at* this position (already shifted), or IGNORED."""
    position_ids: Ints
    """(positions,) place inside the row, from 0."""
    segment_ids: Ints
    """(positions,) index into the three arrays below, or PADDING, or PREFIX."""
    segment_starts: Ints
    """(segments,) first position."""
    segment_lengths: Ints
    """(segments,) positions, the shared prefix not counted."""
    row_indices: Ints
    """(segments,) which input row this is."""
    head_positions: Ints
    """(head rows,) trained positions, then 0 up to a multiple of HEAD_ROW_MULTIPLE."""
    head_labels: Ints
    """(head rows,) their labels, then IGNORED."""
    row_tokens: int
    """Tokens of all rows, prompt and answer, without padding: what a throughput figure counts."""
    trained_tokens: int
    """Labels that are not IGNORED."""
    prefix_tokens: int = 0
    """Positions at the start that every row shares."""

    @property
    def positions(self) -> int:
        """Positions of the forward pass, padding included."""
        return int(self.input_ids.size)

    def rows(self) -> Iterator[tuple[Ints, Ints]]:
        """Input ids and labels of each row, its prefix included: what a batch without packing holds."""
        head = slice(0, self.prefix_tokens)
        for start, size in zip(self.segment_starts, self.segment_lengths, strict=True):
            place = slice(int(start), int(start + size))
            yield (
                np.concatenate([self.input_ids[head], self.input_ids[place]]),
                np.concatenate([self.labels[head], self.labels[place]]),
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


def epoch_order(row_count: int, *, seed: int, epoch: int) -> Ints:
    """Order in which an epoch visits its rows: a permutation that only (row_count, seed, epoch) decide."""
    return np.random.default_rng([seed, epoch]).permutation(row_count).astype(np.int64)


def plan_epoch(
    rows: Sequence[Row], *, batch_tokens: int, micro_batch_tokens: int, seed: int, epoch: int
) -> list[Step]:
    """Every row exactly once, in steps of at most `batch_tokens` positions (more only for one long row).

    The same arguments give the same plan on every machine.

    Raises:
        ValueError: a row is empty or its mask has another length; `batch_tokens` < `micro_batch_tokens`.
    """
    if batch_tokens < micro_batch_tokens:
        raise ValueError(f"batch_tokens={batch_tokens} < micro_batch_tokens={micro_batch_tokens}")
    order = epoch_order(len(rows), seed=seed, epoch=epoch)
    steps: list[Step] = []
    waiting: list[MicroBatch] = []
    prefix_tokens = shared_prefix_tokens(rows)
    batches = pack(rows, micro_batch_tokens, order=order.tolist(), prefix_tokens=prefix_tokens)
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
    prefix_tokens: int = 0,
) -> Iterator[MicroBatch]:
    """Micro batches that hold the rows of `order` (all rows as they come, when not given).

    `prefix_tokens` is at most `shared_prefix_tokens(rows)`; 0 keeps every row whole.

    Raises:
        ValueError: a row is empty or its mask has another length; `micro_batch_tokens` < 1; more
            `prefix_tokens` than the rows share.
    """
    if micro_batch_tokens < 1:
        raise ValueError(f"micro_batch_tokens={micro_batch_tokens} is not positive")
    _check(rows)
    if prefix_tokens and prefix_tokens > shared_prefix_tokens(rows):
        raise ValueError(f"prefix_tokens={prefix_tokens}, rows share {shared_prefix_tokens(rows)}")
    waiting = deque(range(len(rows)) if order is None else order)
    lengths = [max(len(tokens) - 1, 1) - prefix_tokens for tokens, _ in rows]
    while waiting:
        chosen, capacity = _fill(waiting, lengths, (micro_batch_tokens, prefix_tokens))
        yield _lay_out([(index, rows[index]) for index in chosen], capacity, prefix_tokens)


def _check(rows: Sequence[Row]) -> None:
    for index, (tokens, trained) in enumerate(rows):
        if len(tokens) == 0:
            raise ValueError(f"row {index} has no tokens")
        if len(tokens) != len(trained):
            raise ValueError(f"row {index} has {len(tokens)} tokens and a mask of {len(trained)}")


def _fill(
    waiting: deque[int], lengths: Sequence[int], room: tuple[int, int]
) -> tuple[list[int], int]:
    """Take the oldest rows while they fit, then the largest near ones that fit the gap.

    `room` is the capacity and what the shared prefix takes of it. Returns rows and capacity.
    """
    capacity, taken = room
    first = waiting.popleft()
    while capacity < lengths[first] + taken:
        capacity *= 2
    chosen, free = [first], capacity - taken - lengths[first]
    while waiting and lengths[waiting[0]] <= free:
        chosen.append(waiting.popleft())
        free -= lengths[chosen[-1]]
    while True:
        near = range(min(LOOKAHEAD_ROWS, len(waiting)))
        fitting = [place for place in near if lengths[waiting[place]] <= free]
        if not fitting:
            return chosen, capacity
        best = max(fitting, key=lambda place: (lengths[waiting[place]], -place))
        chosen.append(waiting[best])
        free -= lengths[waiting[best]]
        del waiting[best]


def _lay_out(chosen: Sequence[tuple[int, Row]], capacity: int, prefix_tokens: int) -> MicroBatch:
    input_ids = np.zeros(capacity, dtype=np.int64)
    labels = np.full(capacity, IGNORED, dtype=np.int64)
    position_ids = np.zeros(capacity, dtype=np.int64)
    segment_ids = np.full(capacity, PADDING, dtype=np.int64)
    input_ids[:prefix_tokens] = chosen[0][1][0][:prefix_tokens]
    position_ids[:prefix_tokens] = np.arange(prefix_tokens)
    segment_ids[:prefix_tokens] = PREFIX
    starts, sizes, at = [], [], prefix_tokens
    for segment, (_, (tokens, trained)) in enumerate(chosen):
        ids, flags = np.asarray(tokens, dtype=np.int64), np.asarray(trained, dtype=bool)
        last = max(ids.size - 1, 1)
        place = slice(at, at + last - prefix_tokens)
        input_ids[place] = ids[prefix_tokens:last]
        answers = np.where(flags[1:], ids[1:], IGNORED)[prefix_tokens:]
        labels[at : at + answers.size] = answers
        position_ids[place] = np.arange(prefix_tokens, last)
        segment_ids[place] = segment
        starts.append(at)
        sizes.append(last - prefix_tokens)
        at = place.stop
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
        segment_starts=np.asarray(starts, dtype=np.int64),
        segment_lengths=np.asarray(sizes, dtype=np.int64),
        row_indices=np.asarray([index for index, _ in chosen], dtype=np.int64),
        head_positions=head_positions,
        head_labels=head_labels,
        row_tokens=sum(len(tokens) for _, (tokens, _) in chosen),
        trained_tokens=int(head.size),
        prefix_tokens=prefix_tokens,
    )
