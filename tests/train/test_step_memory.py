"""The longest micro batch is rehearsed before the first step, and leaves no trace."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config import recipe_from
from tunesmith.errors import CapacityError, ConfigError
from tunesmith.models.memory import GIB, MOMENTS_BYTES, Recompute
from tunesmith.store import Artifact
from tunesmith.train import checkpoint, randomness
from tunesmith.train.fast.probe import causal_model
from tunesmith.train.fast.swap import fast_path_of
from tunesmith.train.filling import capacity_for
from tunesmith.train.memory import (
    Estimate,
    calibrate,
    least_recompute,
    longest_batch,
    memory_budget,
    process_bytes,
    rehearse,
)
from tunesmith.train.plan import plan_training
from tunesmith.train.resources import Resources
from tunesmith.train.session import Session, build
from tunesmith.train.shortage import largest_micro_batch

sys.path.insert(0, str(Path(__file__).parent))
from small_base import sealed_sums

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

ESTIMATE = Estimate(fixed_bytes=1000, kept_bytes=(12.0, 8.0, 2.0), logit_bytes=1.0, layers=4)


def assert_same_to_the_bit(one, two):
    tensors, others = one.state()[0], two.state()[0]
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def session_of(base: Path, dataset: Artifact, **train) -> Session:
    values = {
        "batch_tokens": 512,
        "micro_batch_tokens": 256,
        "precision": "fp32",
        "threads": 1,
        "method": {"kind": "lora", "rank": 4},
    }
    recipe = recipe_from({"model": {"base": str(base)}, "train": values | train})
    return build(plan_training(recipe, dataset))


def with_budget(session: Session, budget: int) -> Session:
    resources: Resources = replace(session.plan.resources, memory_bytes=budget)
    session.plan = replace(session.plan, resources=resources)
    return session


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"method": {"kind": "full"}},
        {
            "method": {"kind": "full"},
            "micro_batch_tokens": 512,
            "optimizer": {"max_grad_norm": None, "in_backward": "on"},
        },
    ],
    ids=["lora", "full", "in_backward"],
)
def test_the_rehearsal_leaves_everything_as_it_was_to_the_bit(tiny_base, dataset, train):
    session = session_of(tiny_base, dataset, **train)
    before = {n: t.clone() for n, t in session.model.state_dict().items()}
    random = {n: t.clone() for n, t in randomness.capture().items()}
    found = rehearse(session)
    assert found.positions == session.plan.micro_batch_tokens
    assert found.recompute == Recompute()
    assert all(torch.equal(before[n], t) for n, t in session.model.state_dict().items())
    assert all(torch.equal(random[n], t) for n, t in randomness.capture().items())
    assert all(p.grad is None for p in session.parameters.values())
    assert not any(session.optimizer.state.get(p) for p in session.parameters.values())


@pytest.mark.slow
def test_a_rehearsed_run_trains_the_same_to_the_bit(tiny_base, dataset):
    steps = []
    for rehearsed in (False, True):
        session = session_of(tiny_base, dataset)
        if rehearsed:
            rehearse(session)
        steps.append([session.train_step() for _ in range(2)])
    assert steps[0] == steps[1]


def test_the_measured_need_counts_what_the_first_step_adds(tiny_base, dataset):
    session = session_of(tiny_base, dataset, method={"kind": "full"})
    resident = process_bytes("cpu")
    found = rehearse(session)
    weights = sum(p.numel() for p in session.parameters.values())
    assert found.needed_bytes >= resident + MOMENTS_BYTES * weights
    assert found.budget_bytes == session.plan.resources.memory_bytes


def test_a_budget_that_nothing_fits_into_is_an_error_before_anything_is_run(tiny_base, dataset):
    session = with_budget(session_of(tiny_base, dataset), 1000)
    with pytest.raises(CapacityError) as found:
        rehearse(session)
    assert "predicted from a small trial" in found.value.what
    assert "256 positions" in found.value.why
    assert "--fit" in found.value.fix
    assert all(p.grad is None for p in session.parameters.values())


def test_the_largest_micro_batch_that_fits_divides_the_step():
    assert largest_micro_batch(lambda size: size <= 300, (2048, 1024)) == 256
    assert largest_micro_batch(lambda size: size <= 300, (600, 600)) == 300
    assert largest_micro_batch(lambda size: False, (2048, 1024)) is None


def test_no_smaller_micro_batch_is_offered_to_an_optimizer_in_the_backward_pass(tiny_base, dataset):
    optimizer = {"max_grad_norm": None, "in_backward": "on"}
    settings = {"method": {"kind": "full"}, "batch_tokens": 1024, "micro_batch_tokens": 1024}
    session = session_of(tiny_base, dataset, optimizer=optimizer, **settings)
    estimate = calibrate(session, longest_batch(session.plan))
    budget = estimate.need(Recompute(2, 2), 512)
    with pytest.raises(CapacityError) as found:
        rehearse(with_budget(session, budget))
    assert "micro_batch_tokens" not in found.value.fix


def test_the_error_offers_to_compute_more_again_when_that_is_off(tiny_base, dataset):
    session = session_of(tiny_base, dataset, activation_checkpointing="off")
    with pytest.raises(CapacityError) as found:
        rehearse(with_budget(session, 1000))
    assert "--set train.activation_checkpointing=auto" in found.value.fix


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "expected"), [("off", Recompute()), (1, Recompute(1, 1)), (2, Recompute(2, 2))]
)
def test_so_many_layers_are_computed_again_as_asked(tiny_base, dataset, asked, expected):
    session = session_of(tiny_base, dataset, activation_checkpointing=asked)
    found = rehearse(session)
    assert found.recompute == expected
    assert str(expected) in found.line()


def test_more_layers_than_can_be_computed_again_are_refused_with_their_number(tiny_base, dataset):
    session = session_of(tiny_base, dataset, activation_checkpointing=9)
    with pytest.raises(ConfigError, match="= 9, but 2 decoder layers") as found:
        rehearse(session)
    assert "activation_checkpointing=2" in found.value.fix
    upper = {"method": {"kind": "lora", "rank": 4, "layers": 1}}
    session = session_of(tiny_base, dataset, activation_checkpointing=2, **upper)
    with pytest.raises(ConfigError, match="1 decoder layers"):
        rehearse(session)


def test_layers_that_are_not_found_cannot_be_asked_for(tiny_base, dataset):
    session = session_of(tiny_base, dataset, activation_checkpointing=1)
    causal_model(session.model).config.num_hidden_layers = 3
    with pytest.raises(ConfigError, match="has no effect"):
        rehearse(session)


@pytest.mark.slow
def test_what_an_earlier_attempt_computed_again_is_the_least(tmp_path, tiny_base, dataset):
    assert rehearse(session_of(tiny_base, dataset), Recompute(2, 1)).recompute == Recompute(2, 1)
    # Large, so that activations outweigh what the process's size varies by; and warmed up.
    many = sealed_sums(tmp_path / "many", train=1500)
    session = session_of(tiny_base, many, batch_tokens=16_384, micro_batch_tokens=16_384)
    batch = longest_batch(session.plan)
    assert batch.positions == 16_384
    assert rehearse(session).recompute == Recompute()
    budget = calibrate(session, batch).need(Recompute(1), batch.positions)
    found = rehearse(with_budget(session, budget), Recompute())
    assert found.recompute.mlp >= 1
    assert found.needed_bytes <= budget


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        {"method": {"kind": "lora", "rank": 4}},
        {"method": {"kind": "lora", "rank": 4}, "precision": "bf16"},
        {"method": {"kind": "qlora", "rank": 4, "block_size": 32}},
        {"method": {"kind": "full"}, "precision": "bf16"},
        {
            "method": {"kind": "full"},
            "micro_batch_tokens": 512,
            "optimizer": {"max_grad_norm": None, "in_backward": "on"},
        },
    ],
    ids=str,
)
def test_a_resumed_run_may_compute_more_again_and_ends_the_same_to_the_bit(
    tmp_path, tiny_base, dataset, train
):
    straight = session_of(tiny_base, dataset, **train)
    assert rehearse(straight).recompute == Recompute()
    straight.train_step()
    checkpoint.save(tmp_path, straight.step, *straight.state())
    straight.train_step()
    resumed = session_of(tiny_base, dataset, activation_checkpointing=2, **train)
    assert rehearse(resumed, Recompute()).recompute == Recompute(2, 2)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    resumed.restore(found)
    resumed.train_step()
    assert_same_to_the_bit(straight, resumed)


def test_rows_that_are_too_long_to_be_packed_count_as_the_rectangle_they_are_padded_to(
    tmp_path, tiny_base, dataset
):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    changes = {"rope_parameters": rope, "max_position_embeddings": 16}
    (base / "config.json").write_text(json.dumps(config | changes))
    session = session_of(base, dataset)
    path, batch = fast_path_of(session.model), longest_batch(session.plan)
    assert path is not None
    assert path.report.packed
    assert path.limit == 16 < batch.row_lengths.max()
    rectangle = int(batch.row_lengths.size * batch.row_lengths.max())
    assert rehearse(session).positions == rectangle != batch.positions


def test_the_trial_counts_less_kept_at_each_level(tiny_base, dataset):
    session = session_of(tiny_base, dataset)
    estimate = calibrate(session, longest_batch(session.plan))
    everything, no_mlp, inputs = estimate.kept_bytes
    assert everything > no_mlp > inputs > 0
    assert estimate.layers == 2


WITHOUT_CLIPPING = {"max_grad_norm": None, "learning_rate": 1e-2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [
        ("fp32", {"in_backward": "on"}),
        ("bf16", {"in_backward": "on"}),
        ("bf16", {"in_backward": "off"}),
        ("fp32", {"kind": "adamw_8bit"}),
        ("fp32", {"kind": "adamw_8bit", "in_backward": "on"}),
    ],
    ids=str,
)
def test_every_optimizer_goes_on_from_a_checkpoint_to_the_bit(
    tmp_path, tiny_base, dataset, precision, optimizer
):
    if "kind" in optimizer:
        pytest.importorskip("bitsandbytes")

    def session() -> Session:
        return session_of(
            tiny_base,
            dataset,
            micro_batch_tokens=512,
            precision=precision,
            method={"kind": "full"},
            optimizer=WITHOUT_CLIPPING | optimizer,
        )

    straight = session()
    rehearse(straight)
    straight.train_step()
    checkpoint.save(tmp_path, straight.step, *straight.state())
    straight.train_step()
    resumed = session()
    rehearse(resumed)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    resumed.restore(found)
    resumed.train_step()
    assert_same_to_the_bit(straight, resumed)


def test_full_training_is_packed(tiny_base, dataset):
    path = fast_path_of(session_of(tiny_base, dataset, method={"kind": "full"}).model)
    assert path is not None
    assert path.report.packed


def test_as_little_as_possible_is_computed_again():
    def need(level: Recompute) -> int:
        return ESTIMATE.need(level, 100)

    assert least_recompute(need, 4, need(Recompute())) == Recompute()
    assert least_recompute(need, 4, need(Recompute()) - 1) == Recompute(1)
    assert least_recompute(need, 4, need(Recompute(4)) - 1) == Recompute(4, 1)
    assert least_recompute(need, 4, need(Recompute(4, 4))) == Recompute(4, 4)
    assert least_recompute(need, 4, need(Recompute(4, 4)) - 1) is None


@given(st.integers(0, 10_000))
def test_what_is_chosen_fits_and_one_level_less_does_not(budget):
    levels = [Recompute(m) for m in range(5)] + [Recompute(4, w) for w in range(1, 5)]
    needs = [ESTIMATE.need(level, 100) for level in levels]
    assert needs == sorted(needs, reverse=True)
    found = least_recompute(lambda level: ESTIMATE.need(level, 100), 4, budget)
    fitting = [level for level, need in zip(levels, needs, strict=True) if need <= budget]
    assert found == (fitting[0] if fitting else None)


def test_a_budget_is_what_the_user_says_or_a_share_of_what_is_free_and_what_the_process_has(
    monkeypatch,
):
    assert memory_budget(2.5, "cpu") == int(2.5 * GIB)
    free = SimpleNamespace(available=GIB // 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    # The process itself may grow a little between the two looks at it.
    wanted = 0.9 * free.available + process_bytes("cpu")
    assert memory_budget(None, "cpu") == pytest.approx(wanted, abs=GIB / 64)


def test_a_row_longer_than_the_micro_batch_doubles_it():
    assert capacity_for(256, 100) == 256
    assert capacity_for(256, 600) == 1024


@pytest.mark.parametrize(
    ("train", "word"),
    [
        ({"optimizer": {"in_backward": "on"}}, "max_grad_norm"),
        ({"optimizer": {"in_backward": "on", "max_grad_norm": None}}, "2 micro batches"),
    ],
)
def test_in_backward_refuses_what_contradicts_it(tiny_base, dataset, train, word):
    with pytest.raises(ConfigError, match=word) as found:
        session_of(tiny_base, dataset, method={"kind": "full"}, **train)
    assert "--set" in found.value.fix


@pytest.mark.slow
def test_in_backward_is_on_by_itself_only_where_it_changes_nothing(tiny_base, dataset):
    def is_on(**train) -> bool:
        full = {"method": {"kind": "full"}, "micro_batch_tokens": 512}
        return session_of(tiny_base, dataset, **(full | train)).plan.resources.in_backward

    assert is_on(optimizer={"max_grad_norm": None})
    assert not is_on()
    assert not is_on(optimizer={"max_grad_norm": None}, micro_batch_tokens=256)
    assert not is_on(optimizer={"max_grad_norm": None, "in_backward": "off"})


def test_a_model_that_cannot_fit_is_refused_before_it_is_loaded(tiny_base, dataset):
    with pytest.raises(CapacityError, match="weights, gradients and optimizer take"):
        session_of(tiny_base, dataset, memory_gib=1e-4)
