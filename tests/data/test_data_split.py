"""Splits that never share a prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.rows import Row
from tunesmith.data.split import drawn, find_overlaps, hold_out, prompt_key, refuse_overlaps
from tunesmith.errors import DataError


def row(prompt, answer="a", place=1, **meta):
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row(f"f.jsonl:{place}", "chat", "{}", {"messages": messages, "meta": meta})


prompts = st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=40).filter(
    lambda found: len(set(found)) > 1
)


@given(prompts=prompts, n_wanted=st.integers(0, 50), seed=st.integers(0, 9))
def test_a_prompt_stays_on_one_side_and_no_row_is_lost(prompts, n_wanted, seed):
    rows = [row(prompt, place=place) for place, prompt in enumerate(prompts)]
    stays, held = hold_out(rows, n_wanted, seed, "test")
    assert stays
    assert held
    assert sorted(r.where for r in [*stays, *held]) == sorted(r.where for r in rows)
    assert not {prompt_key(r) for r in stays} & {prompt_key(r) for r in held}


@given(prompts=prompts, seed=st.integers(0, 9))
def test_the_choice_does_not_depend_on_the_order_of_the_rows(prompts, seed):
    rows = [row(prompt, place=place) for place, prompt in enumerate(prompts)]
    held = {r.where for r in hold_out(rows, 3, seed, "test")[1]}
    assert held == {r.where for r in hold_out(rows[::-1], 3, seed, "test")[1]}


def test_another_seed_holds_out_other_rows_and_the_wanted_number():
    rows = [row(f"question {n}", place=n) for n in range(200)]
    one, two = (hold_out(rows, 20, seed, "test")[1] for seed in (0, 1))
    assert len(one) == len(two) == 20
    assert one != two


def test_rows_of_one_prompt_cannot_be_split():
    with pytest.raises(DataError, match="1 different prompts cannot be split for test"):
        hold_out([row("q"), row("q")], 1, 0, "test")


@pytest.mark.parametrize(
    "other", ["how many  BOOKS?", "How many books", "How\nmany books?! ", "How many \uff42ooks?"]
)
def test_prompts_that_differ_only_in_form_are_the_same(other):
    assert prompt_key(row("How many books?")) == prompt_key(row(other))


def test_prompts_that_differ_in_content_or_database_are_not_the_same():
    keys = {
        prompt_key(row("1+2")),
        prompt_key(row("1-2")),
        prompt_key(row("1+2", database="x")),
        prompt_key(row("12")),
    }
    assert len(keys) == 4


def test_every_shared_prompt_is_named_with_both_places():
    splits = {
        "train": [row("a", place=1), row("b", place=2), row("c", place=3), row("d", place=4)],
        "validation": [row("B?", place=5), row("x", place=6)],
        "test": [row("c", place=7), row("X", place=8)],
    }
    overlaps = find_overlaps(splits)
    pairs = {(o.split, o.row.where, o.held_out_split, o.held_out.where) for o in overlaps}
    assert pairs == {
        ("train", "f.jsonl:2", "validation", "f.jsonl:5"),
        ("train", "f.jsonl:3", "test", "f.jsonl:7"),
        ("validation", "f.jsonl:6", "test", "f.jsonl:8"),
    }
    with pytest.raises(DataError) as caught:
        refuse_overlaps(overlaps)
    assert "f.jsonl:3 (train) = f.jsonl:7 (test): 'c'" in str(caught.value)
    assert "drop_from_train" in caught.value.fix


def test_splits_without_a_shared_prompt_pass():
    refuse_overlaps(
        find_overlaps({"train": [row("a")], "validation": [row("b")], "test": [row("c")]})
    )


def test_a_limit_draws_rows_by_seed_and_keeps_their_order():
    rows = [row(str(n), place=n) for n in range(50)]
    chosen = drawn(rows, 10, 0, "train")
    places = [rows.index(r) for r in chosen]
    assert len(chosen) == 10
    assert places == sorted(places)
    assert chosen != rows[:10]
    assert chosen == drawn(rows, 10, 0, "train")
    assert chosen != drawn(rows, 10, 1, "train")
    assert drawn(rows, None, 0, "train") == drawn(rows, 99, 0, "train") == rows
