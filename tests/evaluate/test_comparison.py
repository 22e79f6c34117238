"""Intervals, the paired test and the verdict, against scipy and against simulation."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from tunesmith.evaluate.comparison import (
    Comparison,
    Pairs,
    bootstrap_gain,
    compare,
    detectable_gain,
    mcnemar_p_value,
    score_gain,
    smallest_telling_n,
    wilson_interval,
)

LEVELS = st.sampled_from([0.8, 0.9, 0.95, 0.99])


def pairs(won, lost, both_right=0, both_wrong=0):
    return Pairs(won, lost, both_right, both_wrong)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), LEVELS)
def test_wilson_interval_equals_scipys(share, confidence):
    correct, n = share
    expected = stats.binomtest(correct, n).proportion_ci(confidence, method="wilson")
    found = wilson_interval(correct, n, confidence)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), LEVELS)
def test_wilson_interval_holds_the_share_and_mirrors_when_right_and_wrong_are_swapped(share, level):
    correct, n = share
    low, high = wilson_interval(correct, n, level)
    assert 0 <= low <= correct / n <= high <= 1
    mirrored = wilson_interval(n - correct, n, level)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_what_is_no_share_has_no_interval(correct, n):
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(correct, n, 0.95)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_scipys_exact_binomial_test(won, lost):
    expected = stats.binomtest(won, won + lost, 0.5).pvalue if won + lost else 1.0
    assert mcnemar_p_value(won, lost) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_p_value(won, lost) == mcnemar_p_value(lost, won)


def test_mcnemar_does_not_overflow_with_many_rows():
    assert mcnemar_p_value(30_000, 29_900) == pytest.approx(
        stats.binomtest(30_000, 59_900, 0.5).pvalue, rel=1e-6
    )
    assert mcnemar_p_value(20_000, 0) == 0.0


@pytest.mark.parametrize(
    ("won", "lost", "same"), [(60, 12, 228), (3, 40, 57), (25, 25, 0), (9, 1, 190)]
)
def test_bootstrap_interval_equals_scipys_that_resamples_row_by_row(won, lost, same):
    rows = np.repeat([100.0, -100.0, 0.0], [won, lost, same])
    expected = stats.bootstrap(
        (rows,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    )
    found = bootstrap_gain(pairs(won, lost, same), confidence=0.95, resamples=20_000, seed=0)
    step = 100.0 / (won + lost + same)  # gains are multiples of this
    tolerance = 1.01 * step + 0.03 * expected.standard_error
    interval = expected.confidence_interval
    assert found.interval_points == pytest.approx((interval.low, interval.high), abs=tolerance)
    assert found.points == pytest.approx(rows.mean())


def test_resamples_have_the_variance_of_drawing_rows():
    won, lost, n = 60, 12, 300
    rows = np.repeat([1.0, -1.0, 0.0], [won, lost, n - won - lost])
    low, high = bootstrap_gain(
        pairs(won, lost, n - won - lost), confidence=0.6827, resamples=200_000, seed=3
    ).interval_points
    assert (high - low) / 2 == pytest.approx(100 * rows.std() / math.sqrt(n), rel=0.05)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    counts = pairs(37, 11, 400, 552)
    first, second, other = (
        bootstrap_gain(counts, confidence=0.95, resamples=999, seed=seed) for seed in (5, 5, 6)
    )
    assert first == second
    assert first.interval_points != other.interval_points


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60), LEVELS)
def test_the_interval_holds_the_gain_and_mirrors_when_models_are_swapped(won, lost, same, level):
    gain = bootstrap_gain(pairs(won, lost, same), confidence=level, resamples=2_000, seed=0)
    low, high = gain.interval_points
    assert -100 <= low <= gain.points + 1e-9
    assert gain.points - 1e-9 <= high <= 100
    swapped = bootstrap_gain(pairs(lost, won, same), confidence=level, resamples=2_000, seed=1)
    slack = 1.01 * 100 / (won + lost + same) + 0.2 * (high - low)
    assert swapped.interval_points == pytest.approx((-high, -low), abs=slack)


@pytest.mark.parametrize("n", [1, 4, 24, 279])
@pytest.mark.parametrize("alike", ["won", "lost", "none"])
def test_rows_that_are_all_alike_have_the_interval_of_the_score_test(n, alike):
    counts = {"won": pairs(n, 0), "lost": pairs(0, n), "none": pairs(0, 0, n // 3, n - n // 3)}[
        alike
    ]
    found = compare([False] * n, [True] * n, confidence=0.95, resamples=100, seed=0).gain
    if alike != "won":
        found = score_gain(counts, confidence=0.95)
    low, high = found.interval_points
    assert -100 - 1e-9 <= low <= found.points <= high <= 100 + 1e-9
    assert high - low > 0
    ends = [end / 100 for end in (low, high) if end != found.points]
    assert len(ends) == (2 if alike == "none" else 1)
    for end in ends:
        assert abs(score(counts, end)) == pytest.approx(stats.norm.ppf(0.975), rel=1e-4)


def score(counts: Pairs, gain: float) -> float:
    """Observed minus assumed gain by its deviation, where the shares are the likeliest ones of that gain."""
    n, same = counts.n, counts.both_right + counts.both_wrong

    def shares(lost):
        return np.array([lost + gain, lost, 1 - 2 * lost - gain])

    def unlikely(lost):
        return -sum(
            k * math.log(max(p, 1e-300))
            for k, p in zip((counts.won, counts.lost, same), shares(lost), strict=True)
            if k
        )

    bounds = (max(0.0, -gain), (1 - gain) / 2)
    lost = optimize.minimize_scalar(
        unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    ).x
    won, lost, _ = shares(lost)
    return ((counts.won - counts.lost) / n - gain) / math.sqrt((won + lost - gain * gain) / n)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_counts_accuracies_gain_and_verdict_belong_together(rows):
    base, tuned = [b for b, _ in rows], [t for _, t in rows]
    found = compare(base, tuned, confidence=0.95, resamples=500, seed=0)
    assert found.pairs.n == len(rows) == found.base.n == found.tuned.n
    assert (found.base.correct, found.tuned.correct) == (sum(base), sum(tuned))
    difference = 100 * (found.tuned.accuracy - found.base.accuracy)
    assert found.gain.points == pytest.approx(difference)
    if found.verdict == "better":
        assert found.gain.interval_points[0] > 0
        assert found.p_value < 0.05
    if found.verdict == "worse":
        assert found.gain.interval_points[1] < 0
        assert found.p_value < 0.05
    assert Comparison.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def verdict(won, lost, same):
    base = [False] * won + [True] * lost + [False] * same
    tuned = [True] * won + [False] * lost + [False] * same
    return compare(base, tuned, confidence=0.95, resamples=5_000, seed=0).verdict


def test_clear_wins_and_losses_are_called_so():
    assert verdict(100, 10, 190) == "better"
    assert verdict(10, 100, 190) == "worse"
    assert verdict(30, 28, 242) == "cannot tell"
    assert verdict(0, 0, 300) == "cannot tell"


def test_a_handful_of_wins_is_not_called_better_though_the_bootstrap_alone_would():
    gain = bootstrap_gain(pairs(4, 0, 296), confidence=0.95, resamples=10_000, seed=0)
    assert gain.interval_points[0] > 0
    assert verdict(4, 0, 296) == "cannot tell"
    assert verdict(1, 0, 0) == "cannot tell"


def test_equal_models_are_called_different_in_at_most_one_of_twenty_comparisons():
    rng = np.random.default_rng(0)
    for n, share in ((40, 0.3), (300, 0.02), (300, 0.4)):
        won, lost, same = rng.multinomial(n, [share / 2, share / 2, 1 - share], size=800).T
        alarms = 0
        for w, lo, s in zip(won.tolist(), lost.tolist(), same.tolist(), strict=True):
            base = [False] * w + [True] * lo + [False] * s
            tuned = [True] * w + [False] * lo + [False] * s
            found = compare(base, tuned, confidence=0.95, resamples=300, seed=0)
            alarms += found.verdict != "cannot tell"
        assert alarms / 800 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 800), (n, share)


@pytest.mark.parametrize(("n", "share"), [(300, 0.2), (300, 0.05), (1_000, 0.3), (80, 0.5)])
def test_the_detectable_gain_is_found_about_four_times_in_five(n, share):
    gain = detectable_gain(n, round(share * n), 0.95)
    assert gain is not None
    differing = max(share, gain / 100)
    won_share, lost_share = (differing + gain / 100) / 2, (differing - gain / 100) / 2
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [won_share, lost_share, 1 - differing], size=3_000)
    found = np.mean([mcnemar_p_value(w, lo) < 0.05 for w, lo, _ in draws.tolist()])
    # The exact test is a little stricter than the approximation that plans for it.
    assert 0.68 < found < 0.87


def test_more_rows_detect_smaller_gains_and_more_differing_rows_hide_them():
    few, many = detectable_gain(100, 20, 0.95), detectable_gain(1_000, 200, 0.95)
    noisy = detectable_gain(100, 60, 0.95)
    assert few is not None
    assert many is not None
    assert noisy is not None
    assert many < few < noisy


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_fewest_rows_that_can_tell_are_those_with_which_the_test_can_reject(confidence):
    n = smallest_telling_n(confidence)
    assert mcnemar_p_value(n, 0) < 1 - confidence
    assert mcnemar_p_value(n - 1, 0) >= 1 - confidence
    assert detectable_gain(n - 1, 0, confidence) is None
    assert detectable_gain(n, 0, confidence) is not None


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        compare([], [], confidence=0.95, resamples=100, seed=0)
    with pytest.raises(ValueError, match="zip"):
        compare([True], [], confidence=0.95, resamples=100, seed=0)
