"""Swapping modules leaves the model as its owner knows it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict

from tunesmith.train import fast

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def test_outside_of_a_step_the_model_runs_its_own_forward_pass():
    model = tiny.adapted(tiny.base_model("Llama")).eval()
    ids = torch.arange(3, 40)[None]
    before = model(input_ids=ids).logits
    written = model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    fast.apply(model)
    fast.train_microbatch(model, tiny.one_batch(tiny.some_rows()), 10.0)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=5, do_sample=False), written)


def test_names_and_weights_are_unchanged_and_remove_restores_their_storage():
    model = tiny.adapted(tiny.base_model("Qwen2"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapters = list(get_peft_model_state_dict(model))
    fast.apply(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert list(get_peft_model_state_dict(model)) == adapters
    fast.remove(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    attention = model.get_base_model().model.layers[0].self_attn
    weights = [attention.q_proj.base_layer.weight, attention.k_proj.base_layer.weight]
    pointers = {weight.untyped_storage().data_ptr() for weight in weights}
    assert len(pointers) == 2
    assert "forward" not in vars(model.get_base_model().model.layers[0])


def test_an_optimizer_step_is_seen_by_the_next_pass():
    model = tiny.adapted(tiny.base_model("Llama"))
    batch = tiny.one_batch(tiny.some_rows())
    fast.apply(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        fast.train_microbatch(model, batch, batch.trained_tokens)
        optimizer.step()
    loss, _ = fast.evaluate_microbatch(model, batch)
    fast.remove(model)
    assert loss == pytest.approx(fast.evaluate_microbatch(model, batch)[0], rel=1e-5)


def test_applying_twice_is_refused():
    model = tiny.adapted(tiny.base_model("Llama"))
    fast.apply(model)
    with pytest.raises(ValueError, match="already"):
        fast.apply(model)


def test_weights_that_changed_place_are_refused_instead_of_ignored():
    model = tiny.adapted(tiny.base_model("Llama"))
    fast.apply(model)
    model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="moved, cast or merged"):
        fast.train_microbatch(model, tiny.one_batch(tiny.some_rows()), 10.0)


def test_a_model_whose_weights_are_all_trained_is_only_packed():
    model = tiny.base_model("Llama").train().requires_grad_(True)
    batch = tiny.one_batch(tiny.some_rows())
    loss, _ = fast.train_microbatch(model, batch, 10.0)
    grads = tiny.adapter_grads(model)
    report = fast.apply(model)
    assert report.fast == {"packed_attention": 2}
    assert fast.train_microbatch(model, batch, 10.0)[0] == pytest.approx(loss, rel=1e-6)
    tiny.assert_same_grads(grads, tiny.adapter_grads(model))


def test_the_report_names_the_module_that_runs_plain():
    model = tiny.adapted(tiny.base_model("Llama", hidden_act="gelu"))
    report = fast.apply(model)
    assert report.plain["mlp_block: layers.0"] == "activation gelu"
    assert report.fast["lora_linear"] == 6
    assert any("layers.1: plain, activation gelu" in line for line in report.lines())


def test_many_modules_that_run_plain_for_one_reason_share_one_line():
    model = tiny.adapted(tiny.base_model("Qwen3", head_dim=8, num_hidden_layers=5))
    lines = fast.apply(model).lines()
    assert "packed_attention: fast in 5 modules" in lines
    (plain,) = [line for line in lines if "plain" in line]
    assert "5 modules, layers.0 to layers.4: plain, queries and keys are normed" in plain
