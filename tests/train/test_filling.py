"""Micro batches are filled to the brim, by few sizes, in about the order that was drawn."""

from __future__ import annotations

import cProfile
import itertools
import pstats
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train.filling import (
    LEAST_POSITIONS,
    Filler,
    Groups,
    Row,
    capacity_for,
    last_capacity,
)
from tunesmith.train.packing import MicroBatch, epoch_order, pack, shared_prefix_tokens

MICRO = st.sampled_from([96, 128, 200, 256, 500])


def row(start: list[int], body: int, answer: int, word: int) -> Row:
    """Tokens that begin with `start` and go on in their own way, the last of them trained."""
    tokens = start + [1_000 + word * 7 + place for place in range(body + answer)]
    return tokens, [False] * (len(tokens) - answer) + [True] * answer


@st.composite
def grouped_rows(draw: st.DrawFn) -> tuple[list[Row], list[list[int]]]:
    """Rows of which some begin alike, some are longer than a micro batch, in groups of one to three."""
    shapes = st.tuples(
        st.sampled_from([0, 0, 5, 20, 60]),
        st.one_of(st.integers(1, 90), st.integers(1, 400)),
        st.integers(1, 60),
        st.sampled_from([3, 4]),
    )
    drawn = draw(st.lists(shapes, min_size=1, max_size=60))
    rows = [
        row([word] * shared, body, answer, place)
        for place, (shared, body, answer, word) in enumerate(drawn)
    ]
    groups, left = [], list(range(len(rows)))
    while left:
        size = draw(st.sampled_from([1, 1, 1, 2, 3]))
        groups.append(left[:size])
        left = left[size:]
    return rows, groups


def packed(rows: list[Row], groups: Groups, micro: int, seed: int) -> list[MicroBatch]:
    order = epoch_order(len(groups), seed=seed, epoch=0).tolist()
    prefix = shared_prefix_tokens(rows)
    return list(pack(rows, micro, order=order, groups=groups, prefix_tokens=prefix))


@given(grouped_rows(), MICRO, st.integers(0, 3))
def test_every_row_is_in_one_micro_batch_with_its_whole_group(drawn, micro, seed):
    rows, groups = drawn
    batches = packed(rows, groups, micro, seed)
    assert sorted(i for batch in batches for i in batch.members) == list(range(len(rows)))
    group_of = {member: group for group, members in enumerate(groups) for member in members}
    home = [{group_of[i] for i in batch.members.tolist()} for batch in batches]
    assert sum(map(len, home)) == len(groups)


@given(grouped_rows(), MICRO, st.integers(0, 3))
def test_only_the_last_micro_batch_is_smaller_and_sizes_are_few(drawn, micro, seed):
    batches = packed(*drawn, micro, seed)
    eighths = {-(-micro * part // 8) for part in range(1, 8)}
    for place, batch in enumerate(batches):
        taken = int(batch.segment_lengths.sum())
        assert taken <= batch.positions
        if place < len(batches) - 1 or taken > micro:
            assert batch.positions == capacity_for(micro, taken)
        else:
            assert batch.positions in eighths | {micro}


@given(grouped_rows(), MICRO, st.integers(0, 3))
def test_the_last_micro_batch_pads_less_than_an_eighth_beyond_the_least_size(drawn, micro, seed):
    last = packed(*drawn, micro, seed)[-1]
    taken = int(last.segment_lengths.sum())
    part = -(-micro // 8)
    if taken <= micro:
        assert last.positions - taken < part or last.positions < LEAST_POSITIONS + part
    assert last.positions >= min(LEAST_POSITIONS, micro)


@given(st.integers(1, 5_000), st.integers(1, 20_000))
def test_the_last_size_holds_its_positions_and_is_at_most_the_usual_one(micro, positions):
    size = last_capacity(micro, positions)
    assert positions <= size <= capacity_for(micro, positions)
    # A long row's size is the one that was rehearsed, also where it comes last.
    assert positions <= micro or size == capacity_for(micro, positions)


@given(grouped_rows(), MICRO)
def test_equal_arguments_give_equal_micro_batches(drawn, micro):
    one, two = packed(*drawn, micro, 1), packed(*drawn, micro, 1)
    assert [b.input_ids.tolist() for b in one] == [b.input_ids.tolist() for b in two]
    assert [b.row_indices.tolist() for b in one] == [b.row_indices.tolist() for b in two]


@given(grouped_rows(), MICRO, st.integers(0, 3))
def test_the_oldest_waiting_group_is_always_taken(drawn, micro, seed):
    rows, groups = drawn
    waiting = [groups[g][0] for g in epoch_order(len(groups), seed=seed, epoch=0).tolist()]
    for batch in packed(rows, groups, micro, seed):
        members = set(batch.members.tolist())
        assert waiting[0] in members
        waiting = [first for first in waiting if first not in members]
    assert not waiting


@given(
    st.lists(st.tuples(st.sampled_from([0, 30]), st.integers(2, 60)), min_size=2, max_size=9),
    st.integers(1, 200),
)
def test_what_fills_a_gap_is_the_best_of_all_choices(shapes, free):
    rows = [row([3] * shared, body, 1, place) for place, (shared, body) in enumerate(shapes)]
    filler = Filler(rows, None, 0, 16)
    tree = filler._tree([0])
    near = range(1, len(rows))
    best = filler._best(deque(near), tree, free)
    costs = {group: filler._cost(group, tree) for group in near}
    choices = (c for size in range(len(rows)) for c in itertools.combinations(near, size))
    fitting = [c for c in choices if sum(costs[group] for group in c) <= free]
    assert tuple(best) in fitting
    assert sum(map(filler._size, best)) == max(sum(map(filler._size, c)) for c in fitting)


@pytest.mark.parametrize(("micro", "most"), [(256, 0.03), (512, 0.01), (1024, 0.01)])
def test_rows_of_usual_lengths_leave_little_padding_tail_included(micro, most):
    lengths = np.random.default_rng(0).integers(40, 140, size=600)
    rows = [row([], int(size), 17, 7 * place) for place, size in enumerate(lengths)]
    batches = list(pack(rows, micro))
    taken = sum(int(batch.segment_lengths.sum()) for batch in batches)
    assert taken > (1 - most) * sum(batch.positions for batch in batches)


def test_of_rows_that_fit_one_that_shares_is_taken():
    shared = [5] * 60
    rows = [
        row(shared, 20, 5, 1),  # the oldest
        row([], 300, 5, 2),  # fits nowhere
        row([], 78, 5, 3),
        row(shared, 20, 5, 4),
    ]
    first, *_ = pack(rows, 170)
    assert first.members.tolist() == [0, 3]


@pytest.mark.slow
def test_packing_twice_the_rows_takes_about_twice_the_work():
    def calls(count: int) -> int:
        draw = np.random.default_rng(1)
        starts = [[word] * 30 for word in (3, 4, 5, 6)]
        rows = [
            row(starts[place % 4], int(draw.integers(20, 120)), 17, place) for place in range(count)
        ]
        with cProfile.Profile() as profile:
            assert sum(batch.members.size for batch in pack(rows, 256)) == count
        return pstats.Stats(profile).total_calls

    assert calls(1_600) < 2.2 * calls(800)
