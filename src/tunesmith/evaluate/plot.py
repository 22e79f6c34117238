"""Where things lie in the report's plots, in percent of their width."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunesmith.evaluate.comparison import Comparison
from tunesmith.evaluate.wording import interval_text, percent, points_text

__all__ = ["Axis", "Mark", "accuracy_axis", "gain_axis"]


@dataclass(frozen=True)
class Mark:
    """A figure with its interval: a dot and a line.

    Attributes:
        at, low, high: percent of the plot's width.
        text: the same in words.
    """

    name: str
    kind: str
    at: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A plot.

    Attributes:
        ticks: (percent of the width, label).
        zero: where 0 lies, when it is worth a line of its own.
    """

    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float | None


def accuracy_axis(comparison: Comparison) -> Axis:
    """Accuracies from 0 to 100 %."""
    marks = tuple(
        Mark(
            name,
            name.lower(),
            100 * score.accuracy,
            100 * score.interval[0],
            100 * score.interval[1],
            f"{percent(score.accuracy)} ({score.correct} of {score.n}; "
            f"{interval_text(score.interval)})",
        )
        for name, score in (("Base", comparison.base), ("Tuned", comparison.tuned))
    )
    ticks = tuple((float(at), f"{at} %") for at in (0, 25, 50, 75, 100))
    return Axis(marks, ticks, None)


def gain_axis(comparison: Comparison) -> Axis:
    """The gain on an axis that holds 0 and the whole interval, with round ends."""
    gain = comparison.gain
    low, high = (min(0.0, gain.interval_points[0]), max(0.0, gain.interval_points[1]))
    step = _round_step(max(high - low, 1.0) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:  # nothing was won or lost: an axis around 0
        first, last = first - 1, last + 1
    start, width = first * step, (last - first) * step

    def place(points: float) -> float:
        return 100 * (points - start) / width

    mark = Mark(
        "Gain",
        "gain",
        place(gain.points),
        place(gain.interval_points[0]),
        place(gain.interval_points[1]),
        f"{points_text(gain.points)} ({interval_text(gain.interval_points, scale=1, sign=True)})",
    )
    ticks = tuple(
        (place(index * step), f"{index * step:+g}".replace("-", "\N{MINUS SIGN}") if index else "0")
        for index in range(first, last + 1)
    )
    return Axis((mark,), ticks, place(0.0))


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50 that is at least `least`."""
    return next((float(step) for step in (1, 2, 5, 10, 20) if step >= least), 50.0)
