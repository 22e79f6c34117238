"""What a step holds is said before the first one, and a note when steps are few and large."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tunesmith.config import recipe_from
from tunesmith.train import pace
from tunesmith.train.memory import longest_batch
from tunesmith.train.plan import plan_training
from tunesmith.train.rows import EncodedRows, TokenRow


@pytest.fixture(scope="module")
def plan_with(tiny_base, dataset):
    def made(**train):
        fixed = {"precision": "fp32", "threads": 1, "epochs": 2, "batch_tokens": 1024}
        values = {"model": {"base": str(tiny_base)}, "train": {**fixed, **train}}
        return plan_training(recipe_from(values), dataset)

    return made


@pytest.mark.slow
@pytest.mark.parametrize("micro", [512, 1024, "auto"])
def test_few_steps_of_many_rows_are_noted_with_settings_that_silence_the_note(plan_with, micro):
    plan = plan_with(micro_batch_tokens=micro)
    held, note = pace.lines(plan)
    assert held.startswith("a step: about ")
    assert note.startswith(f"note: {plan.total_steps} steps of ")
    named = {key: int(size) for key, size in re.findall(r"--set train\.(\w+)=(\d+)", note)}
    assert named["batch_tokens"] < plan.batch_tokens
    quieter = plan_with(**{"micro_batch_tokens": micro, **named})
    assert quieter.total_steps > plan.total_steps
    assert len(list(pace.lines(quieter))) == 1


def test_a_step_is_counted_as_it_is(plan_with):
    plan = plan_with(batch_tokens=256, micro_batch_tokens=256)
    (held,) = pace.lines(plan)
    # The last step of an epoch is a smaller one.
    *usual, last = (plan.step_at(index) for index in range(plan.steps_by_epoch[0]))
    assert last.row_tokens < min(step.row_tokens for step in usual)
    rows, tokens, positions = map(int, re.findall(r"\d+", held))
    members = [sum(batch.members.size for batch in step.micro_batches) for step in usual]
    assert rows == round(sum(members) / len(usual))
    assert tokens == round(sum(step.row_tokens for step in usual) / len(usual))
    assert positions == 256


@pytest.mark.parametrize("train", [{"max_steps": 1}, {"epochs": 60}])
def test_steps_that_are_many_or_few_as_asked_are_not_noted(plan_with, train):
    assert len(list(pace.lines(plan_with(micro_batch_tokens=512, **train)))) == 1


def test_pairs_are_counted_as_pairs(plan_with):
    plan = plan_with(batch_tokens=2048, micro_batch_tokens=2048)
    groups = tuple((place, place + 1) for place in range(0, 64, 2))
    paired = replace(plan, rows=replace(plan.rows, groups=groups), steps_by_epoch=(1,))
    assert next(iter(pace.lines(paired))).startswith("a step: about 32 pairs, ")


def test_the_longest_micro_batch_is_of_all_epochs_where_each_is_one_step(plan_with):
    # What these rows take as a tree depends on their order, so on the epoch; so does the last size.
    rows = tuple(
        TokenRow(1, (5,) * cut + (6,) * (60 - cut) + (20 + cut,) * 3, (False,) * 60 + (True,) * 3)
        for cut in (17, 37, 20, 1)
    )
    plan = replace(
        plan_with(micro_batch_tokens=512),
        rows=EncodedRows(rows, (), ()),
        steps_by_epoch=(1,) * 4,
        batch_tokens=576,
        micro_batch_tokens=288,
        seed=0,
    )
    sizes = [batch.positions for index in range(4) for batch in plan.step_at(index).micro_batches]
    assert sizes == [216, 216, 252, 252]
    assert longest_batch(plan).positions == 252
