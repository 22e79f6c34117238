"""The figures of the certificate, against computations by hand and exact bounds."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tunesmith.config import LimitConfig
from tunesmith.engine import NextTokenLogprobs
from tunesmith.errors import ParityError
from tunesmith.export.forms import KINDS, Limits, finite
from tunesmith.export.parity import CLEAR_MARGIN_NATS, FormParity, Tally, refuse_below
from tunesmith.export.reference import Given, Reference, own_logprobs

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


@given(LOGITS)
def test_a_position_is_clear_where_the_best_leads_the_second_whatever_the_order(logits):
    tally = Tally()
    tally.add_logits(logits, logits)
    lead = [row[-1] - row[-2] for row in np.sort(logits, axis=1)]
    assert tally.clear == [bool(one > CLEAR_MARGIN_NATS) for one in lead]


@given(LOGITS, LOGITS, st.integers(1, 12))
def test_the_top_k_divergence_never_exceeds_the_full_one(reference, form, count):
    full, coarse = Tally(), Tally()
    full.add_logits(reference, form)
    coarse.add_top(reference, top(form, count))
    for whole, bound in zip(full.divergences, coarse.divergences, strict=True):
        assert bound <= whole + 1e-5 * max(1.0, whole)


def test_the_tokens_that_are_not_reported_count_as_one_by_hand():
    reference = np.log(np.array([[0.5, 0.375, 0.125]], np.float32))
    reported = np.log(np.array([[0.25]], np.float32))
    tally = Tally()
    tally.add_top(reference, NextTokenLogprobs(np.array([[0]]), reported))
    assert tally.divergences == pytest.approx(
        [0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)], rel=1e-4
    )


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
        asked="a",
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
    assert "merged: greedy agreement 0.985 is below the limit 0.99" in what
    assert "gguf-q8_0: greedy agreement 0.9 is below the limit 0.97" in what
    assert "adapter: no chat template" in what
    assert "gguf-f16" not in what
    assert "--set export.limits.merged.greedy_agreement=VALUE, and so on" in caught.value.fix
    assert caught.value.fix.count("--set") == 1
    assert len(caught.value.fix) < 220


def test_no_limit_is_offered_for_what_has_no_figure():
    with pytest.raises(ParityError) as caught:
        refuse_below({}, {"adapter": "no chat template"})
    assert "leave the form out" in caught.value.fix
    assert "--set" not in caught.value.fix


def test_forms_at_their_limit_pass():
    refuse_below({"merged": parity("merged", 0.99, 0.99)}, {})


# -- limits ----------------------------------------------------------------------------------------

FIGURES = ("greedy_agreement", "mean_kl", "perplexity_ratio", "max_abs_dlogit")
LIMITS = st.builds(
    Limits,
    greedy_agreement=st.floats(0, 1),
    mean_kl=st.floats(0, 100),
    perplexity_ratio=st.floats(1, 100),
    max_abs_dlogit=st.one_of(st.just(math.inf), st.floats(0, 1000)),
)


def judged(limits, **figures):
    """What is beyond its limit, of a form with these figures."""
    figures = {"greedy_agreement": 1.0, "mean_kl": 0.0, "max_abs_dlogit": None} | figures
    ratio = figures.pop("perplexity_ratio", None)
    if ratio is not None:
        figures |= {"perplexity": ratio, "reference_perplexity": 1.0}
    else:
        figures |= {"perplexity": None, "reference_perplexity": None}
    return dataclasses.replace(parity("x", 1.0, 0.0), limits=finite(limits), **figures).beyond()


@given(LIMITS)
def test_every_figure_passes_at_exactly_its_limit(limits):
    figures = {name: getattr(limits, name) for name in FIGURES}
    if math.isinf(limits.max_abs_dlogit):
        figures["max_abs_dlogit"] = None
    assert judged(limits, **figures) == []


@given(LIMITS, st.sampled_from(FIGURES))
def test_a_figure_just_beyond_its_limit_is_the_only_one_named(limits, name):
    figures = {name: getattr(limits, name) for name in FIGURES}
    limit = figures[name]
    down = name == "greedy_agreement"
    if math.isinf(limit) or (down and limit == 0.0):
        return
    figures[name] = math.nextafter(limit, -math.inf if down else math.inf)
    if name == "perplexity_ratio":
        figures[name] = limit * (1 + 1e-9)
    if math.isinf(figures["max_abs_dlogit"]):
        figures["max_abs_dlogit"] = None
    found = judged(limits, **figures)
    assert len(found) == 1
    words = {
        "greedy_agreement": "greedy agreement",
        "mean_kl": "mean KL",
        "perplexity_ratio": "perplexity over the trained model's",
        "max_abs_dlogit": "largest difference of a logit",
    }
    assert found[0].startswith(words[name])
    assert f"limit {limit:g}" in found[0]


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [("greedy_agreement", 0.98999999, 0.99), ("perplexity_ratio", 1.0000000004, 1.0)],
)
def test_a_figure_is_never_told_as_the_limit_that_it_misses(name, value, limit):
    (told,) = judged(dataclasses.replace(Limits(0.0, 9.0, 9.0), **{name: limit}), **{name: value})
    assert f" {value} " in told


def test_the_file_with_the_figures_is_named(tmp_path):
    with pytest.raises(ParityError) as found:
        refuse_below({"merged": parity("merged", 0.5, 0.99)}, {}, tmp_path / "parity.json")
    assert str(tmp_path / "parity.json") in found.value.fix


@given(LIMITS)
def test_a_form_that_finds_the_answers_likelier_is_held_to_the_same_factor(limits):
    """At 1 / limit it passes, but for rounding."""
    least = 1 / limits.perplexity_ratio
    allowed = min(least * (1 + 1e-12), limits.perplexity_ratio)
    assert judged(limits, perplexity_ratio=allowed) == []
    (found,) = judged(limits, perplexity_ratio=least * (1 - 1e-9))
    assert found.startswith("perplexity over the trained model's")


def test_where_answers_are_unlikely_the_factor_may_count_for_each_nat():
    limits = finite(Limits(0.0, 9.0, 1.1, most_nats=8.0))
    nats = 5.0
    figures = {"limits": limits, "max_abs_dlogit": None, "reference_perplexity": math.exp(nats)}
    for power, fails in ((4.99, False), (-4.99, False), (5.01, True), (-5.01, True)):
        form = dataclasses.replace(
            parity("x", 1.0, 0.0), **figures, perplexity=math.exp(nats) * 1.1**power
        )
        assert bool(form.beyond()) == fails
    plain = figures | {"limits": finite(Limits(0.0, 9.0, 1.1))}
    for factor, fails in ((1.09, False), (1.11, True), (1 / 1.11, True)):
        form = dataclasses.replace(
            parity("x", 1.0, 0.0), **plain, perplexity=math.exp(nats) * factor
        )
        assert bool(form.beyond()) == fails
    capped = figures | {"limits": finite(Limits(0.0, 9.0, 1.1, most_nats=3.0))}
    form = dataclasses.replace(parity("x", 1.0, 0.0), **capped, perplexity=math.exp(nats) * 1.1**4)
    assert form.beyond()
    sure = dataclasses.replace(parity("x", 1.0, 0.0), **figures | {"reference_perplexity": 1.2})
    assert dataclasses.replace(sure, perplexity=1.2 * 1.11).beyond()
    assert not dataclasses.replace(sure, perplexity=1.2 * 1.09).beyond()


@given(LIMITS)
def test_figures_that_were_not_measured_are_beyond_nothing(limits):
    assert judged(limits, max_abs_dlogit=None, perplexity_ratio=None) == []


@pytest.mark.parametrize("name", FIGURES)
def test_no_number_is_never_within_a_limit(name):
    assert judged(Limits(0.5, 1.0, 2.0, 3.0), **{name: math.nan}) != []


@given(LIMITS, st.sampled_from(FIGURES), st.floats(0.01, 1))
def test_a_recipes_limit_takes_the_place_of_one_and_of_no_other(limits, name, value):
    changed = limits.changed_by(LimitConfig(**{name: value + (name == "perplexity_ratio")}))
    assert getattr(changed, name) == value + (name == "perplexity_ratio")
    for other in set(FIGURES) - {name}:
        assert getattr(changed, other) == getattr(limits, other)
    assert limits.changed_by(None) is limits


def test_a_form_with_fewer_bits_is_never_held_to_more():
    """The defaults loosen from each GGUF form to the next smaller one."""
    order = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
    rows = [KINDS[f"gguf-{name}"].limits for name in order]
    for closer, wider in itertools.pairwise(rows):
        assert closer.greedy_agreement >= wider.greedy_agreement
        assert closer.mean_kl <= wider.mean_kl
        assert closer.perplexity_ratio <= wider.perplexity_ratio


RIGHT_INT8 = {
    "tuned, test rows": (1.0, 0.0002, 1.1241, 4.78, 261.7),
    "tuned, train rows": (1.0, 0.0001, 1.0002, 4.64, 1.0008),
    "tuned, validation rows": (0.992, 0.0035, 1.0063, 6.62, 1.144),
    "untuned": (0.924, 0.0186, 1.0651, 5.4, 17.43),
    "another dataset": (0.979, 0.008, 1.0059, 4.73, 1.074),
    "another dataset, untuned": (0.929, 0.0171, 1.0423, 6.22, 12.74),
}
"""Agreement, KL, perplexity ratio, largest logit, the model's own perplexity (`sensitivity_int8.md`)."""
DAMAGED_INT8 = {
    "all scales of a matrix x 2": (1.0, 0.0018, 1.2165, 20.3, 261.7),
    "all scales of a matrix x 0": (0.995, 0.0143, 0.8234, 23.5, 261.7),
    "a matrix is the next layer's": (0.998, 0.0039, 0.9578, 19.6, 261.7),
    "a norm x 2": (0.998, 0.0081, 1.0144, 17.0, 261.7),
    "the adapter at nine tenths": (1.0, 0.0006, 0.8071, 6.81, 261.7),
}


@pytest.mark.parametrize("name", [*RIGHT_INT8, *DAMAGED_INT8])
def test_the_limits_of_int8_part_right_exports_from_damaged_ones(name):
    """As they were measured; a factor of 1.25 for the perplexity and nothing for the logit let all of these pass."""
    agreement, kl, ratio, logit, perplexity = (RIGHT_INT8 | DAMAGED_INT8)[name]
    form = dataclasses.replace(
        parity("bnb-int8", agreement, 0.0, perplexity * ratio),
        limits=finite(KINDS["bnb-int8"].limits),
        mean_kl=kl,
        max_abs_dlogit=logit,
        reference_perplexity=perplexity,
    )
    assert bool(form.beyond()) == (name in DAMAGED_INT8)


# -- perplexity ------------------------------------------------------------------------------------


@given(LOGITS, st.lists(st.integers(0, 11), min_size=3, max_size=3))
def test_perplexity_is_that_of_a_plain_softmax(logits, tokens):
    wanted = 1.0
    for row, token in zip(logits.astype(np.longdouble), tokens, strict=True):
        wanted *= float(np.exp(row[token]) / np.exp(row).sum())
    tally = Tally()
    tally.add_given(own_logprobs(logits, tokens))
    assert tally.perplexity == pytest.approx(wanted ** (-1 / 3), rel=1e-6)


def test_perplexity_is_of_all_tokens_and_not_the_mean_of_the_answers():
    tally = Tally()
    tally.add_given([math.log(0.5)])
    tally.add_given([math.log(0.1)] * 3)
    assert tally.perplexity == pytest.approx((0.5 * 0.1**3) ** (-1 / 4))
    assert Tally().perplexity is None


def test_an_answer_that_is_impossible_for_the_form_has_a_perplexity_beyond_every_limit():
    tally = Tally()
    tally.add_given([-9000.0, -9000.0])
    assert math.isfinite(tally.perplexity)
    assert judged(Limits(0, 100, 1e9), perplexity_ratio=tally.perplexity)
    with pytest.raises(ParityError, match="not finite"):
        tally.add_given([-math.inf])


# -- what a form was asked -------------------------------------------------------------------------


def test_the_identity_of_a_reference_follows_rows_answers_and_their_probability():
    first = Reference(((1, 2, 3),), (1,), None, Given(((1, 5),), (1,)), -0.5)
    others = [
        dataclasses.replace(first, rows=((1, 2, 4),)),
        dataclasses.replace(first, starts=(2,)),
        dataclasses.replace(first, given=Given(((1, 6),), (1,))),
        dataclasses.replace(first, given=Given((), ())),
        dataclasses.replace(first, given_logprob=-0.25),
    ]
    assert len({one.identity for one in (first, *others)}) == 6
    assert dataclasses.replace(first, logits=np.zeros(3)).identity == first.identity
