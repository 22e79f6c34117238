"""The figures in plain words, the same in the terminal and in the report."""

from __future__ import annotations

from tunesmith.evaluate.comparison import Comparison

__all__ = [
    "evidence",
    "explanation",
    "headline",
    "interval_text",
    "p_text",
    "percent",
    "points_text",
]


def percent(share: float) -> str:
    """A share as "61.3 %"."""
    return f"{100 * share:.1f} %"


def points_text(points: float) -> str:
    """A gain as "+12.3 points"."""
    return f"{points:+.1f} points".replace("-", "\N{MINUS SIGN}")


def interval_text(
    interval: tuple[float, float], *, scale: float = 100.0, sign: bool = False
) -> str:
    """An interval as "58.0 to 64.4", times `scale`."""
    form = "+.1f" if sign else ".1f"
    text = f"{scale * interval[0]:{form}} to {scale * interval[1]:{form}}"
    return text.replace("-", "\N{MINUS SIGN}")


def p_text(p_value: float) -> str:
    """A p-value as a reader wants it: "p < 0.0001" or "p = 0.0312"."""
    if p_value < 1e-4:
        return "p < 0.0001"
    return f"p = {p_value:.4f}" if p_value < 0.1 else f"p = {p_value:.2f}"


def headline(comparison: Comparison) -> str:
    """The verdict in a few words."""
    points = comparison.gain.points
    if comparison.verdict == "cannot tell":
        return f"Cannot tell ({points_text(points)})"
    return f"{comparison.verdict.capitalize()} by {abs(points):.1f} points"


def evidence(comparison: Comparison) -> str:
    """What the verdict rests on: interval and number of rows."""
    gain = comparison.gain
    return (
        f"{100 * gain.confidence:g} % interval "
        f"{interval_text(gain.interval_points, scale=1, sign=True)} points, "
        f"n = {comparison.pairs.n}"
    )


def explanation(comparison: Comparison) -> str:
    """Why the verdict is what it is, and what this many rows can show."""
    pairs = comparison.pairs
    text = (
        f"Of {pairs.n} held-out rows the tuned model won {pairs.won} and lost {pairs.lost} "
        f"(exact McNemar test, {p_text(comparison.p_value)})."
    )
    if comparison.detectable_points is None:
        return f"{text} So few rows cannot show any difference: use more test rows."
    return (
        f"{text} With this many rows, and as many that differ, a true gain of about "
        f"{comparison.detectable_points:.1f} points is found four times in five; a smaller one may "
        "stay hidden."
    )
