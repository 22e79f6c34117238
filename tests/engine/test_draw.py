from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.engine import Sampling
from tunesmith.engine.draw import draw

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -30.0]])


def kept_tokens(logits, sampling):
    """Tokens that can be drawn, by the definition: temperature, top_k, top_p."""
    probabilities = (logits[0].double() / sampling.temperature).softmax(-1).tolist()
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    order = order[: sampling.top_k or None]
    total = sum(probabilities[i] for i in order)
    kept, before = set(), 0.0
    for i in order:
        if before / total < sampling.top_p:
            kept.add(i)
        before += probabilities[i]
    return kept


def test_no_temperature_takes_the_most_likely_token():
    assert draw(LOGITS, Sampling(), [0.99]).tolist() == [0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    rows = 20_000
    uniforms = [(i + 0.5) / rows for i in range(rows)]
    drawn = draw(LOGITS.expand(rows, -1), Sampling(temperature=temperature), uniforms)
    shares = drawn.bincount(minlength=5) / rows
    torch.testing.assert_close(shares, (LOGITS[0] / temperature).softmax(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (2, 1.0), (3, 0.7), (0, 0.5), (0, 0.9), (0, 0.999), (99, 0.8)]
)
def test_only_tokens_that_pass_top_k_and_top_p_are_drawn(top_k, top_p):
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p)
    uniforms = [i / 500 for i in range(500)]
    drawn = set(draw(LOGITS.expand(500, -1), sampling, uniforms).tolist())
    assert drawn == kept_tokens(LOGITS, sampling) - ({4} if top_p == 1.0 else set())


def test_a_flat_distribution_is_cut_where_top_p_says_even_past_the_first_look():
    logits = -torch.arange(2_000.0)[None] * 1e-5
    uniforms = [i / 500 for i in range(500)]
    drawn = draw(logits.expand(500, -1), Sampling(temperature=1.0, top_p=0.9), uniforms)
    assert 1_780 < int(drawn.max()) < 1_800
    assert len(set(drawn.tolist())) > 450


@given(share=st.floats(0, 1, exclude_max=True), top_p=st.floats(0.01, 1.0))
def test_a_token_without_probability_is_never_drawn(share, top_p):
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf")]])
    token = int(draw(logits, Sampling(temperature=1.0, top_p=top_p), [share])[0])
    assert token in (1, 2)


def test_a_row_draws_the_same_in_any_company():
    generator = random.Random(0)
    torch.manual_seed(0)
    logits = torch.randn(40, 3_000) * 4
    uniforms = [generator.random() for _ in range(40)]
    for sampling in (Sampling(temperature=0.8), Sampling(temperature=1.2, top_p=0.9, top_k=50)):
        together = draw(logits, sampling, uniforms)
        alone = [int(draw(logits[i : i + 1], sampling, uniforms[i : i + 1])[0]) for i in range(40)]
        assert together.tolist() == alone
