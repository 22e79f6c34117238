"""Packing loses nothing, invents nothing and mixes nothing."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train.packing import (
    HEAD_ROW_MULTIPLE,
    IGNORED,
    LEAST_SHARED_TOKENS,
    PADDING,
    SHARED,
    MicroBatch,
    Row,
    epoch_order,
    pack,
    plan_epoch,
    shared_prefix_tokens,
)

row_strategy = st.integers(1, 90).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(1, 500), min_size=size, max_size=size),
        st.lists(st.booleans(), min_size=size, max_size=size),
    )
)
own_rows = st.lists(row_strategy, min_size=1, max_size=40)
alike_rows = st.tuples(st.integers(1, 20), own_rows).map(
    lambda both: [
        ([7] * both[0] + tokens, [False] * both[0] + trained) for tokens, trained in both[1]
    ]
)
few_shot_rows = st.lists(
    st.tuples(st.sampled_from([0, 5, 16, 20, 31]), st.sampled_from([7, 8]), row_strategy),
    min_size=1,
    max_size=30,
).map(
    lambda parts: [
        ([word] * count + tokens, [False] * count + trained)
        for count, word, (tokens, trained) in parts
    ]
)
"""Rows of which some begin alike, some with more of it than others."""
rows_strategy = st.one_of(own_rows, alike_rows, few_shot_rows)


def segments(batch: MicroBatch) -> list[tuple[int, slice]]:
    places = zip(batch.row_indices, batch.segment_starts, batch.segment_lengths, strict=True)
    return [(int(row), slice(int(start), int(start + size))) for row, start, size in places]


def micro_batches(rows: list[Row], seed: int = 0, epoch: int = 0) -> list[MicroBatch]:
    steps = plan_epoch(rows, batch_tokens=64, micro_batch_tokens=32, seed=seed, epoch=epoch)
    return [batch for step in steps for batch in step.micro_batches]


@given(rows_strategy, st.integers(0, 5))
def test_every_row_is_there_exactly_once_with_all_its_tokens_and_labels(rows, seed):
    seen = []
    for batch in micro_batches(rows, seed=seed):
        for row, (ids, labels) in zip(batch.members.tolist(), batch.rows(), strict=True):
            tokens, trained = rows[row]
            size = max(len(tokens) - 1, 1)
            assert ids.tolist() == list(tokens[:size])
            expected = [t if m else IGNORED for t, m in zip(tokens[1:], trained[1:], strict=True)]
            assert labels.tolist() == (expected or [IGNORED])
            seen.append(row)
        for leaf, length in zip(batch.leaves.tolist(), batch.row_lengths.tolist(), strict=True):
            chain = [segments(batch)[segment][1] for segment in batch.chain(leaf)]
            places = np.concatenate([batch.position_ids[place] for place in chain])
            assert places.tolist() == list(range(length))
    assert sorted(seen) == list(range(len(rows)))


@given(rows_strategy)
def test_the_shared_prefix_is_common_untrained_and_leaves_each_row_an_input(rows):
    prefix = shared_prefix_tokens(rows)
    assert 0 <= prefix < max(len(tokens) for tokens, _ in rows)
    for tokens, trained in rows:
        assert list(tokens[:prefix]) == list(rows[0][0][:prefix])
        assert prefix == 0 or (not any(trained[1 : prefix + 1]) and len(tokens) - 1 > prefix)
    for batch in micro_batches(rows):
        if prefix:
            assert (batch.segment_lengths[0], batch.row_indices[0]) == (prefix, SHARED)
            assert (batch.segment_parents[1:] >= 0).all()
        assert batch.position_ids[:prefix].tolist() == list(range(prefix))


@given(rows_strategy)
def test_a_shared_segment_is_never_trained_and_each_segment_is_shared_or_ends_a_row(rows):
    for batch in micro_batches(rows):
        parents = batch.segment_parents.tolist()
        assert all(parent < segment for segment, parent in enumerate(parents))
        for segment, (row, place) in enumerate(segments(batch)):
            assert (row == SHARED) == (segment in parents)
            assert place.stop > place.start
            if row == SHARED:
                assert (batch.labels[place] == IGNORED).all()


def test_the_shared_prefix_is_as_long_as_it_may_be():
    rows: list[Row] = [
        ([1, 2, 3, 4, 9], [False, False, False, False, True]),
        ([1, 2, 3, 5, 9], [False, False, False, True, True]),
    ]
    assert shared_prefix_tokens(rows) == 2  # the third token is the last before a trained one
    assert shared_prefix_tokens(rows[:1]) == 3
    assert shared_prefix_tokens([]) == 0


def test_more_prefix_than_the_rows_share_is_refused():
    rows: list[Row] = [([1, 2, 3], [False] * 3), ([4, 2, 3], [False] * 3)]
    with pytest.raises(ValueError, match="prefix_tokens=1"):
        list(pack(rows, 32, prefix_tokens=1))


@given(rows_strategy)
def test_segments_tile_the_batch_and_padding_belongs_to_none(rows):
    for batch in micro_batches(rows):
        owner = np.full(batch.positions, PADDING)
        for segment, (_, place) in enumerate(segments(batch)):
            assert (owner[place] == PADDING).all()
            owner[place] = segment
        assert (owner == batch.segment_ids).all()
        assert (batch.labels[owner < 0] == IGNORED).all()
        assert batch.segment_lengths.sum() == (owner >= 0).sum()


@given(rows_strategy)
def test_micro_batches_have_the_asked_size_or_a_power_of_two_more_for_a_long_row(rows):
    for batch in micro_batches(rows):
        longest = int(batch.row_lengths.max())
        expected = 32
        while expected < longest:
            expected *= 2
        assert batch.positions == expected


@given(rows_strategy)
def test_head_rows_are_the_trained_positions_rounded_up(rows):
    for batch in micro_batches(rows):
        count = batch.trained_tokens
        assert (
            batch.head_positions[:count].tolist()
            == np.flatnonzero(batch.labels != IGNORED).tolist()
        )
        assert (batch.head_labels[:count] == batch.labels[batch.head_positions[:count]]).all()
        assert (batch.head_labels[count:] == IGNORED).all()
        assert batch.head_labels.size % HEAD_ROW_MULTIPLE == 0
        assert 0 <= batch.head_labels.size - count <= HEAD_ROW_MULTIPLE


@given(rows_strategy)
def test_a_step_counts_the_tokens_of_its_rows_and_keeps_its_budget(rows):
    steps = plan_epoch(rows, batch_tokens=64, micro_batch_tokens=32, seed=3, epoch=1)
    assert sum(step.row_tokens for step in steps) == sum(len(tokens) for tokens, _ in rows)
    assert sum(step.trained_tokens for step in steps) == sum(sum(mask[1:]) for _, mask in rows)
    for step in steps:
        positions = sum(batch.positions for batch in step.micro_batches)
        assert positions <= 64 or len(step.micro_batches) == 1


@given(rows_strategy, st.integers(0, 3), st.integers(0, 3))
def test_the_same_seed_and_epoch_give_the_same_plan(rows, seed, epoch):
    one, two = micro_batches(rows, seed, epoch), micro_batches(rows, seed, epoch)
    assert [batch.row_indices.tolist() for batch in one] == [b.row_indices.tolist() for b in two]
    assert [batch.input_ids.tolist() for batch in one] == [b.input_ids.tolist() for b in two]


def test_another_seed_or_epoch_visits_the_rows_in_another_order():
    orders = {tuple(epoch_order(100, seed=s, epoch=e).tolist()) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_short_rows_fill_micro_batches_nearly_to_the_brim():
    lengths = np.random.default_rng(0).integers(60, 130, size=500)
    rows = [([1] * int(size), [True] * int(size)) for size in lengths]
    steps = plan_epoch(rows, batch_tokens=2048, micro_batch_tokens=1024, seed=0, epoch=0)
    batches = [batch for step in steps for batch in step.micro_batches][:-1]
    used = sum(int(batch.segment_lengths.sum()) for batch in batches)
    assert used / sum(batch.positions for batch in batches) > 0.97


def test_rows_come_in_their_own_order_when_none_is_given():
    rows: list[Row] = [([index + 1] * 9, [True] * 9) for index in range(8)]
    indices = [index for batch in pack(rows, 32) for index in batch.members.tolist()]
    assert indices == list(range(8))


@pytest.mark.parametrize("rows", [[([], [])], [([1, 2], [True])]])
def test_a_row_without_tokens_or_with_a_wrong_mask_is_refused(rows):
    with pytest.raises(ValueError, match="row 0"):
        list(pack(rows, 32))


def test_a_budget_below_one_micro_batch_is_refused():
    with pytest.raises(ValueError, match="batch_tokens=16"):
        plan_epoch([([1], [True])], batch_tokens=16, micro_batch_tokens=32, seed=0, epoch=0)
    rows = [([1, 2], [False, True])]
    (step,) = plan_epoch(rows, batch_tokens=32, micro_batch_tokens=32, seed=0, epoch=0)
    assert step.trained_tokens == 1


def test_packing_does_not_import_torch():
    code = "import sys, tunesmith.train.packing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


pairs_strategy = st.lists(
    st.tuples(st.integers(1, 45), st.integers(1, 30), st.integers(1, 30), st.booleans()),
    min_size=1,
    max_size=12,
)


def pair_rows(shapes: list[tuple[int, int, int, bool]]) -> tuple[list[Row], list[tuple[int, int]]]:
    """Two answers to each prompt; some prompts begin alike."""
    rows: list[Row] = []
    for place, (prompt, *answers, alike) in enumerate(shapes):
        start = [5] * prompt if alike else [10 + place] * prompt
        for word, size in enumerate(answers, 1):
            rows.append((start + [word] * size, [False] * prompt + [True] * size))
    return rows, [(2 * pair, 2 * pair + 1) for pair in range(len(shapes))]


@given(pairs_strategy, st.integers(0, 3))
def test_rows_of_a_group_are_never_split_and_all_there(shapes, seed):
    rows, groups = pair_rows(shapes)
    steps = plan_epoch(
        rows, batch_tokens=64, micro_batch_tokens=32, seed=seed, epoch=0, groups=groups
    )
    seen: list[int] = []
    for batch in (batch for step in steps for batch in step.micro_batches):
        members = batch.members.tolist()
        assert all(member ^ 1 in members for member in members)
        for row, (ids, _) in zip(members, batch.rows(), strict=True):
            assert ids.tolist() == list(rows[row][0][:-1])
        seen += members
        size = 32
        while size < batch.segment_lengths.sum():
            size *= 2
        assert batch.positions == size
    assert sorted(seen) == list(range(len(rows)))


@given(st.integers(LEAST_SHARED_TOKENS + 1, 60), st.integers(1, 20), st.integers(2, 6))
def test_the_prompt_of_a_group_stands_once_up_to_one_token_before_the_first_label(
    prompt, answer, size
):
    start = list(range(100, 100 + prompt))
    rows = [(start + [7 + row] * answer, [False] * prompt + [True] * answer) for row in range(size)]
    (batch,) = pack(rows, 512, groups=[range(size)])
    assert batch.segment_lengths[0] == prompt - 1
    assert batch.segment_parents.tolist() == [-1] + [0] * size
    assert batch.segment_lengths[1:].tolist() == [answer] * size


def test_answers_that_begin_alike_share_only_their_prompt():
    start = list(range(100, 130))
    rows = [(start + [7] * 20 + [row], [False] * 30 + [True] * 21) for row in range(2)]
    (batch,) = pack(rows, 512, groups=[(0, 1)])
    assert batch.segment_lengths.tolist() == [29, 21, 21]


@given(few_shot_rows)
def test_turned_off_every_row_is_one_segment(rows):
    for batch in pack(rows, 32, least_shared_tokens=0):
        assert (batch.segment_parents == -1).all()
        assert (batch.row_indices != SHARED).all()


def test_rows_of_three_prompts_take_each_prompt_once_a_micro_batch():
    prompts = [[word] * 100 for word in (5, 6, 7)]
    rows = [(prompts[row % 3] + [20 + row, 9], [False] * 101 + [True]) for row in range(30)]
    (batch,) = pack(rows, 1024)
    # The shared part leaves each row its last prompt token: the one that predicts the answer.
    assert (batch.segment_ids >= 0).sum() == 3 * 100 + 30


@pytest.mark.parametrize("groups", [[(0,)], [(0, 1), (1,)], [(0, 1), ()], [(0, 2)]])
def test_groups_that_leave_out_or_repeat_rows_are_refused(groups):
    rows: list[Row] = [([1, 2], [False, True])] * 2
    with pytest.raises(ValueError, match="groups"):
        list(pack(rows, 32, groups=groups))
