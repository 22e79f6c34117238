"""Which stored state belongs to which position of which row: positions with equal pasts share one.

In a causal model the state of a position depends on the row's tokens up to it and on nothing else,
so rows that begin alike have the same states there. Rows are put in lexicographic order: what a row
shares with any other it then shares with its neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tunesmith.train.packing import Ints, MicroBatch

if TYPE_CHECKING:
    import torch

__all__ = ["RowPlaces", "Shape", "is_packed", "places_of", "real_positions", "row_places"]


@dataclass(frozen=True)
class Shape:
    """How many states there are, how wide they are, and their number format."""

    count: int
    width: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return self.count * self.width * self.dtype.itemsize


@dataclass(frozen=True)
class RowPlaces:
    """Places of all rows, one row after the other."""

    places: Ints
    """(positions of all rows,) index of each position's state."""
    starts: Ints
    """(rows + 1,) where each row begins in `places`."""
    order: Ints
    """(rows,) rows in lexicographic order; new states appear in this order."""
    count: int
    """Different states."""

    def of(self, row: int) -> Ints:
        """(positions of the row,) indices of its states."""
        return self.places[self.starts[row] : self.starts[row + 1]]


def row_places(rows: Sequence[Sequence[int]]) -> RowPlaces:
    """Places for rows of token ids; a row of n tokens has n - 1 positions, at least one."""
    inputs = [np.asarray(row[: max(len(row) - 1, 1)], dtype=np.int64) for row in rows]
    starts = np.cumsum([0] + [row.size for row in inputs])
    # Big-endian, so that bytes compare as the numbers do.
    order = sorted(range(len(inputs)), key=lambda index: inputs[index].astype(">i8").tobytes())
    places = np.zeros(int(starts[-1]), dtype=np.int64)
    count, before, before_places = 0, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for index in order:
        row, mine = inputs[index], places[starts[index] : starts[index + 1]]
        shared = _common(before, row)
        mine[:shared] = before_places[:shared]
        mine[shared:] = np.arange(count, count + row.size - shared)
        count += row.size - shared
        before, before_places = row, mine
    return RowPlaces(places, starts, np.asarray(order, dtype=np.int64), count)


def _common(one: npt.NDArray[Any], two: npt.NDArray[Any]) -> int:
    size = min(one.size, two.size)
    differs = np.flatnonzero(one[:size] != two[:size])
    return int(differs[0]) if differs.size else size


def is_packed(batch: MicroBatch, layout: tuple[int, ...]) -> bool:
    """Whether hidden states (*layout, hidden) are the packed batch's, not a rectangle of padded rows.

    Raises:
        ValueError: they are neither.
    """
    if layout in ((batch.positions,), (1, batch.positions)):
        return True
    if len(layout) == 2 and layout[0] == batch.leaves.size and layout[1] >= batch.row_lengths.max():
        return False
    raise ValueError(f"{layout} is not the layout of {batch.positions} positions")


def places_of(
    batch: MicroBatch, layout: tuple[int, ...], rows: RowPlaces, first_row: int = 0
) -> Ints:
    """(product of `layout`,) places of a batch's positions; padding, which nothing reads, has place 0.

    The batch's row 0 is row `first_row` of `rows`.

    Raises:
        ValueError: a row of the batch has another length than the row of that number.
    """
    found = np.zeros(layout, dtype=np.int64)
    own = [rows.of(first_row + row) for row in batch.members.tolist()]
    if [mine.size for mine in own] != batch.row_lengths.tolist():
        raise ValueError(f"the batch's rows are not the rows from {first_row} on")
    if not is_packed(batch, layout):
        for line, mine in zip(found, own, strict=True):
            line[: mine.size] = mine
        return found.ravel()
    found = found.ravel()
    for leaf, mine in zip(batch.leaves.tolist(), own, strict=True):
        for segment in batch.chain(leaf):
            start = int(batch.segment_starts[segment])
            here = slice(start, start + int(batch.segment_lengths[segment]))
            found[here] = mine[batch.position_ids[here]]
    return found


def real_positions(batch: MicroBatch, layout: tuple[int, ...]) -> Ints:
    """Flat positions that belong to a row."""
    if is_packed(batch, layout):
        return np.flatnonzero(batch.segment_ids >= 0)
    return np.flatnonzero((np.arange(layout[1]) < batch.row_lengths[:, None]).ravel())
