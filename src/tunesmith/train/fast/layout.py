"""Where the segments of a packed batch lie, as attention wants to know it.

A position sees its own segment up to itself and every position of its segment's ancestors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tunesmith.train.packing import Ints, MicroBatch

__all__ = ["AttentionShape", "Layout", "plan_layout"]

QUERIES_A_UNIT = 128
"""Most queries of one unit of work of the attention kernels."""


@dataclass(frozen=True)
class AttentionShape:
    """Heads of an attention layer. Query head h reads key head h // (heads // key_heads)."""

    heads: int
    key_heads: int
    head_dim: int
    scale: float

    @property
    def group(self) -> int:
        """Query heads a key head."""
        return self.heads // self.key_heads

    @property
    def slots(self) -> int:
        """Heads of q, k and v together: columns of the joint projection over head_dim."""
        return self.heads + 2 * self.key_heads


@dataclass(frozen=True)
class Layout:
    """Segments with their ancestors, and the units of work of the attention kernels.

    Lists of lists are flat: those of segment s are `chain[chain_at[s] : chain_at[s + 1]]`.
    """

    positions: int
    used: int
    """Positions before the padded end."""
    places: Ints
    """(positions,) place inside the row, for rotary embeddings."""
    starts: Ints
    lengths: Ints
    depths: Ints
    """(segments,) positions of a segment's ancestors together."""
    chain_at: Ints = field(repr=False)
    chain: Ints = field(repr=False)
    """Ancestors, root first."""
    units: Ints = field(repr=False)
    """(units, 3): segment, first and end query inside of it; the largest work first."""
    shared_at: Ints = field(repr=False)
    """(segments,) Where a segment whose keys several units read begins in their list of positions; -1: one reads it."""
    shared_rows: int
    """Positions of those segments together."""

    @property
    def longest_row(self) -> int:
        """Positions of the longest chain, its last segment included."""
        return int((self.depths + self.lengths).max())

    def ancestors(self, segment: int) -> tuple[int, ...]:
        """The segments that come before one, root first."""
        return tuple(self.chain[self.chain_at[segment] : self.chain_at[segment + 1]].tolist())


def plan_layout(batch: MicroBatch) -> Layout:
    """Ancestors and units of the segments of one batch."""
    starts, lengths = batch.segment_starts, batch.segment_lengths
    chains: list[list[int]] = []
    for parent in batch.segment_parents.tolist():
        chains.append([] if parent < 0 else [*chains[parent], parent])
    depths = np.asarray([lengths[_index(chain)].sum() for chain in chains], dtype=np.int64)
    units = _units(lengths, depths)
    readers = np.bincount(units[:, 0], minlength=starts.size)
    shared = (readers > 1) | np.isin(np.arange(starts.size), batch.segment_parents)
    before = np.cumsum(np.where(shared, lengths, 0))
    return Layout(
        positions=batch.positions,
        used=int((starts + lengths).max()),
        places=batch.position_ids,
        starts=starts,
        lengths=lengths,
        depths=depths,
        chain_at=np.cumsum([0, *map(len, chains)], dtype=np.int64),
        chain=_index([ancestor for chain in chains for ancestor in chain]),
        units=units,
        shared_at=np.where(shared, before - lengths, -1),
        shared_rows=int(before[-1]),
    )


def _index(places: Sequence[int]) -> Ints:
    return np.asarray(places, dtype=np.int64)


def _units(lengths: Ints, depths: Ints) -> Ints:
    """Each segment in as few parts as QUERIES_A_UNIT allows, of equal size."""
    units = []
    for segment, length in enumerate(lengths.tolist()):
        parts = -(-length // QUERIES_A_UNIT)
        ends = [length * part // parts for part in range(parts + 1)]
        units += [(segment, first, end) for first, end in itertools.pairwise(ends)]

    def work(segment: int, first: int, end: int) -> int:
        return (end - first) * (int(depths[segment]) + (first + end) // 2)

    # Threads take units as they come: the last ones should be small.
    units.sort(key=lambda unit: (-work(*unit), unit))
    return np.asarray(units, dtype=np.int64).reshape(-1, 3)
