"""Activation checkpointing: the same gradients to the bit, fewer kept tensors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tunesmith.models.memory import Recompute
from tunesmith.train import fast
from tunesmith.train.fast.recompute import layers_of, set_recompute
from tunesmith.train.memory import kept_bytes

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

LEVELS = [Recompute(1), Recompute(2), Recompute(2, 1), Recompute(2, 2)]


def model_of(family: str, path: str):
    model = tiny.adapted(tiny.base_model(family))
    if path == "fast":
        fast.apply(model)
    return model


def grads_and_kept(model, batch):
    kept = kept_bytes(lambda: fast.microbatch_loss(model, batch, 100.0), model)
    fast.train_microbatch(model, batch, 100.0)
    return tiny.adapter_grads(model), kept


@pytest.mark.parametrize("path", ["fast", "plain"])
@pytest.mark.parametrize(
    "family", ["Llama", "Qwen2", pytest.param("Gemma2", marks=pytest.mark.slow)]
)
def test_gradients_are_bit_equal_and_each_level_keeps_less(family, path):
    model = model_of(family, path)
    batch = tiny.one_batch(tiny.some_rows())
    grads, kept = grads_and_kept(model, batch)
    for level in LEVELS:
        set_recompute(model, level)
        again, less = grads_and_kept(model, batch)
        assert less < kept, level
        kept = less
        assert all(torch.equal(grads[name], again[name]) for name in grads), level
    set_recompute(model, Recompute())
    assert grads_and_kept(model, batch)[1] > kept


def test_a_cleared_model_runs_its_own_forward_passes_again():
    model = model_of("Llama", "fast")
    before = [dict(layer.__dict__) for layer in layers_of(model)]
    set_recompute(model, Recompute(2, 1))
    set_recompute(model, Recompute())
    for layer, own in zip(layers_of(model), before, strict=True):
        assert layer.__dict__["forward"] is own["forward"]
        assert "forward" not in layer.mlp.__dict__


def test_dropout_draws_the_same_in_the_second_forward_pass():
    model = tiny.adapted(tiny.base_model("Llama"), lora_dropout=0.3)
    batch = tiny.one_batch(tiny.some_rows())
    torch.manual_seed(3)
    grads, _ = plain(model, batch)
    set_recompute(model, Recompute(2, 1))
    torch.manual_seed(3)
    again, _ = plain(model, batch)
    assert all(torch.equal(grads[name], again[name]) for name in grads)


def plain(model, batch):
    fast.train_microbatch(model, batch, 100.0)
    return tiny.adapter_grads(model), None


@pytest.mark.parametrize("path", ["fast", "plain"])
def test_a_pass_without_gradients_is_the_ordinary_one(path, monkeypatch):
    model = model_of("Llama", path)
    batch = tiny.one_batch(tiny.some_rows())
    asked = []

    def noted(function, *args, **kwargs):
        asked.append(function)
        return checkpoint(function, *args, **kwargs)

    monkeypatch.setattr("tunesmith.train.fast.recompute.checkpoint", noted)
    ordinary = fast.evaluate_microbatch(model, batch)
    set_recompute(model, Recompute(2, 1))
    for model_in_mode in (model.eval(), model.train()):
        assert fast.evaluate_microbatch(model_in_mode, batch) == ordinary
    assert asked == []
    fast.train_microbatch(model, batch, 100.0)
    assert len(asked) == 2  # a whole layer and the MLP part of the other
