"""Which rows share a micro batch: the oldest waiting ones, and near ones that fill its gap."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from tunesmith.train.tree import Branch, SegmentTree, branch_of

__all__ = ["LOOKAHEAD_ROWS", "Filler", "Groups", "Row", "capacity_for"]

LOOKAHEAD_ROWS = 64
"""How far ahead of the oldest waiting group a group may be pulled forward to fill a gap."""

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
        """Rows of each micro batch as a tree, and its positions: `size`, or two, four, ... times that."""
        count = len(self.rows if self.groups is None else self.groups)
        waiting = deque(range(count) if order is None else order)
        while waiting:
            yield self._fill(waiting, size)

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

    def _fill(self, waiting: deque[int], capacity: int) -> tuple[SegmentTree, int]:
        """Take the oldest groups while they fit, then the largest near ones that fit the gap."""
        chosen = [waiting.popleft()]
        tree, fits = self._tree(chosen), True
        capacity = capacity_for(capacity, tree.positions)
        while fits and waiting and self._cost(waiting[0], tree) <= capacity - tree.positions:
            tree, fits = self._join(tree, chosen, waiting[0], capacity)
            if fits:
                waiting.popleft()
        costs = self._near(waiting, tree)
        while True:
            group = self._best(costs, capacity - tree.positions)
            if group is None:
                return tree, capacity
            tree, fits = self._join(tree, chosen, group, capacity)
            if not fits:
                return tree, capacity
            del costs[group]
            waiting.remove(group)

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

    def _near(self, waiting: deque[int], tree: SegmentTree) -> dict[int, int]:
        """Cost of each near group now. It falls as the tree grows, or rises by a few tokens: `_join` sees."""
        near = [waiting[place] for place in range(min(LOOKAHEAD_ROWS, len(waiting)))]
        return {group: self._cost(group, tree) for group in near}

    def _best(self, costs: Mapping[int, int], free: int) -> int | None:
        """The near group that shares most, of these the largest, the oldest; none may fit."""
        fitting = [group for group, cost in costs.items() if cost <= free]
        saved = {group: self._size(group) - costs[group] for group in fitting}
        return max(fitting, key=lambda group: (saved[group], costs[group]), default=None)
