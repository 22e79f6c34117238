"""`--fit` climbs on while the rehearsal finds too much, and ends with a clear error at the last rung."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tunesmith.config import recipe_from
from tunesmith.errors import CapacityError, StorageError
from tunesmith.models.memory import GIB, Recompute
from tunesmith.store import Run, failpoints
from tunesmith.train import run
from tunesmith.train.fitting import fitted_session
from tunesmith.train.memory import calibrate, longest_batch, rehearse
from tunesmith.train.plan import TrainPlan, plan_training
from tunesmith.train.session import load

sys.path.insert(0, str(Path(__file__).parent))
from small_base import sealed_pairs, sealed_sums


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return sealed_sums(tmp_path_factory.mktemp("rows") / "data")


def values(base: Path, **train) -> dict:
    settings = {
        "epochs": 1,
        "batch_tokens": 256,
        "micro_batch_tokens": 256,
        "precision": "fp32",
        "threads": 1,
        "sample_rows": 0,
        "fit": True,
        "memory_gib": 100,
        "method": {"kind": "lora", "rank": 8},
    }
    return {"model": {"base": str(base)}, "train": {**settings, **train}}


def with_little(plan: TrainPlan) -> TrainPlan:
    """The same where nothing fits, whatever the formula said."""
    return replace(plan, resources=replace(plan.resources, memory_bytes=1000))


def test_what_the_formula_let_pass_and_the_rehearsal_did_not_takes_the_next_rung(base, rows):
    recipe = recipe_from(values(base))
    said: list[str] = []
    first = with_little(plan_training(recipe, rows))
    session, found = fitted_session(
        first, lambda choice: plan_training(recipe, rows, choice), said.append
    )
    (line,) = said
    assert line.startswith(
        "fit: took: micro_batch_tokens 256 -> micro_batch_tokens 128 because the rehearsal predicted "
    )
    assert line.endswith("GiB of 0.00")
    assert session.plan.micro_batch_tokens == 128
    assert found is session.rehearsal
    assert found.positions == 128
    assert session.plan.resources.as_choice()["fitted"]["micro_batch_tokens"] == 128
    assert f"fit: {session.plan.resources.measured['fit'][-1]}" == line
    session.train_step()


def climbed(base, rows, **train) -> tuple[list[str], CapacityError]:
    recipe = recipe_from(values(base, **train))
    said: list[str] = []

    def plan_of(choice=None) -> TrainPlan:
        return with_little(plan_training(recipe, rows, choice))

    with pytest.raises(CapacityError) as caught:
        fitted_session(plan_of(), plan_of, said.append)
    return [line.partition("took: ")[2].partition(" because")[0] for line in said], caught.value


@pytest.mark.slow
def test_it_climbs_rung_by_rung_in_the_ladders_order_and_the_end_is_a_clear_error(base, rows):
    taken, error = climbed(base, rows, activation_checkpointing="off", on_long_row="drop")
    changed = [line.split()[0] for line in taken]
    assert changed[:4] == [
        "micro_batch_tokens",
        "micro_batch_tokens",
        "activation_checkpointing",
        "method",
    ]
    assert "rank" in changed[4:]
    assert taken[2].startswith("activation_checkpointing off")
    assert taken[3] == "method lora -> method qlora"
    assert all(rung in error.what for rung in taken)
    assert "a training step needs" in error.what
    assert "choose a smaller model" in error.fix
    assert "--fit" not in error.fix


@pytest.mark.slow
def test_a_model_whose_shape_is_not_known_climbs_by_its_micro_batch(base, rows, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_tokenizer, resolve_base, save_model

    tokenizer = load_tokenizer(resolve_base(ModelConfig(base=str(base))))
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4)
    save_model(GPT2LMHeadModel(config), tokenizer, tmp_path / "gpt2")
    recipe = recipe_from(
        values(
            tmp_path / "gpt2",
            batch_tokens=16_384,
            micro_batch_tokens=16_384,
            method={"kind": "full"},
        )
    )
    many = sealed_sums(tmp_path / "many", train=600)
    plan = plan_training(recipe, many)
    session = load(plan)
    batch = longest_batch(plan)
    budget = calibrate(session, batch).need(Recompute(), int(0.6 * batch.positions))
    tight = replace(plan, resources=replace(plan.resources, memory_bytes=budget))
    said: list[str] = []
    session, _ = fitted_session(
        tight, lambda choice: plan_training(recipe, many, choice), said.append
    )
    assert len(said) == 1
    assert session.plan.micro_batch_tokens < 16_384


@pytest.mark.parametrize("fast", [True, False])
def test_a_rehearsed_model_is_let_go_whole(base, rows, fast):
    """Else each rung would hold one more model in memory."""
    session = load(plan_training(recipe_from(values(base, fast=fast)), rows))
    rehearse(session)
    frozen = [weakref.ref(p) for p in session.model.parameters() if not p.requires_grad]
    frozen += [weakref.ref(module) for module in session.model.modules()]
    del session
    gc.collect()
    assert [one for one in frozen if one() is not None] == []


def test_without_fit_no_rung_is_taken(base, rows):
    taken, error = climbed(base, rows, fit=False)
    assert taken == []
    assert "--fit" in error.fix


def train(place: Path, rows, recipe: dict):
    with Run.open(place, "train", inputs={}, parents=[rows.as_parent()], resume=True) as at:
        return run(recipe_from(recipe), at, rows)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_run_that_the_formula_takes_to_fit_is_lowered_until_it_really_does(
    tmp_path, base, capsys, objective
):
    """What else the process holds is not in the formula, and is in the measurement."""
    sealed = {"sft": sealed_sums, "dpo": sealed_pairs}[objective]
    rows = sealed(tmp_path / "rows", train=1500)
    wide = {
        "batch_tokens": 65_536,
        "activation_checkpointing": "off",
        "objective": {"kind": objective},
        "max_steps": 2,
    }
    ballast = np.ones(2**27)  # 1 GiB
    small = values(base, **wide, micro_batch_tokens=8192)
    needed = rehearse(load(plan_training(recipe_from(small), rows))).needed_bytes
    gc.collect()
    budget = needed / GIB + 0.06
    recipe = values(base, **wide, micro_batch_tokens=65_536, memory_gib=budget)
    failpoints.arm("trained-begin=enospc")
    with pytest.raises(StorageError):
        train(tmp_path / "run", rows, recipe)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "took: micro_batch_tokens 65536 -> micro_batch_tokens 32768 because the" in said
    choice = json.loads((tmp_path / "run/scratch/choice.json").read_text())
    assert choice["micro_batch_tokens"] < 65_536
    # It goes on with what it ended at.
    facts = train(tmp_path / "run", rows, recipe).artifact.facts
    assert facts["micro_batch_tokens"] == choice["micro_batch_tokens"]
    assert any(line.startswith("took: ") for line in facts["measured"]["fit"])
    assert facts["memory"]["needed_bytes"] <= facts["memory"]["budget_bytes"]
    assert ballast[-1] == 1


@pytest.mark.slow
def test_a_run_that_has_begun_takes_no_rung_and_says_what_helps(tmp_path, base, rows):
    recipe = values(base, max_steps=2)
    failpoints.arm("trained-begin=enospc")
    with pytest.raises(StorageError):
        train(tmp_path / "run", rows, recipe)
    less = values(base, max_steps=2, memory_gib=0.01)
    with pytest.raises(CapacityError) as caught:
        train(tmp_path / "run", rows, less)
    assert "close other programs" in caught.value.fix
    assert train(tmp_path / "run", rows, recipe).steps == 2
