"""Well-known algorithms on lists, matrices and graphs, written for this set; its builder runs every example."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence


def binary_search(items: Sequence[int], wanted: int) -> int:
    """Return the index of `wanted` in the sorted `items`, or -1 if it is not there.

    >>> binary_search([2, 5, 8, 12, 16], 12)
    3
    """
    low, high = 0, len(items) - 1
    while low <= high:
        middle = (low + high) // 2
        if items[middle] == wanted:
            return middle
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1


def insertion_sort(items: Sequence[int]) -> list[int]:
    """Return the items in ascending order, by insertion sort; the input is not changed.

    >>> insertion_sort([5, 2, 9, 1])
    [1, 2, 5, 9]
    """
    result = list(items)
    for index in range(1, len(result)):
        value, place = result[index], index
        while place > 0 and result[place - 1] > value:
            result[place] = result[place - 1]
            place -= 1
        result[place] = value
    return result


def merge_sorted(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Merge two sorted sequences into one sorted list.

    >>> merge_sorted([1, 4, 6], [2, 3, 9])
    [1, 2, 3, 4, 6, 9]
    """
    merged = []
    i = j = 0
    while i < len(first) and j < len(second):
        if first[i] <= second[j]:
            merged.append(first[i])
            i += 1
        else:
            merged.append(second[j])
            j += 1
    return merged + list(first[i:]) + list(second[j:])


def quick_sort(items: Sequence[int]) -> list[int]:
    """Return the items in ascending order, by quicksort with the first item as pivot.

    >>> quick_sort([3, 7, 1, 3, 2])
    [1, 2, 3, 3, 7]
    """
    if len(items) <= 1:
        return list(items)
    pivot, *rest = items
    smaller = [item for item in rest if item < pivot]
    others = [item for item in rest if item >= pivot]
    return [*quick_sort(smaller), pivot, *quick_sort(others)]


def shortest_path(graph: Mapping[str, Sequence[str]], start: str, goal: str) -> list[str]:
    """Return a path with the fewest edges from `start` to `goal`, by breadth-first search; empty if there is none.

    >>> shortest_path({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, "a", "d")
    ['a', 'b', 'd']
    """
    before: dict[str, str] = {start: start}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if node == goal:
            path = [goal]
            while path[-1] != start:
                path.append(before[path[-1]])
            return path[::-1]
        for neighbour in graph[node]:
            if neighbour not in before:
                before[neighbour] = node
                queue.append(neighbour)
    return []


def dijkstra(graph: Mapping[str, Mapping[str, int]], start: str) -> dict[str, int]:
    """Return the length of the shortest way from `start` to every node that can be reached, by Dijkstra's algorithm.

    >>> dijkstra({"a": {"b": 4, "c": 1}, "b": {}, "c": {"b": 2}}, "a")
    {'a': 0, 'c': 1, 'b': 3}
    """
    distances: dict[str, int] = {}
    queue = [(0, start)]
    while queue:
        distance, node = heapq.heappop(queue)
        if node in distances:
            continue
        distances[node] = distance
        for neighbour, length in graph[node].items():
            if neighbour not in distances:
                heapq.heappush(queue, (distance + length, neighbour))
    return distances


def topological_order(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Order the keys of `needs` so that each comes after all that it needs.

    Raises:
        ValueError: some keys need each other in a circle.

    >>> topological_order({"roof": ["walls"], "walls": ["floor"], "floor": []})
    ['floor', 'walls', 'roof']
    """
    left = {name: set(others) for name, others in needs.items()}
    order: list[str] = []
    while left:
        ready = [name for name, others in left.items() if not others]
        if not ready:
            raise ValueError(f"a circle among {sorted(left)}")
        order += ready
        left = {name: others - set(ready) for name, others in left.items() if name not in ready}
    return order


def matrix_product(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Multiply two matrices given as lists of rows.

    >>> matrix_product([[1, 2], [3, 4]], [[0, 1], [1, 0]])
    [[2, 1], [4, 3]]
    """
    columns = list(zip(*second, strict=True))
    product = []
    for row in first:
        product.append([sum(a * b for a, b in zip(row, column, strict=True)) for column in columns])
    return product


def transposed(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Turn the rows of a matrix into columns.

    >>> transposed([[1, 2, 3], [4, 5, 6]])
    [[1, 4], [2, 5], [3, 6]]
    """
    n_columns = len(rows[0]) if rows else 0
    return [[row[column] for row in rows] for column in range(n_columns)]


def largest_run_sum(numbers: Sequence[int]) -> int:
    """Return the largest sum of neighbouring numbers, by Kadane's algorithm; at least one number is taken.

    >>> largest_run_sum([-2, 1, -3, 4, -1, 2, 1, -5, 4])
    6
    """
    best = current = numbers[0]
    for number in numbers[1:]:
        current = max(number, current + number)
        best = max(best, current)
    return best


def two_with_sum(numbers: Sequence[int], total: int) -> tuple[int, int] | None:
    """Return the indexes of two numbers that add up to `total`, or None.

    >>> two_with_sum([4, 9, 1, 7], 10)
    (1, 2)
    """
    seen: dict[int, int] = {}
    for index, number in enumerate(numbers):
        if total - number in seen:
            return seen[total - number], index
        seen[number] = index
    return None


def majority_item(items: Sequence[int]) -> int | None:
    """Return the item that makes up more than half of the items, by the vote of Boyer and Moore, or None.

    >>> majority_item([3, 1, 3, 3, 2])
    3
    """
    candidate, votes = None, 0
    for item in items:
        if votes == 0:
            candidate = item
        votes += 1 if item == candidate else -1
    is_majority = sum(item == candidate for item in items) * 2 > len(items)
    return candidate if is_majority else None


def permutations(items: Sequence[Hashable]) -> list[list[Hashable]]:
    """Return all orders of the items, in the order of their places.

    >>> permutations([1, 2, 3])[:3]
    [[1, 2, 3], [1, 3, 2], [2, 1, 3]]
    """
    if not items:
        return [[]]
    found = []
    for index, item in enumerate(items):
        rest = [*items[:index], *items[index + 1 :]]
        found += [[item, *order] for order in permutations(rest)]
    return found


def subsets(items: Sequence[int]) -> list[list[int]]:
    """Return all subsets of the items, the empty one first.

    >>> subsets([1, 2])
    [[], [1], [2], [1, 2]]
    """
    found: list[list[int]] = [[]]
    for item in items:
        found += [[*subset, item] for subset in found]
    return found


def flattened(items: Sequence[object]) -> list[object]:
    """Return the items of a list and of all lists inside it as one flat list.

    >>> flattened([1, [2, [3, 4]], 5])
    [1, 2, 3, 4, 5]
    """
    flat: list[object] = []
    for item in items:
        flat += flattened(item) if isinstance(item, list) else [item]
    return flat


def in_chunks(items: Sequence[int], size: int) -> list[list[int]]:
    """Cut a sequence into lists of `size` items; the last one may be shorter.

    >>> in_chunks([1, 2, 3, 4, 5], 2)
    [[1, 2], [3, 4], [5]]
    """
    chunks = []
    for start in range(0, len(items), size):
        chunks.append(list(items[start : start + size]))
    return chunks


def moving_average(numbers: Sequence[float], width: int) -> list[float]:
    """Return the average of every `width` neighbouring numbers.

    >>> moving_average([1, 2, 6, 3], 2)
    [1.5, 4.0, 4.5]
    """
    averages = []
    for start in range(len(numbers) - width + 1):
        averages.append(sum(numbers[start : start + width]) / width)
    return averages


def merged_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges that share a number, and return them in ascending order.

    >>> merged_ranges([(5, 8), (1, 3), (2, 4)])
    [(1, 4), (5, 8)]
    """
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def spiral(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return the numbers of a matrix in a spiral, clockwise from the upper left corner.

    >>> spiral([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    [1, 2, 3, 6, 9, 8, 7, 4, 5]
    """
    left = [list(row) for row in rows]
    found: list[int] = []
    while left:
        found += left.pop(0)
        left = [list(column) for column in zip(*left, strict=True)][::-1]
    return found


def lru_hits(requests: Sequence[str], size: int) -> int:
    """Count how many requests a cache of `size` entries answers that drops what was used least recently.

    >>> lru_hits(["a", "b", "a", "c", "b"], 2)
    1
    """
    cache: list[str] = []
    hits = 0
    for request in requests:
        if request in cache:
            hits += 1
            cache.remove(request)
        cache.append(request)
        del cache[: max(0, len(cache) - size)]
    return hits


def life_step(alive: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the living cells of the next generation of Conway's Game of Life.

    >>> sorted(life_step({(0, 0), (1, 0), (2, 0)}))
    [(1, -1), (1, 0), (1, 1)]
    """
    counts: Counter[tuple[int, int]] = Counter()
    for x, y in alive:
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                if dx or dy:
                    counts[x + dx, y + dy] += 1
    return {cell for cell, n in counts.items() if n == 3 or (n == 2 and cell in alive)}
