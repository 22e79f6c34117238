"""The figures of the certificate, against computations by hand and exact bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tunesmith.engine import NextTokenLogprobs
from tunesmith.errors import ParityError
from tunesmith.export.parity import FormParity, Tally, refuse_below

LOGITS = arrays(np.float32, (3, 12), elements=st.floats(-20, 20, width=32))


def log_softmax(logits):
    exact = logits.astype(np.float64)
    return exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))


def top(logits, count):
    logprobs = log_softmax(logits)
    ids = np.argsort(-logprobs, axis=1, kind="stable")[:, :count]
    chosen = np.take_along_axis(logprobs, ids, axis=1).astype(np.float32)
    return NextTokenLogprobs(ids.astype(np.int64), chosen)


def test_figures_of_two_positions_by_hand():
    reference = np.log(np.array([[0.5, 0.25, 0.25], [0.4, 0.3, 0.3]], np.float32))
    form = np.log(np.array([[0.5, 0.25, 0.25], [0.3, 0.4, 0.3]], np.float32))
    tally = Tally()
    tally.add_logits(reference, form)
    figures = tally.figures()
    assert figures["greedy_agreement"] == 0.5
    assert figures["same_answers"] == 0.0
    assert figures["max_kl"] == pytest.approx(0.4 * np.log(4 / 3) + 0.3 * np.log(3 / 4), rel=1e-6)
    assert figures["mean_kl"] == pytest.approx(figures["max_kl"] / 2, rel=1e-6)
    assert tally.largest_dlogit == pytest.approx(np.log(4 / 3), rel=1e-6)


def test_a_near_tie_counts_for_the_limit_but_not_as_clear():
    tally = Tally()
    tally.add_logits(
        np.array([[1.0, 1.005, 0.0], [3.0, 0.0, 0.0]], np.float32),
        np.array([[1.005, 1.0, 0.0], [3.0, 0.0, 0.0]], np.float32),
    )
    figures = tally.figures()
    assert (figures["greedy_agreement"], figures["clear_agreement"]) == (0.5, 1.0)
    assert figures["clear_positions"] == 1


@given(LOGITS, LOGITS, st.integers(1, 12))
def test_the_top_k_divergence_never_exceeds_the_full_one(reference, form, count):
    full, coarse = Tally(), Tally()
    full.add_logits(reference, form)
    coarse.add_top(reference, top(form, count))
    for whole, bound in zip(full.divergences, coarse.divergences, strict=True):
        assert bound <= whole + 1e-5 * max(1.0, whole)


@given(LOGITS)
def test_a_form_equal_to_the_reference_is_perfect_either_way(logits):
    for add in ("logits", "top"):
        tally = Tally()
        if add == "logits":
            tally.add_logits(logits, logits.copy())
            assert tally.figures()["greedy_agreement"] == 1.0
        else:
            tally.add_top(logits, top(logits, 4))
        assert max(tally.divergences) < 1e-5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_fail_the_form(bad):
    reference = np.zeros((1, 3), np.float32)
    with pytest.raises(ParityError, match="not finite"):
        Tally().add_logits(reference, np.array([[0.0, bad, 0.0]], np.float32))
    found = NextTokenLogprobs(np.array([[0]], np.int64), np.array([[bad]], np.float32))
    with pytest.raises(ParityError, match="not finite"):
        Tally().add_top(reference, found)


def test_another_vocabulary_fails_the_form():
    with pytest.raises(ParityError, match="4 tokens, the trained one 3"):
        Tally().add_logits(np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32))


def parity(form, agreement, limit, perplexity=2.0):
    return FormParity(
        form=form,
        greedy_agreement=agreement,
        clear_agreement=1.0,
        mean_kl=0.125,
        max_kl=0.5,
        kl="all tokens",
        max_abs_dlogit=None,
        max_abs_dlogprob=0.25,
        perplexity=perplexity,
        reference_perplexity=2.0,
        given_tokens=40,
        same_answers=0.5,
        positions=200,
        clear_positions=190,
        prompts=8,
        limits={"greedy_agreement": limit, "mean_kl": 0.5, "perplexity_ratio": 1.5},
        renderer_fingerprint="f",
        stops_checked=0,
        engine="e",
        sha256={},
        seconds=1.0,
    )


def test_all_forms_below_their_limit_are_named_with_figure_and_limit():
    measured = {
        "merged": parity("merged", 0.985, 0.99),
        "gguf-f16": parity("gguf-f16", 0.99, 0.99),
        "gguf-q8_0": parity("gguf-q8_0", 0.9, 0.97),
    }
    with pytest.raises(ParityError) as caught:
        refuse_below(measured, {"adapter": "no chat template"})
    what = caught.value.what
    assert "merged: greedy agreement 0.9850 is below the limit 0.99" in what
    assert "gguf-q8_0: greedy agreement 0.9000 is below the limit 0.97" in what
    assert "adapter: no chat template" in what
    assert "gguf-f16" not in what
    assert "export.limits.merged.FIGURE" in caught.value.fix


def test_forms_at_their_limit_pass():
    refuse_below({"merged": parity("merged", 0.99, 0.99)}, {})
