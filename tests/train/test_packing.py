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
    PADDING,
    PREFIX,
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
rows_strategy = st.one_of(own_rows, alike_rows)
"""Rows that begin alike and rows that do not."""


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
        for row, (ids, labels) in zip(batch.row_indices.tolist(), batch.rows(), strict=True):
            tokens, trained = rows[row]
            size = max(len(tokens) - 1, 1)
            assert ids.tolist() == list(tokens[:size])
            expected = [t if m else IGNORED for t, m in zip(tokens[1:], trained[1:], strict=True)]
            assert labels.tolist() == (expected or [IGNORED])
            seen.append(row)
        for _, place in segments(batch):
            size = place.stop - place.start
            first = batch.prefix_tokens
            assert batch.position_ids[place].tolist() == list(range(first, first + size))
    assert sorted(seen) == list(range(len(rows)))


@given(rows_strategy)
def test_the_shared_prefix_is_common_untrained_and_leaves_each_row_an_input(rows):
    prefix = shared_prefix_tokens(rows)
    assert 0 <= prefix < max(len(tokens) for tokens, _ in rows)
    for tokens, trained in rows:
        assert list(tokens[:prefix]) == list(rows[0][0][:prefix])
        assert prefix == 0 or (not any(trained[1 : prefix + 1]) and len(tokens) - 1 > prefix)
    for batch in micro_batches(rows):
        assert batch.prefix_tokens == prefix
        assert (batch.segment_ids[:prefix] == PREFIX).all()
        assert batch.position_ids[:prefix].tolist() == list(range(prefix))
        assert (batch.labels[:prefix] == IGNORED).all()


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
        owner[: batch.prefix_tokens] = PREFIX
        for segment, (_, place) in enumerate(segments(batch)):
            assert (owner[place] == PADDING).all()
            owner[place] = segment
        assert (owner == batch.segment_ids).all()
        assert (batch.labels[owner < 0] == IGNORED).all()
        assert batch.segment_lengths.sum() == (owner >= 0).sum()


@given(rows_strategy)
def test_micro_batches_have_the_asked_size_or_a_power_of_two_more_for_a_long_row(rows):
    for batch in micro_batches(rows):
        longest = batch.prefix_tokens + int(batch.segment_lengths.max())
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
    indices = [index for batch in pack(rows, 32) for index in batch.row_indices.tolist()]
    assert indices == list(range(8))


@pytest.mark.parametrize("rows", [[([], [])], [([1, 2], [True])]])
def test_a_row_without_tokens_or_with_a_wrong_mask_is_refused(rows):
    with pytest.raises(ValueError, match="row 0"):
        list(pack(rows, 32))


def test_a_budget_below_one_micro_batch_is_refused():
    with pytest.raises(ValueError, match="batch_tokens=16"):
        plan_epoch([([1], [True])], batch_tokens=16, micro_batch_tokens=32, seed=0, epoch=0)


def test_packing_does_not_import_torch():
    code = "import sys, tunesmith.train.packing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
