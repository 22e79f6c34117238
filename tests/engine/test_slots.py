from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, MistralConfig

from tunesmith.engine.slots import SlotCache, common_length, fits_slots, take_group

ROWS = st.lists(st.lists(st.integers(0, 2), max_size=8), min_size=1, max_size=12)


@given(ROWS)
def test_a_group_shares_the_prefix_it_says(rows):
    rows = sorted(rows)
    count, shared = take_group(rows, 5)
    assert 1 <= count <= min(5, len(rows))
    assert all(row[:shared] == rows[0][:shared] and len(row) >= shared for row in rows[:count])


@given(ROWS)
def test_reading_a_group_never_costs_more_than_reading_its_rows_alone(rows):
    rows = sorted(rows)
    count, shared = take_group(rows, 12)
    together = shared + sum(len(row) - shared for row in rows[:count])
    assert together <= sum(map(len, rows[:count]))


def test_rows_of_another_schema_start_a_new_group():
    one, other = list(range(100)), list(range(50, 150))
    rows = [[9, *one, n] for n in range(4)] + [[9, *other, n] for n in range(4)]
    assert take_group(rows, 8) == (4, 101)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_length_is_that_of_the_longest_common_start(one, other):
    length = common_length(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


def test_slots_keep_rows_apart_and_a_move_takes_the_whole_row():
    cache = SlotCache(slots=3, capacity=70)
    prefix = DynamicCache()
    prefix.update(torch.full((1, 2, 4, 8), 5.0), torch.full((1, 2, 4, 8), 6.0), 0)
    cache.adopt(0, 2, prefix)
    new = torch.arange(2 * 2 * 3 * 8, dtype=torch.float32).reshape(2, 2, 3, 8)
    mask = cache.prefill(0, 2, 4, 3)
    keys, values = cache.update(new, -new, 0)
    assert keys.shape == (2, 2, 7, 8)
    assert mask.shape == (1, 1, 3, 7)
    assert mask[0, 0].tolist()[0] == [True] * 5 + [False] * 2
    assert torch.equal(keys[:, :, 4:], new)
    assert torch.equal(values[:, :, 4:], -new)
    assert (keys[:, :, :4] == 5).all()
    assert (values[:, :, :4] == 6).all()
    cache.move(1, 0, 7)
    mask = cache.decode(torch.tensor([7, 2]))
    token = torch.full((2, 2, 1, 8), 9.0)
    keys, _ = cache.update(token, token, 0)
    assert mask.sum(-1).flatten().tolist() == [8, 3]
    assert torch.equal(keys[0, :, 4:7], new[1])
    assert (keys[0, :, 7] == 9).all()
    assert (keys[1, :, 2] == 9).all()
    assert torch.equal(keys[1, :, 4:7], new[1])


def test_only_models_with_full_attention_go_into_slots():
    full = LlamaConfig(num_hidden_layers=2)
    windowed = MistralConfig(num_hidden_layers=2, sliding_window=16)
    full._attn_implementation = windowed._attn_implementation = "sdpa"
    assert fits_slots(full)
    assert not fits_slots(windowed)
    full._attn_implementation = "eager"
    assert not fits_slots(full)
