"""The way back to the weights before a failed step of an optimizer in the backward pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tunesmith.config import recipe_from
from tunesmith.errors import InterruptedRun
from tunesmith.store import Artifact, failpoints
from tunesmith.train.nonfinite import NotFinite
from tunesmith.train.plan import plan_training
from tunesmith.train.record import read_record
from tunesmith.train.replay import replay
from tunesmith.train.session import build

sys.path.insert(0, str(Path(__file__).parent))
from small_base import save_small_base, train

pytestmark = pytest.mark.usefixtures("_exploding")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_small_base(tmp_path_factory.mktemp("base") / "base", layers=4)


def values(base: Path) -> dict:
    train = {
        "epochs": 3,
        "batch_tokens": 256,
        "micro_batch_tokens": 256,
        "precision": "fp32",
        "threads": 1,
        "sample_rows": 0,
        "fast": False,
        "method": {"kind": "full"},
        "optimizer": {"max_grad_norm": None, "in_backward": "on", "learning_rate": 1e-2},
        "validate_every_steps": 1000,
        "checkpoint_every_steps": 2,
    }
    return {"model": {"base": str(base)}, "train": train}


def the_record(place: Path) -> Path:
    (found,) = (place / "scratch").glob("nonfinite-*")
    return found


class _Explodes(torch.autograd.Function):
    """The identity, whose gradient is infinite at some weights above it."""

    fatal: dict[float, int]
    """Sum of a weight above -> how many gradients must have been infinite before it is."""
    now = 0.0
    exploded = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        if _Explodes.exploded < _Explodes.fatal.get(_Explodes.now, 1000):
            return dy
        _Explodes.exploded += 1
        return dy / 0.0


def upper_weight(model) -> float:
    return float(model.layers[3].mlp.down_proj.weight.detach().double().sum())


@pytest.fixture
def _exploding(monkeypatch):
    """The gradient leaves layer 1 as infinite, in training and in replay alike."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

    layer_forward, model_forward = LlamaDecoderLayer.forward, LlamaModel.forward

    def of_layer(self, hidden_states, *args, **kwargs):
        if self.self_attn.layer_idx == 1:
            hidden_states = _Explodes.apply(hidden_states)
        return layer_forward(self, hidden_states, *args, **kwargs)

    def of_model(self, *args, **kwargs):
        _Explodes.now = upper_weight(self)
        return model_forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", of_layer)
    monkeypatch.setattr(LlamaModel, "forward", of_model)
    monkeypatch.setattr(_Explodes, "fatal", {}, raising=False)
    monkeypatch.setattr(_Explodes, "exploded", 0)


def weights_before(step: int, base: Path, rows: Artifact) -> dict[str, torch.Tensor]:
    straight = build(plan_training(recipe_from(values(base)), rows))
    for _ in range(step - 1):
        straight.train_step()
    return {name: weight.detach().clone() for name, weight in straight.parameters.items()}


def sum_above(weights: dict[str, torch.Tensor]) -> float:
    return float(weights["model.layers.3.mlp.down_proj.weight"].double().sum())


@pytest.mark.parametrize("step", [1, 4])
def test_a_failure_with_an_optimizer_in_the_backward_pass_is_taken_back_and_replays(
    tmp_path, base, rows, step
):
    """Weights above were updated by then: with those the same micro batch would not fail again."""
    before = weights_before(step, base, rows)
    _Explodes.fatal[sum_above(before)] = 0
    with pytest.raises(NotFinite) as caught:
        train(tmp_path / "run", rows, values(base))
    error = caught.value
    assert f"at step {step}" in error.what
    assert "first not finite: the gradient that leaves model.layers.1" in error.why
    kept = read_record(the_record(tmp_path / "run"))
    assert kept.facts["step"] == step - 1
    assert all(torch.equal(before[name], weight) for name, weight in kept.weights.items())
    assert replay(kept.place).is_reproduced


STEPS_BEGUN = 5
"""Four, of which the last one fails, and the third again on the way back from the checkpoint after the second."""


@pytest.mark.slow
def test_a_stop_on_the_way_back_leaves_a_record_and_the_next_attempt_the_right_one(
    tmp_path, base, rows
):
    before = weights_before(4, base, rows)
    _Explodes.fatal[sum_above(before)] = 0
    failpoints.arm(f"step-begin:{STEPS_BEGUN}=term")
    with pytest.raises(InterruptedRun, match="step 2 is saved"):
        train(tmp_path / "run", rows, values(base))
    kept = read_record(the_record(tmp_path / "run"))
    assert kept.facts["lines"]
    assert sum_above(dict(kept.weights)) != sum_above(before)  # as the failed step left them
    with pytest.raises(NotFinite, match="at step 4"):
        train(tmp_path / "run", rows, values(base))
    again = read_record(the_record(tmp_path / "run"))
    assert all(torch.equal(before[name], weight) for name, weight in again.weights.items())


@pytest.mark.slow
def test_a_failure_on_the_way_back_leaves_the_record_of_the_first_one(tmp_path, base, rows):
    _Explodes.fatal[sum_above(weights_before(4, base, rows))] = 0
    _Explodes.fatal[sum_above(weights_before(3, base, rows))] = 1
    with pytest.raises(NotFinite, match="at step 4") as caught:
        train(tmp_path / "run", rows, values(base))
    assert _Explodes.exploded == 2
    assert "on the way back step 3 was not finite" in caught.value.why
    assert "tunesmith replay" in caught.value.fix
    assert read_record(the_record(tmp_path / "run")).facts["step"] == 3
