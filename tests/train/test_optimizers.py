"""Optimizers: in the backward pass the same to the bit, bf16 without loss in the mean, 8-bit near 32."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config import OptimizerConfig
from tunesmith.errors import ConfigError, EnvironmentProblem
from tunesmith.train import fast
from tunesmith.train.optimizers import build_optimizer, stochastically_rounded

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny

SETTINGS = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=None)


def trained(config: OptimizerConfig, *, in_backward: bool):
    """Weights, moments and norms after some full fine-tuning steps of a tied model."""
    model = tiny.base_model("Llama", tie_word_embeddings=True).train()
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(config, list(parameters.values()), in_backward=in_backward)
    norms = []
    for seed in range(3):
        batch = tiny.one_batch(tiny.some_rows(seed=seed))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate / (seed + 1)
        fast.train_microbatch(model, batch, float(batch.trained_tokens))
        assert in_backward == all(p.grad is None for p in parameters.values())
        # By a limit that nothing exceeds, so that the gradients stay as they are.
        clipped = torch.nn.utils.clip_grad_norm_
        norm = optimizer.norm() if in_backward else clipped(parameters.values(), math.inf)
        norms.append(float(norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    moments = {
        f"{name}.{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    return {name: p.detach() for name, p in parameters.items()}, moments, norms


def test_in_the_backward_pass_equals_the_ordinary_step_to_the_bit():
    weights, moments, norms = trained(SETTINGS, in_backward=True)
    others, other_moments, other_norms = trained(SETTINGS, in_backward=False)
    assert norms == other_norms
    assert all(torch.equal(weights[name], others[name]) for name in others)
    assert moments.keys() == other_moments.keys()
    assert all(torch.equal(moments[name], other_moments[name]) for name in moments)


def test_paused_it_drops_gradients_and_changes_nothing():
    model = tiny.base_model("Llama").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(SETTINGS, list(model.parameters()), in_backward=True)
    batch = tiny.one_batch(tiny.some_rows())
    with optimizer.paused():
        fast.train_microbatch(model, batch, 10.0)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    fast.train_microbatch(model, batch, 10.0)
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_after_a_gradient_that_is_not_finite_no_weight_is_changed():
    upper, lower = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = build_optimizer(SETTINGS, [lower, upper], in_backward=True)
    (torch.exp(lower * 100.0).sum() * upper).sum().backward()
    assert optimizer.norm() == float("inf")
    assert torch.equal(lower, torch.ones(2))


@given(st.floats(-1e4, 1e4, width=32))
def test_rounding_takes_a_neighbour_and_keeps_the_mean(number):
    exact = torch.full((20_000,), number)
    torch.manual_seed(0)
    rounded = stochastically_rounded(exact.clone())
    assert rounded.dtype == torch.bfloat16
    gap = float((rounded.float() - exact).abs().max())
    assert gap <= max(abs(number) / 128, 1e-40)
    assert abs(float(rounded.double().mean()) - number) <= abs(number) / 128 / 30 + 1e-38


def test_updates_too_small_for_bf16_are_not_lost():
    weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    config = OptimizerConfig(learning_rate=1e-4, max_grad_norm=None)
    optimizer = build_optimizer(config, [weight], in_backward=False)
    torch.manual_seed(0)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    # 100 steps of 1e-4; each alone is a fortieth of the distance to the next bf16 number.
    assert float(weight.detach().float().mean()) == pytest.approx(0.99, abs=0.001)
    state = optimizer.state[weight]
    assert state["exp_avg"].dtype == torch.float32


def test_but_for_the_rounding_bf16_weights_get_adamws_update():
    torch.manual_seed(0)
    start = torch.randn(8, 8, dtype=torch.bfloat16)
    half, whole = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    rates = {"learning_rate": 0.05, "weight_decay": 1.0, "beta1": 0.6, "beta2": 0.8}
    config = SETTINGS.model_copy(update=rates)
    ours, reference = (build_optimizer(config, [p], in_backward=False) for p in (half, whole))
    for _ in range(3):
        half.grad = torch.randn(8, 8).bfloat16()
        whole.grad = half.grad.float()
        ours.step()
        reference.step()
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(ours.state[half][key], reference.state[whole][key])
    # Each of three roundings moves a weight by less than one step of bf16, 1/128 of it.
    torch.testing.assert_close(half.detach().float(), whole.detach(), rtol=3 / 128, atol=1e-3)


def test_decay_is_on_matrices_only():
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(SETTINGS, [matrix, vector], in_backward=False)
    assert {g["weight_decay"] for g in optimizer.param_groups if g["params"][0] is vector} == {0.0}
    assert {g["weight_decay"] for g in optimizer.param_groups if g["params"][0] is matrix} == {0.1}


def eight_bit() -> OptimizerConfig:
    return SETTINGS.model_copy(update={"kind": "adamw_8bit"})


def test_without_bitsandbytes_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    weight = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(EnvironmentProblem, match="bitsandbytes") as found:
        build_optimizer(eight_bit(), [weight], in_backward=False)
    assert "pip install 'tunesmith[8bit]'" in found.value.fix


def test_8bit_moments_are_refused_for_bf16_weights():
    weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    with pytest.raises(ConfigError, match="adamw_8bit"):
        build_optimizer(eight_bit(), [weight], in_backward=False)


def steps_of(config: OptimizerConfig, resume_after: int = 0) -> tuple[torch.Tensor, int]:
    """How far eight steps moved a matrix, and bytes of its two moments."""
    torch.manual_seed(0)
    start, pulls = torch.randn(64, 256), torch.randn(8, 64, 256)
    weight = torch.nn.Parameter(start.clone())
    optimizer = build_optimizer(config, [weight], in_backward=False)
    for index, pull in enumerate(pulls):
        if resume_after and index == resume_after:
            state = {k: v.clone() for k, v in optimizer.state[weight].items()}
            optimizer = build_optimizer(config, [weight], in_backward=False)
            optimizer.state[weight] = state
        weight.grad = pull
        optimizer.step()
    moments = [v for v in optimizer.state[weight].values() if v.numel() == weight.numel()]
    return weight.detach() - start, sum(m.numel() * m.element_size() for m in moments)


def test_8bit_steps_are_near_32bit_ones_with_a_quarter_of_the_moments():
    pytest.importorskip("bitsandbytes")
    exact, much = steps_of(SETTINGS)
    near, little = steps_of(eight_bit())
    assert float((near - exact).abs().mean()) < 0.05 * float(exact.abs().mean())
    assert 4 * little == much


def test_8bit_state_of_tensors_goes_on_to_the_bit():
    pytest.importorskip("bitsandbytes")
    assert torch.equal(steps_of(eight_bit())[0], steps_of(eight_bit(), resume_after=4)[0])
