"""How sure the figures are: intervals, a paired test, and what this many rows can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

__all__ = [
    "Comparison",
    "Gain",
    "Pairs",
    "Score",
    "Verdict",
    "bootstrap_gain",
    "compare",
    "detectable_gain",
    "mcnemar_p_value",
    "score_gain",
    "smallest_telling_n",
    "wilson_interval",
]

Verdict = Literal["better", "worse", "cannot tell"]
POWER = 0.8


@dataclass(frozen=True)
class Score:
    """How many of `n` answers are right.

    Attributes:
        accuracy: share, 0 to 1.
        interval: Wilson interval of the share.
    """

    correct: int
    n: int
    accuracy: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, correct: int, n: int, confidence: float) -> Score:
        """Score of `correct` out of `n` >= 1."""
        return cls(correct, n, correct / n, wilson_interval(correct, n, confidence))


@dataclass(frozen=True)
class Pairs:
    """Rows by what base and tuned model made of them."""

    won: int
    lost: int
    both_right: int
    both_wrong: int

    @classmethod
    def of(cls, base: Sequence[bool], tuned: Sequence[bool]) -> Pairs:
        """Count the four outcomes; `base` and `tuned` have one entry a row, in the same order."""
        seen = list(zip(base, tuned, strict=True))
        return cls(
            won=seen.count((False, True)),
            lost=seen.count((True, False)),
            both_right=seen.count((True, True)),
            both_wrong=seen.count((False, False)),
        )

    @property
    def n(self) -> int:
        """All rows."""
        return self.won + self.lost + self.both_right + self.both_wrong


@dataclass(frozen=True)
class Gain:
    """Tuned minus base accuracy, in percentage points, with its interval.

    Attributes:
        resamples: of the paired bootstrap; 0 where the interval is that of a score test.
        seed: of the resamples.
    """

    points: float
    interval_points: tuple[float, float]
    confidence: float
    resamples: int
    seed: int

    @property
    def method(self) -> str:
        """How the interval was made, for facts and reports."""
        if not self.resamples:
            return "score interval of paired shares (Tango 1998), as all rows came out alike"
        return f"paired bootstrap, {self.resamples} resamples, seed {self.seed}"


@dataclass(frozen=True)
class Comparison:
    """All that is known about base against tuned.

    Attributes:
        p_value: exact two-sided McNemar test.
        detectable_points: smallest true gain that rows like these would show four times in five;
            None when not even a gain of 100 points would.
    """

    base: Score
    tuned: Score
    pairs: Pairs
    gain: Gain
    p_value: float
    verdict: Verdict
    detectable_points: float | None

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Comparison:
        """The comparison that `as_dict` wrote."""

        def score(raw: dict[str, Any]) -> Score:
            return Score(**{**raw, "interval": tuple(raw["interval"])})

        gain = {**values["gain"], "interval_points": tuple(values["gain"]["interval_points"])}
        return cls(
            base=score(values["base"]),
            tuned=score(values["tuned"]),
            pairs=Pairs(**values["pairs"]),
            gain=Gain(**gain),
            p_value=values["p_value"],
            verdict=values["verdict"],
            detectable_points=values["detectable_points"],
        )


def compare(
    base: Sequence[bool], tuned: Sequence[bool], *, confidence: float, resamples: int, seed: int
) -> Comparison:
    """Compare two models on the same rows.

    The verdict is "better" or "worse" when the gain's bootstrap interval leaves out 0 and the exact
    test rejects equality at the same level. Both, because with few differing rows the bootstrap is
    too sure: four rows won and none lost of 300 give an interval above 0, though four throws of a
    fair coin fall the same way in one of eight cases.

    Args:
        base: whether each row was right, in the order of the rows.
        tuned: the same for the tuned model.
        confidence: level of every interval, such as 0.95.
        resamples: bootstrap resamples.
        seed: of the resamples.

    Raises:
        ValueError: no rows, or lists of different lengths.
    """
    pairs = Pairs.of(base, tuned)
    if pairs.n == 0:
        raise ValueError("nothing to compare: no rows")
    if pairs.n in (pairs.won, pairs.lost, pairs.both_right + pairs.both_wrong):
        gain = score_gain(pairs, confidence=confidence)
    else:
        gain = bootstrap_gain(pairs, confidence=confidence, resamples=resamples, seed=seed)
    p_value = mcnemar_p_value(pairs.won, pairs.lost)
    return Comparison(
        base=Score.of(pairs.lost + pairs.both_right, pairs.n, confidence),
        tuned=Score.of(pairs.won + pairs.both_right, pairs.n, confidence),
        pairs=pairs,
        gain=gain,
        p_value=p_value,
        verdict=_verdict(gain, p_value),
        detectable_points=detectable_gain(pairs.n, pairs.won + pairs.lost, confidence),
    )


def _verdict(gain: Gain, p_value: float) -> Verdict:
    low, high = gain.interval_points
    if p_value >= 1 - gain.confidence or low <= 0 <= high:
        return "cannot tell"
    return "better" if low > 0 else "worse"


def wilson_interval(correct: int, n: int, confidence: float) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, JASA 22:209), without continuity correction.

    Raises:
        ValueError: `n` < 1 or `correct` outside 0..n.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} is no share")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


def mcnemar_p_value(won: int, lost: int) -> float:
    """Exact two-sided McNemar test: rows that differ are won or lost like throws of a fair coin.

    Twice the smaller tail of Binomial(won + lost, 1/2), at most 1 (McNemar 1947, Psychometrika
    12:153; the exact form is the sign test).
    """
    n, fewer = won + lost, min(won, lost)
    term = tail = 1
    for k in range(1, fewer + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def bootstrap_gain(pairs: Pairs, *, confidence: float, resamples: int, seed: int) -> Gain:
    """The gain and its percentile interval under resampling of rows (Efron 1979).

    A row is resampled with both its answers, which keeps the pairs. As a row's difference is -1, 0
    or 1, drawing n rows with replacement is one draw from a multinomial over the three counts: the
    same distribution as drawing row by row, without an (n x resamples) array.
    """
    n = pairs.n
    counts = np.array([pairs.won, pairs.lost, n - pairs.won - pairs.lost], dtype=np.float64)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    points = 100.0 * (drawn[:, 0] - drawn[:, 1]) / n
    low, high = np.quantile(points, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Gain(
        points=100.0 * (pairs.won - pairs.lost) / n,
        interval_points=(float(low), float(high)),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def score_gain(pairs: Pairs, *, confidence: float) -> Gain:
    """The gain and its score interval where all rows came out alike: all won, all lost, or none different.

    Every resample of such rows is the same, and the bootstrap would be sure after a single row. The
    score interval (Tango 1998, Statistics in Medicine 17:891) is all gains d that a test of the paired
    rows does not reject; with n rows alike its ends are z^2 / (n + z^2) on both sides of 0, and
    (n - z^2) / (n + z^2) where all were won.
    """
    n, z = pairs.n, NormalDist().inv_cdf(0.5 + confidence / 2)
    reach = 100.0 * z * z / (n + z * z)
    points = 100.0 * (pairs.won - pairs.lost) / n
    low, high = (points - reach, points + reach) if points == 0 else (points - 2 * reach, points)
    if points < 0:
        low, high = points, points + 2 * reach
    return Gain(points, (low, high), confidence, resamples=0, seed=0)


def detectable_gain(
    n: int, differing: int, confidence: float, power: float = POWER
) -> float | None:
    """The smallest true gain, in points, that a paired test of n rows finds with this power.

    Normal approximation of McNemar's test (Connor 1987, Biometrics 43:207): with a share psi of
    differing rows and a true gain d, the test needs
    n = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2 rows. A gain makes at least that share of rows
    differ, so psi is the observed share or d, whichever is larger.

    Returns None when even a gain of 100 points would not be found.
    """
    if n < smallest_telling_n(confidence):
        return None
    z_test = NormalDist().inv_cdf(0.5 + confidence / 2)
    z_power = NormalDist().inv_cdf(power)

    def rows_needed(gain: float) -> float:
        psi = max(differing / n, gain)
        return ((z_test * math.sqrt(psi) + z_power * math.sqrt(psi - gain * gain)) / gain) ** 2

    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if rows_needed(middle) <= n:
            high = middle
        else:
            low = middle
    return 100.0 * high


def smallest_telling_n(confidence: float) -> int:
    """Fewest rows with which the exact test can reject at all: all of them won, none lost."""
    return math.floor(1 - math.log2(1 - confidence)) + 1
