"""When two query results are the same: as multisets of rows, floats within a tolerance."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence

__all__ = ["same_rows"]

RELATIVE_TOLERANCE = 1e-9

Cell = int | float | str | bytes | None
Row = tuple[Cell, ...]
Shape = tuple[object, ...]
_NUMBER = object()
"""Stands for any number in a row's shape."""


def same_rows(left: Sequence[Row], right: Sequence[Row]) -> bool:
    """Whether two results hold the same rows, each as often, in any order.

    Columns are compared as selected. Two numbers are equal when both are integers and the same, or
    when they differ by at most `RELATIVE_TOLERANCE` of the larger; 1 equals 1.0. NULL equals NULL.
    Text, blobs and numbers are never equal to each other.
    """
    if len(left) != len(right):
        return False
    exact_left, exact_right = Counter(left), Counter(right)
    rest_left = _groups(list((exact_left - exact_right).elements()))
    rest_right = _groups(list((exact_right - exact_left).elements()))
    if rest_left.keys() != rest_right.keys():
        return False
    return all(_can_pair(rows, rest_right[shape]) for shape, rows in rest_left.items())


def _groups(rows: list[Row]) -> dict[Shape, list[tuple[float, ...]]]:
    """Rows by all that must be equal exactly; of each row the numbers stay to be compared."""
    groups: dict[Shape, list[tuple[float, ...]]] = defaultdict(list)
    for row in rows:
        shape = tuple(_NUMBER if isinstance(cell, (int, float)) else cell for cell in row)
        groups[shape].append(tuple(cell for cell in row if isinstance(cell, (int, float))))
    return groups


def _close(left: float, right: float) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    return math.isclose(left, right, rel_tol=RELATIVE_TOLERANCE, abs_tol=0.0)


def _can_pair(left: list[tuple[float, ...]], right: list[tuple[float, ...]]) -> bool:
    """Whether each row of `left` can have a close row of `right` of its own.

    Closeness is not transitive, so comparing sorted rows would not do: this is a perfect matching,
    found by augmenting paths (Kuhn 1955). Candidates come from a search on the first number.
    """
    if len(left) != len(right):
        return False
    if not left[0]:
        return True
    right = sorted(right)
    firsts = [row[0] for row in right]
    candidates = [_candidates(row, right, firsts) for row in left]
    owner: dict[int, int] = {}
    held: dict[int, int] = {}
    return all(_augment(start, candidates, owner, held) for start in range(len(left)))


def _candidates(
    row: tuple[float, ...], right: list[tuple[float, ...]], firsts: list[float]
) -> list[int]:
    margin = 2 * RELATIVE_TOLERANCE * abs(row[0]) if math.isfinite(row[0]) else 0
    first = bisect_left(firsts, row[0] - margin)
    last = bisect_right(firsts, row[0] + margin)
    return [
        index
        for index in range(first, last)
        if all(_close(a, b) for a, b in zip(row, right[index], strict=True))
    ]


def _augment(
    start: int, candidates: list[list[int]], owner: dict[int, int], held: dict[int, int]
) -> bool:
    """Give row `start` a partner, moving earlier rows to other partners where needed.

    `owner` is partner -> row, `held` row -> partner. Breadth first, so that no chain is too deep.
    """
    reached_from: dict[int, int] = {}
    queue = [start]
    for row in queue:
        for partner in candidates[row]:
            if partner in reached_from:
                continue
            reached_from[partner] = row
            if partner not in owner:
                _assign_back_from(partner, reached_from, owner, held)
                return True
            queue.append(owner[partner])
    return False


def _assign_back_from(
    free: int, reached_from: dict[int, int], owner: dict[int, int], held: dict[int, int]
) -> None:
    """Along the path that reached `free`, each row takes the partner it reached."""
    partner: int | None = free
    while partner is not None:
        row = reached_from[partner]
        given_up = held.get(row)
        owner[partner], held[row] = row, partner
        partner = given_up
