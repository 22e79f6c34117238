"""Where the segments of a packed batch lie, as attention wants to know it.

A position sees its own segment up to itself and every position of its segment's ancestors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tunesmith.train.packing import Ints, MicroBatch

__all__ = ["AttentionShape", "Layout", "plan_layout"]

QUERIES_A_UNIT = 256
KEYS_A_UNIT = 64


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
    """Segments with their ancestors and heirs, and the units of work of the attention kernels.

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
    heirs_at: Ints = field(repr=False)
    heirs: Ints = field(repr=False)
    """Segments that continue one, at any depth."""
    query_units: Ints = field(repr=False)
    """(units, 3): segment, first and end query inside of it; the largest work first."""
    key_units: Ints = field(repr=False)
    """(units, 3): segment, first and end key inside of it; the largest work first."""

    @property
    def longest_row(self) -> int:
        """Positions of the longest chain, its last segment included."""
        return int((self.depths + self.lengths).max())

    def ancestors(self, segment: int) -> tuple[int, ...]:
        """The segments that come before one, root first."""
        return tuple(self.chain[self.chain_at[segment] : self.chain_at[segment + 1]].tolist())


def plan_layout(batch: MicroBatch) -> Layout:
    """Ancestors, heirs and units of the segments of one batch."""
    starts, lengths = batch.segment_starts, batch.segment_lengths
    chains: list[list[int]] = []
    heirs: list[list[int]] = [[] for _ in range(starts.size)]
    for segment, parent in enumerate(batch.segment_parents.tolist()):
        chains.append([] if parent < 0 else [*chains[parent], parent])
        for ancestor in chains[-1]:
            heirs[ancestor].append(segment)
    depths = np.asarray([lengths[chain].sum() for chain in map(_index, chains)], dtype=np.int64)
    after = [int(lengths[_index(below)].sum()) for below in heirs]

    def work_of_queries(segment: int, first: int, end: int) -> int:
        return (end - first) * (int(depths[segment]) + (first + end) // 2)

    def work_of_keys(segment: int, first: int, end: int) -> int:
        return (end - first) * (int(lengths[segment]) - first + after[segment])

    chain_at, chain = _flat(chains)
    heirs_at, heirs_flat = _flat(heirs)
    return Layout(
        positions=batch.positions,
        used=int((starts + lengths).max()),
        places=batch.position_ids,
        starts=starts,
        lengths=lengths,
        depths=depths,
        chain_at=chain_at,
        chain=chain,
        heirs_at=heirs_at,
        heirs=heirs_flat,
        query_units=_units(lengths, QUERIES_A_UNIT, work_of_queries),
        key_units=_units(lengths, KEYS_A_UNIT, work_of_keys),
    )


def _index(places: Sequence[int]) -> Ints:
    return np.asarray(places, dtype=np.int64)


def _flat(lists: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    ends = np.cumsum([0, *(len(one) for one in lists)], dtype=np.int64)
    return ends, _index([item for one in lists for item in one])


def _units(lengths: Ints, size: int, work: Callable[[int, int, int], int]) -> Ints:
    units = [
        (segment, first, min(first + size, length))
        for segment, length in enumerate(lengths.tolist())
        for first in range(0, length, size)
    ]
    # Threads take units as they come: the last ones should be small.
    units.sort(key=lambda unit: (-work(*unit), unit))
    return np.asarray(units, dtype=np.int64).reshape(-1, 3)
