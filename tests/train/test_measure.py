"""Choices follow from the figures alone, and the figures come from the model's own shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.models.memory import SHAPES
from tunesmith.train import measure

figures = st.dictionaries(st.integers(1, 64), st.floats(1e-6, 1e3), min_size=1)


@given(st.integers(16, 100_000))
def test_each_size_divides_the_batch(batch_tokens):
    sizes = measure.micro_batch_sizes(batch_tokens)
    assert sizes == sorted(set(sizes))
    assert all(batch_tokens % size == 0 for size in sizes)
    assert all(size >= 256 for size in sizes) or sizes == [batch_tokens]


def test_powers_of_two_are_tried_for_the_default_batch():
    assert measure.micro_batch_sizes(2048) == [256, 512, 1024, 2048]
    assert measure.micro_batch_sizes(100) == [100]


def test_the_smallest_setting_within_five_percent_wins():
    assert measure.smallest_near_best({256: 1.2, 512: 1.04, 1024: 1.0, 2048: 1.0}) == 512
    assert measure.smallest_near_best({1: 1.0, 2: 0.94}) == 2


def test_who_wants_little_memory_waits_a_little_longer():
    seconds = {256: 1.3, 512: 1.2, 1024: 1.0}
    assert measure.smallest_near_best(seconds) == 1024
    assert measure.smallest_near_best(seconds, measure.NEAR_FOR_LITTLE_MEMORY) == 512


@given(figures)
def test_no_smaller_setting_is_as_good(seconds):
    chosen = measure.smallest_near_best(seconds)
    assert seconds[chosen] <= measure.NEAR * min(seconds.values())
    assert all(seconds[n] > measure.NEAR * min(seconds.values()) for n in seconds if n < chosen)


def test_a_burst_of_another_program_spoils_no_setting():
    ticks, taken = itertools.count(), {1: iter([9.0, 2.0, 2.0, 3.0]), 2: iter([1.0, 9.0, 1.0, 1.0])}
    best = measure.best_seconds(
        [1, 2], lambda n: next(taken[n]), seconds=3, clock=lambda: next(ticks)
    )
    assert best == {1: 2.0, 2: 1.0}


def test_every_setting_is_timed_twice_even_when_time_is_short():
    asked = []
    measure.best_seconds([4, 8], lambda n: asked.append(n) or 1.0, seconds=0.0)
    assert asked == [4, 8, 4, 8]


def test_a_size_that_repeats_what_rows_share_pays_for_its_positions():
    seconds = measure.epoch_seconds({256: 0.256, 1024: 1.0}, {256: 2000, 1024: 1000})
    assert seconds == {256: pytest.approx(2.0), 1024: pytest.approx(1000 / 1024)}


def test_sizes_whose_steps_hold_far_fewer_rows_are_left_out():
    assert measure.sensible({256: 20, 512: 11, 1024: 10}) == [512, 1024]


@pytest.mark.parametrize("is_widened", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_large_models_layer_is_timed_scaled_down(precision, is_widened):
    clock = measure.LayerClock(SHAPES["Qwen2.5-7B"], precision, "cpu", is_widened)
    assert sum(weight.numel() for weight in clock.weights) < 1.5 * measure.ENTRIES
    assert clock.share > 50
    assert clock.tokens(8) > 0


@pytest.mark.parametrize(
    ("kind", "precision", "wanted"),
    [
        ("lora", "fp32", True),
        ("lora", "bf16", False),
        ("qlora", "fp32", True),
        ("qlora", "bf16", True),
        ("full", "fp32", False),
    ],
)
def test_weights_that_are_made_dense_for_each_product_are_timed_so(kind, precision, wanted):
    assert measure.is_widened(kind, precision) == wanted
    clock = measure.LayerClock(SHAPES["SmolLM2-135M"], precision, "cpu", wanted)
    weight = clock.weights[0]
    dense = clock._dense(weight)
    assert dense.dtype == clock.dtype
    assert (dense.data_ptr() != weight.data_ptr()) == wanted


def test_threads_are_the_ones_that_are_timed():
    before = torch.get_num_threads()
    clock = measure.LayerClock(SHAPES["SmolLM2-135M"], "fp32", "cpu")
    try:
        assert clock.threads(1) > 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert 1 in measure.thread_counts()
