"""Which rows share a micro batch: the oldest waiting ones, and near ones that fill its gap."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tunesmith.train.tree import Branch, SegmentTree, branch_of

__all__ = ["FILLING", "LEAST_POSITIONS", "Filler", "Groups", "Row", "capacity_for", "last_capacity"]

FILLING = 2
"""Which rows meet in a micro batch: raised with the code, so that no run goes on from another layout."""

LOOKAHEAD_ROWS = 64
"""How far ahead of the oldest waiting group a group may be pulled forward to fill a gap."""

LEAST_POSITIONS = 64
"""The last micro batch is not made smaller: every size is a shape of its own, and these gain little."""
PARTS = 8
"""Sizes that the last micro batch may have. Each new one costs a product kernel once, and its padding always."""

Row = tuple[Sequence[int], Sequence[bool]]
"""Token ids of one row and, for each, whether it is trained (learned as an output)."""

Groups = Sequence[Sequence[int]]
"""Row indices that stay together in one micro batch; each row is in exactly one group."""


def capacity_for(micro_batch_tokens: int, positions: int) -> int:
    """Size of the micro batch that holds so many positions: as asked, or two, four, ... times that."""
    size = micro_batch_tokens
    while size < positions:
        size *= 2
    return size


def last_capacity(micro_batch_tokens: int, positions: int) -> int:
    """Size of a micro batch for which nothing is waiting any more: as many eighths as hold its positions.

    At least LEAST_POSITIONS. A longer one is not made smaller: another epoch, where it is not the
    last, could need more memory than was rehearsed.
    """
    eighths = (-(-micro_batch_tokens * part // PARTS) for part in range(1, PARTS))
    least = max(positions, LEAST_POSITIONS)
    whole = capacity_for(micro_batch_tokens, positions)
    return next((size for size in eighths if least <= size < whole), whole)


class Filler:
    """Takes waiting groups into micro batches; arguments as for `packing.pack`."""

    def __init__(
        self,
        rows: Sequence[Row],
        groups: Groups | None,
        prefix_tokens: int,
        least_shared_tokens: int,
    ) -> None:
        self.rows = rows
        self.groups = groups
        self.least = least_shared_tokens
        prefix = rows[0][0][:prefix_tokens] if rows else []
        self.prefix = np.asarray(prefix, dtype=np.int32)
        self.branches = lru_cache(maxsize=16 * LOOKAHEAD_ROWS)(self._branches)
        self.sizes: dict[int, int] = {}

    def batches(self, size: int, order: Iterable[int] | None) -> Iterator[tuple[SegmentTree, int]]:
        """Rows of each micro batch as a tree, and its positions: `capacity_for`, `last_capacity` of the last."""
        count = len(self.rows if self.groups is None else self.groups)
        waiting = deque(range(count) if order is None else order)
        while waiting:
            tree, capacity = self._fill(waiting, size)
            yield tree, capacity if waiting else last_capacity(size, tree.positions)

    def _branches(self, group: int) -> list[Branch]:
        members = [group] if self.groups is None else self.groups[group]
        return [branch_of(row, *self.rows[row]) for row in members]

    def _tree(self, groups: Sequence[int]) -> SegmentTree:
        tree = SegmentTree(self.prefix, self.least)
        for group in groups:
            for branch in self.branches(group):
                tree.add(branch)
        return tree

    def _size(self, group: int) -> int:
        """Positions of a group that shares nothing but the prefix with others."""
        if group not in self.sizes:
            self.sizes[group] = self._tree([group]).positions - self.prefix.size
        return self.sizes[group]

    def _cost(self, group: int, tree: SegmentTree) -> int:
        """Positions that a group would add to a tree; of several rows an estimate from below."""
        first = self.branches(group)[0]
        alone = int(first.inputs.size - self.prefix.size)
        return self._size(group) - alone + tree.cost(first)

    def _least_cost(self, group: int) -> int:
        """What `_cost` is at least, whatever the tree holds: the first row shares all that it may."""
        return self._size(group) - (self.branches(group)[0].limit - int(self.prefix.size))

    def _fill(self, waiting: deque[int], capacity: int) -> tuple[SegmentTree, int]:
        """Take the oldest groups while the one after them fits too, then the best near ones for the gap.

        The oldest is always taken, so a group waits for as many micro batches as there are near ones
        before it, at most.
        """
        chosen = [waiting.popleft()]
        tree, fits = self._tree(chosen), True
        capacity = capacity_for(capacity, tree.positions)
        while fits and len(waiting) > 1:
            next_two = self._cost(waiting[0], tree) + self._cost(waiting[1], tree)
            if next_two > capacity - tree.positions:
                break
            tree, fits = self._join(tree, chosen, waiting[0], capacity)
            if fits:
                waiting.popleft()
        while (taken := len(chosen)) and waiting:
            for group in self._best(waiting, tree, capacity - tree.positions):
                if self._cost(group, tree) <= capacity - tree.positions:
                    tree, fits = self._join(tree, chosen, group, capacity)
                    if fits:
                        waiting.remove(group)
            if len(chosen) == taken:  # what joined may have made others cheaper: until none joins
                break
        return tree, capacity

    def _join(
        self, tree: SegmentTree, chosen: list[int], group: int, capacity: int
    ) -> tuple[SegmentTree, bool]:
        """The tree with a group more, or as it was when the group is larger than was estimated."""
        for branch in self.branches(group):
            tree.add(branch)
        if tree.positions > capacity:
            return self._tree(chosen), False
        chosen.append(group)
        return tree, True

    def _best(self, waiting: deque[int], tree: SegmentTree, free: int) -> list[int]:
        """The near groups that together take at most `free` positions and would take most unshared.

        So a gap is filled, and of what fits, what shares more is taken; of equal ones, the older.
        A knapsack (Kellerer, Pferschy and Pisinger 2004, section 2.3), by the costs as they are now.
        """
        places = range(min(LOOKAHEAD_ROWS, len(waiting)))
        near = [g for g in (waiting[at] for at in places) if self._least_cost(g) <= free]
        costs = [self._cost(group, tree) for group in near]
        shares = any(self._size(group) > cost for group, cost in zip(near, costs, strict=True))
        most = np.zeros(free + 1, dtype=np.int64)
        """Unshared positions of the best choice by the positions that it may take."""
        better: list[tuple[int, int, npt.NDArray[np.bool_]]] = []
        for group, cost in zip(near, costs, strict=True):
            if cost > free:
                continue
            with_it = most[: free + 1 - cost] + self._size(group)
            improves = with_it > most[cost:]
            most[cost:][improves] = with_it[improves]
            better.append((group, cost, improves))
            if most[free] == free and not shares:  # full, and no choice can be worth more
                break
        best = []
        for group, cost, improves in reversed(better):
            if free >= cost and improves[free - cost]:
                best.append(group)
                free -= cost
        return best[::-1]
