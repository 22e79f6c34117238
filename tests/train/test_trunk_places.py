"""Positions with equal pasts, and only those, share a stored state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train.packing import pack, shared_prefix_tokens
from tunesmith.train.trunk_places import is_packed, places_of, real_positions, row_places

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@given(st.lists(tokens, min_size=1, max_size=12))
def test_two_positions_share_a_state_exactly_when_their_rows_are_equal_up_to_them(rows):
    found = row_places(rows)
    state_of: dict[tuple[int, ...], int] = {}
    for index, row in enumerate(rows):
        mine = found.of(index)
        assert mine.size == max(len(row) - 1, 1)
        for position, place in enumerate(mine.tolist()):
            assert state_of.setdefault(tuple(row[: position + 1]), place) == place
    assert sorted(state_of.values()) == list(range(found.count))
    assert sorted(found.order.tolist()) == list(range(len(rows)))


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=30), min_size=1, max_size=10),
    st.lists(st.integers(0, 2), max_size=20),
    st.integers(0, 4),
    st.integers(0, 3),
)
def test_each_position_of_a_batch_gets_the_state_of_its_row_and_place(rows, start, least, first):
    rows = [start + row for row in rows]
    others = [[7, 7, 7]] * first
    found = row_places(others + rows)
    marked = [(row, [place == len(row) - 1 for place in range(len(row))]) for row in rows]
    prefix = shared_prefix_tokens(marked)
    for batch in pack(marked, 16, prefix_tokens=prefix, least_shared_tokens=least):
        packed = places_of(batch, (1, batch.positions), found, first)
        longest = int(batch.row_lengths.max()) + 2
        padded = places_of(batch, (batch.leaves.size, longest), found, first)
        for line, row in zip(padded.reshape(-1, longest), batch.members.tolist(), strict=True):
            mine = found.of(first + row)
            assert line[: mine.size].tolist() == mine.tolist()
        real = real_positions(batch, (batch.positions,))
        assert set(packed[real].tolist()) == set(
            padded[real_positions(batch, (batch.leaves.size, longest))].tolist()
        )
        for leaf, row in zip(batch.leaves.tolist(), batch.members.tolist(), strict=True):
            whole = [
                packed[batch.segment_starts[s] :][: batch.segment_lengths[s]]
                for s in batch.chain(leaf)
            ]
            assert np.concatenate(whole).tolist() == found.of(first + row).tolist()


def test_a_layout_that_is_not_the_batchs_is_refused():
    (batch,) = pack([([1, 2, 3, 4], [False, False, True, True])], 16)
    assert is_packed(batch, (1, 16))
    assert not is_packed(batch, (1, 3))
    with pytest.raises(ValueError, match="not the layout"):
        is_packed(batch, (2, 3))
