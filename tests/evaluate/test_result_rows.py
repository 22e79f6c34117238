"""Equality of query results."""

import random
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.tasks.result_rows import same_rows

CELLS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 3),
    st.floats(allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, float("inf")]),
    st.text(max_size=3),
    st.binary(max_size=3),
)


def tables(width):
    return st.lists(st.tuples(*[CELLS] * width), max_size=8)


@given(st.integers(1, 3).flatmap(tables), st.randoms(use_true_random=False))
def test_rows_in_any_order_are_the_same(rows, rng):
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    assert same_rows(rows, shuffled)


@given(st.integers(1, 3).flatmap(lambda w: st.tuples(tables(w), tables(w))))
def test_sameness_does_not_depend_on_which_side_is_the_reference(both):
    left, right = both
    assert same_rows(left, right) == same_rows(right, left)


@given(st.integers(1, 3).flatmap(tables).filter(bool), st.data())
def test_a_row_more_or_less_makes_another_result(rows, data):
    extra = data.draw(st.sampled_from(rows))
    assert not same_rows(rows, [*rows, extra])
    assert not same_rows([*rows, extra], rows)


def test_how_often_a_row_comes_counts():
    assert not same_rows([(1,), (1,), (2,)], [(1,), (2,), (2,)])
    assert same_rows([(1,), (2,), (1,)], [(2,), (1,), (1,)])


def test_columns_are_compared_in_their_order():
    assert not same_rows([(1, "a")], [("a", 1)])
    assert not same_rows([(1, 2)], [(2, 1)])
    assert not same_rows([(1,)], [(1, 1)])


def test_an_integer_equals_the_float_of_the_same_value():
    assert same_rows([(3,)], [(3.0,)])
    assert same_rows([(3, "x")], [(3.0000000001, "x")])
    assert not same_rows([(3,)], [(3.00001,)])


def test_floats_are_equal_within_one_part_in_a_thousand_million():
    assert same_rows([(0.1 + 0.2,)], [(0.3,)])
    assert same_rows([(1e12,)], [(1e12 + 900,)])
    assert not same_rows([(1e12,)], [(1e12 + 1100,)])
    assert not same_rows([(0.0,)], [(1e-12,)])


def test_integers_are_never_rounded():
    assert not same_rows([(10**15,)], [(10**15 + 1,)])
    assert not same_rows([(2**62,)], [(2**62 + 1,)])


def test_numbers_text_blobs_and_null_are_never_equal_to_each_other():
    values = [(1,), ("1",), (b"1",), (None,), ("",), (0,)]
    for a, b in permutations(values, 2):
        assert not same_rows([a], [b]), (a, b)
    assert same_rows([(None,)], [(None,)])


def test_nearly_equal_floats_are_paired_where_sorting_would_mismatch_them():
    e = 4e-10
    left = [(1.0, 5.0), (1.0 + e, 7.0)]
    right = [(1.0, 7.0), (1.0 + e, 5.0)]
    assert same_rows(left, right)
    # A chain of closeness a-b-c, where only one pairing works: greedy choice of the first fails.
    chain_left = [(1.0 + 0.9e-9,), (1.0,)]
    chain_right = [(1.0 + 0.4e-9,), (1.0 + 1.7e-9,)]
    assert same_rows(chain_left, chain_right)
    assert not same_rows(chain_left, [(1.0 + 1.7e-9,), (1.0 + 1.8e-9,)])


def test_many_rows_that_differ_by_rounding_are_compared_quickly():
    rng = random.Random(0)
    left = [(rng.random(), rng.random(), f"row {i % 7}") for i in range(20_000)]
    right = [(a * (1 + 1e-13), b * (1 - 1e-13), c) for a, b, c in left]
    rng.shuffle(right)
    assert same_rows(left, right)
    right[0] = (right[0][0], right[0][1] * 1.001, right[0][2])
    assert not same_rows(left, right)


@given(st.lists(st.tuples(st.floats(0.5, 2)), min_size=1, max_size=6), st.data())
def test_results_moved_by_less_than_the_tolerance_are_the_same(rows, data):
    moved = [(value * (1 + data.draw(st.floats(-9e-10, 9e-10))),) for (value,) in rows]
    assert same_rows(rows, list(reversed(moved)))
