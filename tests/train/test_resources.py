"""What of the machine a run uses: chosen once, recorded, kept on resume, overridden by the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tunesmith.config import ModelConfig, recipe_from
from tunesmith.errors import CapacityError, ConfigError
from tunesmith.models.load import resolve_base
from tunesmith.models.memory import GIB, shape_of
from tunesmith.store import Artifact, Run
from tunesmith.train import run
from tunesmith.train.ladder import Situation, need_of, needs_of
from tunesmith.train.packing import plan_epoch
from tunesmith.train.plan import TrainPlan, plan_training
from tunesmith.train.resources import Resources, settle

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

FIXED = {"precision": "fp32", "threads": 1, "micro_batch_tokens": 256, "batch_tokens": 512}


def plan_of(base: Path, dataset: Artifact, chosen=None, **train) -> TrainPlan:
    method = {"method": {"kind": "lora", "rank": 8}}
    recipe = recipe_from({"model": {"base": str(base)}, "train": method | train})
    return plan_training(recipe, dataset, chosen)


def test_what_the_recipe_says_is_taken_and_nothing_is_measured(tiny_base, dataset):
    resources: Resources = plan_of(tiny_base, dataset, **FIXED).resources
    assert (resources.precision, resources.threads, resources.micro_batch_tokens) == (
        "fp32",
        1,
        256,
    )
    assert not resources.told
    assert not resources.measured


@pytest.mark.slow
def test_what_is_auto_is_measured_told_and_recorded(tiny_base, dataset):
    plan = plan_of(tiny_base, dataset, batch_tokens=512, threads=1)
    resources = plan.resources
    assert plan.micro_batch_tokens == resources.micro_batch_tokens in (256, 512)
    assert len(resources.told) == 2
    assert set(resources.measured["micro_batch_layer_milliseconds"]) <= {"256", "512"}
    assert resources.as_choice()["micro_batch_tokens"] == plan.micro_batch_tokens


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "near"), [("lora", 1.05), ("qlora", 1.25)])
def test_qlora_waits_longer_for_the_smaller_micro_batch(tiny_base, dataset, kind, near):
    sizes = {"batch_tokens": 2048, "micro_batch_tokens": "auto", "threads": 1}
    plan = plan_of(tiny_base, dataset, method={"kind": kind, "rank": 4}, **sizes)
    measured = plan.resources.measured
    layer = measured["micro_batch_layer_milliseconds"]
    positions = measured["micro_batch_positions"]
    taken = {int(size): layer[size] / int(size) * positions[size] for size in layer}
    limit, rounded = near * min(taken.values()), 1.005
    assert taken[plan.micro_batch_tokens] <= limit * rounded
    smaller = [one for size, one in taken.items() if size < plan.micro_batch_tokens]
    assert all(one * rounded > limit for one in smaller)


def test_a_resumed_run_keeps_the_earlier_choice_unmeasured(tiny_base, dataset):
    chosen = {"precision": "bf16", "threads": 1, "micro_batch_tokens": 128}
    plan = plan_of(tiny_base, dataset, chosen, batch_tokens=512)
    assert (plan.precision, plan.threads, plan.micro_batch_tokens) == ("bf16", 1, 128)
    assert not plan.resources.told


@pytest.mark.slow
def test_in_backward_takes_the_whole_step_as_its_micro_batch(tiny_base, dataset):
    optimizer = {"in_backward": "on", "max_grad_norm": None}
    settings = FIXED | {"micro_batch_tokens": "auto", "batch_tokens": 4096, "optimizer": optimizer}
    plan = plan_of(tiny_base, dataset, **settings | {"method": {"kind": "full"}})
    assert plan.micro_batch_tokens == 4096
    assert plan.resources.in_backward


def test_fit_lowers_settings_tells_each_and_a_resumed_run_keeps_them(tiny_base, dataset):
    settings = FIXED | {"micro_batch_tokens": 512, "fit": True}
    asked = plan_of(tiny_base, dataset, **settings, memory_gib=100)
    longest = max(len(row.tokens) for row in asked.rows.rows)
    start = Situation(asked.resources.config, 512, longest, "fp32", shape_of(tiny_base))
    plan = plan_of(tiny_base, dataset, **settings, memory_gib=(need_of(start) - 1) / GIB)
    assert plan.micro_batch_tokens == 256
    first, second = plan.resources.told
    assert first.startswith("fit: as asked")
    assert second.startswith("fit: micro_batch_tokens 512 -> micro_batch_tokens 256")
    assert plan.resources.measured["fit"] == [first[5:], second[5:]]
    choice = json.loads(json.dumps(plan.resources.as_choice()))
    again = plan_of(tiny_base, dataset, choice, **settings, memory_gib=100)
    assert again.micro_batch_tokens == 256
    assert again.resources.measured == plan.resources.measured
    assert again.method == plan.method
    assert again.optimizer == plan.optimizer


IN_BACKWARD = {"in_backward": "on", "max_grad_norm": None}


def test_fit_leaves_an_optimizer_in_the_backward_pass_its_one_micro_batch(tiny_base, dataset):
    settings = FIXED | {"micro_batch_tokens": 512, "fit": True, "optimizer": IN_BACKWARD}
    settings |= {"method": {"kind": "full"}}
    asked = plan_of(tiny_base, dataset, **settings, memory_gib=100)
    longest = max(len(row.tokens) for row in asked.rows.rows)
    start = Situation(asked.resources.config, 512, longest, "fp32", shape_of(tiny_base))
    plan = plan_of(tiny_base, dataset, **settings, memory_gib=(need_of(start) - 1) / GIB)
    assert plan.resources.in_backward
    assert plan.micro_batch_tokens == plan.batch_tokens == 512
    assert "activation_checkpointing" in plan.resources.told[1]


def test_what_an_earlier_attempt_settled_must_hold_together_too(tiny_base, dataset):
    chosen = {"precision": "fp32", "threads": 1, "micro_batch_tokens": 128}
    settings = {"optimizer": IN_BACKWARD, "method": {"kind": "full"}, "batch_tokens": 512}
    with pytest.raises(ConfigError, match="4 micro batches a step"):
        plan_of(tiny_base, dataset, chosen, **settings)


@pytest.mark.parametrize(
    "train",
    [
        {"method": {"kind": "full"}, "optimizer": {"kind": "adamw_8bit"}},
        {"method": {"kind": "full"}, "optimizer": {"max_grad_norm": None}},
        {"method": {"kind": "lora", "rank": 64, "layers": 1}},
        {"method": {"kind": "lora", "rank": 64, "targets": ["q_proj"]}},
        {"method": {"kind": "qlora", "rank": 8, "block_size": 4096}},
    ],
    ids=str,
)
def test_a_run_is_refused_only_below_what_its_own_settings_take(tiny_base, train):
    base = resolve_base(ModelConfig(base=str(tiny_base)))

    def settled(gib: float) -> Resources:
        values = FIXED | {"micro_batch_tokens": 512, "memory_gib": gib} | train
        return settle(recipe_from({"train": values}).train, base, lambda size: [], 100)

    at = Situation(settled(100).config, 512, 100, "fp32", shape_of(tiny_base))
    need = needs_of(at)
    least = need.weights + need.trainable + need.gradients + need.optimizer
    assert settled(least / GIB).memory_bytes == least
    with pytest.raises(CapacityError, match="weights, gradients and optimizer"):
        settled((least - 1) / GIB)


@pytest.mark.slow
def test_the_micro_batch_is_timed_with_the_threads_that_train(tiny_base):
    recipe = recipe_from({"train": {"batch_tokens": 512, "precision": "fp32", "threads": 1}})
    base, seen = resolve_base(ModelConfig(base=str(tiny_base))), []

    def packed(size):
        seen.append(torch.get_num_threads())
        rows = [([1, 2, 3, 4], [False, False, True, True])] * 4
        return plan_epoch(rows, batch_tokens=512, micro_batch_tokens=size, seed=0, epoch=0)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        settle(recipe.train, base, packed, 4)
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_fit_that_cannot_help_shows_the_whole_ladder(tiny_base, dataset):
    with pytest.raises(CapacityError, match="no setting of the ladder") as found:
        plan_of(tiny_base, dataset, **FIXED, fit=True, memory_gib=0.5)
    assert "rank 8 (alpha 32) -> rank 4 (alpha 16)" in found.value.what


@pytest.mark.slow
def test_a_run_records_its_choices_and_its_memory(tmp_path, tiny_base, dataset):
    values = {
        "model": {"base": str(tiny_base)},
        "train": {"max_steps": 2, "batch_tokens": 512, "sample_rows": 0, "threads": 1},
    }
    with Run.open(tmp_path / "run", "train", inputs={}, parents=[dataset.as_parent()]) as at:
        run(recipe_from(values), at, dataset)
    facts = Artifact.open(tmp_path / "run", "train").facts
    assert facts["micro_batch_tokens"] in (256, 512)
    assert facts["measured"]["micro_batch_layer_milliseconds"]
    assert facts["memory"]["recompute"] == {"mlp": 0, "whole": 0}
    assert 0 < facts["memory"]["needed_bytes"] <= facts["memory"]["budget_bytes"]
    assert facts["optimizer_in_backward"] is False
