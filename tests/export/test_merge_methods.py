"""The arithmetic of merging: mergekit's own results, and what must hold whatever the numbers are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from tunesmith.export.merge.methods import METHODS, Settings, merge_tensor, seed_of

GOLDEN = Path(__file__).parent / "golden/merges.safetensors"
"""Made by mergekit 0.1.5 itself; its metadata holds the command."""
with safe_open(str(GOLDEN), framework="pt") as opened:
    FACTS = opened.metadata()
CASES = json.loads(FACTS["cases"])


def settings(method: str, count: int, **asked) -> Settings:
    kind = METHODS[method]
    given = {
        "weights": (1.0,) * count,
        "normalise": kind.normalise,
        "densities": (1.0,) * count,
        **asked,
    }
    return Settings(method=method, **given)


def merged(made: Settings, models, base, name="w"):
    parts = [model.clone() for model in models]
    if made.kind.base:
        return merge_tensor(name, made, [part - base for part in parts], base)
    return merge_tensor(name, made, parts)


@pytest.mark.parametrize("case", CASES)
def test_equals_what_mergekit_made(case):
    held = load_file(GOLDEN)
    method, asked, count = CASES[case]
    grid = "_equals" if case == "ties_equals" else ""
    second = "far" if case == "slerp_arc" else f"b{grid}"
    models = [held[f"a{grid}"], held[second], held[f"c{grid}"]][:count]
    names = {"weight": "weights", "density": "densities", "lambda": "scale"}
    names |= {"normalize": "normalise", "t": "t"}
    values = {names[k]: tuple(v) if isinstance(v, list) else v for k, v in asked.items()}
    made = settings(method, count, seed=int(FACTS["seed"]), **values)
    found = merged(made, models, held["base"], case)
    wanted = held[f"out.{case}"]
    assert not torch.equal(wanted, held["base"])
    assert torch.equal(found, wanted)


def tensors(seed: int, count: int, spread: float = 0.1):
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(6, 10, generator=random)
    return base, [base + spread * torch.randn(6, 10, generator=random) for _ in range(count)]


seeds = st.integers(0, 2**31)
weights = st.floats(0.125, 2.0)


@given(seed=seeds, share=weights)
def test_a_model_merged_with_itself_is_itself(seed, share):
    base, (model,) = tensors(seed, 1)
    alike = merged(settings("linear", 2, weights=(share, 0.5)), [model, model], base)
    assert torch.allclose(alike, model, atol=1e-6)
    assert torch.allclose(
        merged(settings("slerp", 2, t=share / 2), [model, model], base), model, atol=1e-6
    )
    both = merged(settings("ties", 2, densities=(1.0, 1.0)), [model, model], base)
    assert torch.allclose(both, model, atol=1e-6)


@given(seed=seeds, method=st.sampled_from(["linear", "task_arithmetic", "ties"]))
def test_the_order_of_the_models_does_not_matter(seed, method):
    base, models = tensors(seed, 3)
    shares, densities = (0.5, 1.5, 0.25), (0.3, 0.6, 1.0)
    found = []
    for order in itertools.permutations(range(3)):
        made = settings(
            method,
            3,
            weights=tuple(shares[i] for i in order),
            densities=tuple(densities[i] for i in order),
        )
        found.append(merged(made, [models[i] for i in order], base))
    assert all(torch.allclose(found[0], other, atol=1e-6) for other in found)


@given(seed=seeds)
def test_only_the_ratio_of_linear_weights_counts(seed):
    base, models = tensors(seed, 2)
    one = merged(settings("linear", 2, weights=(1.0, 3.0)), models, base)
    assert torch.allclose(one, 0.25 * models[0] + 0.75 * models[1], atol=1e-6)
    other = merged(settings("linear", 2, weights=(0.125, 0.375)), models, base)
    assert torch.allclose(one, other, atol=1e-6)


@given(seed=seeds, share=weights)
def test_task_arithmetic_adds_to_the_base_and_lambda_scales_what_is_added(seed, share):
    base, models = tensors(seed, 2)
    plain = merged(settings("task_arithmetic", 2, weights=(share, 1.0)), models, base)
    wanted = base + share * (models[0] - base) + (models[1] - base)
    assert torch.allclose(plain, wanted, atol=1e-5)
    half = merged(settings("task_arithmetic", 2, weights=(share, 1.0), scale=0.5), models, base)
    assert torch.allclose(half - base, (plain - base) / 2, atol=1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear"])
@pytest.mark.parametrize("shares", [(0.125, 0.25), (3.0, 1.0), (2.0, -0.5)], ids=str)
def test_normalised_differences_are_divided_by_the_sum_of_the_weights(method, shares):
    base, models = tensors(7, 2)
    found = merged(settings(method, 2, weights=shares, normalise=True), models, base)
    added = sum(w * (model - base) for w, model in zip(shares, models, strict=True))
    assert torch.allclose(found, base + added / sum(shares), atol=1e-5)


def test_normalised_differences_whose_weights_sum_to_nothing_are_not_divided():
    base, models = tensors(7, 2)
    found = merged(
        settings("task_arithmetic", 2, weights=(1.0, -1.0), normalise=True), models, base
    )
    assert torch.allclose(found, base + models[0] - models[1], atol=1e-5)


@given(seed=seeds)
def test_whole_dare_is_task_arithmetic_and_whole_dare_ties_is_unnormalised_ties(seed):
    base, models = tensors(seed, 3)
    plain = merged(settings("task_arithmetic", 3), models, base)
    assert torch.equal(merged(settings("dare_linear", 3), models, base), plain)
    ties = merged(settings("ties", 3, normalise=False), models, base)
    assert torch.equal(merged(settings("dare_ties", 3), models, base), ties)


@given(seed=seeds)
def test_ties_of_one_sign_everywhere_is_the_mean_difference(seed):
    base, models = tensors(seed, 3)
    models = [base + (model - base).abs() for model in models]
    found = merged(settings("ties", 3), models, base)
    assert torch.allclose(found, sum(models) / 3, atol=1e-6)


@given(seed=seeds, density=st.floats(0.01, 1.0))
def test_ties_keeps_exactly_the_largest_share_also_among_equals(seed, density):
    random = torch.Generator().manual_seed(seed)
    base = torch.zeros(6, 10)
    model = torch.randint(-2, 3, (6, 10), generator=random).float()
    found = merged(settings("ties", 1, densities=(density,)), [model], base)
    count = max(1, int(density * 60))
    kept = found != 0
    largest = model.abs().flatten().sort(descending=True).values[:count]
    assert int(kept.sum()) == int((largest > 0).sum())
    assert torch.equal(found[kept].abs().sort(descending=True).values, largest[largest > 0])


def test_dare_keeps_about_its_share_and_the_sum_of_magnitudes():
    random = torch.Generator().manual_seed(0)
    base, delta = torch.zeros(200, 500), torch.randn(200, 500, generator=random)
    found = merged(settings("dare_linear", 1, densities=(0.3,), seed=1), [delta], base)
    kept = found != 0
    assert abs(float(kept.float().mean()) - 0.3) < 0.01
    assert float(found.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-4)
    # What stays is made larger by about one over the share, as in the paper.
    assert float((found[kept] / delta[kept]).median()) == pytest.approx(1 / 0.3, rel=0.03)


def test_random_choices_follow_the_seed_and_the_tensor_but_not_what_came_before():
    base, models = tensors(0, 2)
    made = settings("dare_ties", 2, densities=(0.5, 0.5), seed=3)
    first = merged(made, models, base, "one")
    assert torch.equal(first, merged(made, models, base, "one"))
    assert not torch.equal(first, merged(made, models, base, "two"))
    other = settings("dare_ties", 2, densities=(0.5, 0.5), seed=4)
    assert not torch.equal(first, merged(other, models, base, "one"))
    assert seed_of(3, "one") != seed_of(3, "two")


@given(seed=seeds, t=st.floats(0, 1))
def test_slerp_ends_at_its_ends_and_keeps_lengths_between_equals(seed, t):
    _, (first, second) = tensors(seed, 2, spread=2.0)
    second = second * (first.norm() / second.norm())
    made = settings("slerp", 2, t=t)
    found = merged(made, [first, second], None)
    assert float(found.norm()) == pytest.approx(float(first.norm()), rel=1e-3)
    ends = [merged(settings("slerp", 2, t=at), [first, second], None) for at in (0.0, 1.0)]
    assert torch.allclose(ends[0], first, atol=1e-5)
    assert torch.allclose(ends[1], second, atol=1e-5)


def test_tensors_of_several_stretches_are_merged_as_one():
    random = torch.Generator().manual_seed(0)
    size = 2 * (1 << 20) + 5
    base, a, b = (torch.randn(size, generator=random) for _ in range(3))
    one, other = a - base, b - base
    positive = one + other >= 0
    agree = [torch.where(positive, delta > 0, delta < 0) for delta in (one, other)]
    total = one * agree[0] + other * agree[1]
    count = (agree[0].float() + agree[1]).clamp(min=1)
    assert torch.equal(merged(settings("ties", 2), [a, b], base), base + total / count)
    angle = torch.acos((a.double() @ b.double()) / (a.double().norm() * b.double().norm()))
    ends = torch.sin(0.7 * angle) * a.double(), torch.sin(0.3 * angle) * b.double()
    wanted = (ends[0] + ends[1]) / torch.sin(angle)
    found = merged(settings("slerp", 2, t=0.3), [a, b], None)
    assert torch.allclose(found.double(), wanted, atol=1e-5)


def test_slerp_of_zeros_is_zero_and_goes_straight_through_opposites():
    zeros = torch.zeros(2, 3)
    assert torch.equal(merged(settings("slerp", 2), [zeros, zeros], None), zeros)
    one = torch.ones(2, 3)
    assert torch.equal(merged(settings("slerp", 2), [one, -one], None), zeros)
