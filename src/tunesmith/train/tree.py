"""A tree of segments: what rows of one micro batch have in common stands once.

In a causal model the states of tokens that several rows begin with are the same in each of them,
and their gradient is the sum over the rows; so a segment that several rows go on from changes
nothing but the work. The tree is a radix tree (Morrison 1968, doi 10.1145/321479.321481) that rows
are added to one by one: a new row leaves the segments that are there where it first differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["SHARED", "Branch", "Segment", "SegmentTree", "branch_of"]

SHARED = -1
"""The row of a segment that only others go on from."""

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Branch:
    """A row as the tree sees it."""

    row: int
    """Which input row this is."""
    inputs: Tokens
    """(n,) its inputs, at least one."""
    limit: int
    """How many first inputs may be shared: none is trained, none later than the last but one."""


@dataclass(eq=False)
class Segment:
    """Inputs `start` to `end` of a row; `row` is SHARED when other segments go on from here."""

    inputs: Tokens
    start: int
    end: int
    limit: int
    row: int = SHARED
    children: list[Segment] = field(default_factory=list)
    by_start: dict[bytes, Segment] = field(default_factory=dict)
    """Children that may still share, by their first tokens (as many as are worth sharing)."""


class SegmentTree:
    """Rows of one micro batch under `prefix`, the tokens that all rows of the data set begin with.

    `least_tokens` is the fewest tokens that are worth a segment of their own; 0 shares nothing but
    the prefix.
    """

    def __init__(self, prefix: Tokens, least_tokens: int) -> None:
        self.root = Segment(prefix, 0, prefix.size, prefix.size)
        self.least_tokens = least_tokens
        self.positions = int(prefix.size)
        """Positions of all segments together."""

    def cost(self, branch: Branch) -> int:
        """Positions that `add` would take for this row."""
        parent, _, cut = self._place(branch)
        return int(branch.inputs.size) - max(parent.end, cut)

    def add(self, branch: Branch) -> None:
        """Put a row into the tree; it has the tokens of the prefix at its start."""
        parent, split, cut = self._place(branch)
        if split is not None:
            parent = self._split(parent, split, cut)
        leaf = Segment(branch.inputs, parent.end, branch.inputs.size, branch.limit, branch.row)
        self._attach(parent, leaf)
        self.positions += leaf.end - leaf.start

    def segments(self) -> Iterator[tuple[Segment, int]]:
        """Segments and the place of each one's parent, or -1; parents come before children."""
        waiting = [(self.root, -1)]
        count = 0
        while waiting:
            segment, parent = waiting.pop()
            if segment.end == 0:  # no prefix: what hangs on it are roots
                place = -1
            else:
                yield segment, parent
                place, count = count, count + 1
            waiting += [(child, place) for child in reversed(segment.children)]

    def _place(self, branch: Branch) -> tuple[Segment, Segment | None, int]:
        """Where a row leaves the tree: below a segment, or `cut` inputs into one of its children."""
        parent, least = self.root, self.least_tokens
        while least and branch.limit - parent.end >= least:
            child = parent.by_start.get(self._key(branch.inputs, parent.end))
            if child is None:
                break
            common = parent.end + _common(
                child.inputs[parent.end : child.limit], branch.inputs[parent.end : branch.limit]
            )
            if child.row == SHARED and common == child.end:
                parent = child
                continue
            # The rest of a shared segment must stay long enough to be found by its first tokens.
            cut = common if child.row != SHARED else min(common, child.end - least)
            return (parent, child, cut) if cut - parent.end >= least else (parent, None, 0)
        return parent, None, 0

    def _split(self, parent: Segment, child: Segment, cut: int) -> Segment:
        upper = Segment(child.inputs, child.start, cut, cut)
        parent.children[parent.children.index(child)] = upper
        parent.by_start[self._key(child.inputs, child.start)] = upper
        child.start = cut
        self._attach(upper, child)
        return upper

    def _attach(self, parent: Segment, child: Segment) -> None:
        parent.children.append(child)
        if self.least_tokens and child.limit - child.start >= self.least_tokens:
            parent.by_start.setdefault(self._key(child.inputs, child.start), child)

    def _key(self, inputs: Tokens, at: int) -> bytes:
        return inputs[at : at + self.least_tokens].tobytes()


def _common(one: Tokens, two: Tokens) -> int:
    """How many first tokens are the same."""
    size = min(one.size, two.size)
    differing = np.flatnonzero(one[:size] != two[:size])
    return int(differing[0]) if differing.size else size


def branch_of(row: int, tokens: Sequence[int], trained: Sequence[bool]) -> Branch:
    """A row without its last token, which is only ever a label."""
    flags = np.asarray(trained, dtype=bool)[1:]
    first = int(flags.argmax()) if flags.any() else len(tokens) - 1
    inputs = np.asarray(tokens[: max(len(tokens) - 1, 1)], dtype=np.int32)
    return Branch(row, inputs, max(min(first, inputs.size - 1), 0))
