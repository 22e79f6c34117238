"""Quality of the forms against their size: as a PNG, and in the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Point", "draw_png", "draw_terminal", "figure_of", "span_of"]

Point = tuple[str, int, float, tuple[float, float]]
"""Form, bytes, accuracy (0 to 1), its interval."""


LEAST_SPAN = 10.0
"""Points that the axis of right answers shows at least: without a difference it would have no length."""
_MARGIN = 0.05


def draw_png(points: Sequence[Point], confidence: float, path: Path) -> None:
    """Accuracy with its interval against megabytes."""
    figure_of(points, confidence).savefig(path, format="png", dpi=120)


def span_of(lowest: float, highest: float) -> tuple[float, float]:
    """From where to where an axis of per cents goes that shows these, some room around them included."""
    room = max((highest - lowest) * _MARGIN, (LEAST_SPAN - (highest - lowest)) / 2)
    low, high = max(0.0, lowest - room), min(100.0, highest + room)
    low, high = max(0.0, min(low, high - LEAST_SPAN)), min(100.0, max(high, low + LEAST_SPAN))
    edge = (high - low) * _MARGIN
    # A marker at 0 or 100 would be cut in two.
    return low - edge, high + edge


def figure_of(points: Sequence[Point], confidence: float) -> Figure:
    """The drawing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for form, size, accuracy, (low, high) in sorted(points, key=lambda point: point[1]):
        at, middle = size / 1e6, 100 * accuracy
        axes.errorbar(
            at,
            middle,
            yerr=[[max(0.0, middle - 100 * low)], [max(0.0, 100 * high - middle)]],
            fmt="o",
            capsize=3,
            color="#2c5f8a",
        )
        axes.annotate(form, (at, middle), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="size (MB)",
        ylabel=f"right answers (%), {100 * confidence:g} % interval",
        title="Quality of each form against its size",
    )
    axes.set_xlim(left=0)
    lows, highs = [100 * low for *_, (low, _) in points], [100 * high for *_, (_, high) in points]
    middles = [100 * accuracy for _, _, accuracy, _ in points]
    if points:
        axes.set_ylim(span_of(min(*lows, *middles), max(*highs, *middles)))
    axes.grid(alpha=0.25)
    return figure


def draw_terminal(points: Sequence[Point], width: int = 72) -> str:
    """The same as text, without intervals and colours: a letter a form, told below the picture.

    A legend within it would cover the small forms that are as good as the large ones.
    """
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, 16)
    told = []
    letters = zip(ascii_lowercase, sorted(points, key=lambda point: point[1]), strict=False)
    for letter, (form, size, accuracy, _) in letters:
        figure.draw(figure.signal([size / 1e6], [100 * accuracy], marker=letter))
        told.append(f"{letter} {form}")
    middles = {100 * accuracy for _, _, accuracy, _ in points}
    if len(middles) == 1:
        figure.ruler("y").lim(*span_of(*middles, *middles))
    figure.label("MB", "x")
    figure.label("right answers (%)", "y")
    drawn = str(plotext.uncolorize(str(figure.build())))
    return "\n".join([drawn.rstrip("\n"), *textwrap.wrap(" · ".join(told), width)])
