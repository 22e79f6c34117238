"""The loss curve as a PNG and in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.telemetry import read_events

__all__ = ["draw_png", "draw_terminal", "read_curve"]

Points = Sequence[tuple[int, float]]


def read_curve(events: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """(step, loss) of training and validation; of a step that was repeated, the last counts."""
    train: dict[int, float] = {}
    validation: dict[int, float] = {}
    for event in read_events(events):
        if event["event"] == "step":
            train[event["step"]] = event["loss_nats"]
        elif event["event"] == "validation":
            validation[event["step"]] = event["validation_loss_nats"]
    return sorted(train.items()), sorted(validation.items())


def draw_png(train: Points, validation: Points, path: Path, title: str, unit: str) -> None:
    """Both curves against the step, as a PNG; the loss is a mean over `unit`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*_columns(train), color="#8aa4c8", linewidth=1, label="training, each step")
    axes.plot(*_columns(validation), color="#c0392b", marker="o", label="validation, all rows")
    axes.set(xlabel="optimizer step", ylabel=f"loss (nats a {unit})", title=title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)


def draw_terminal(train: Points, validation: Points, unit: str, width: int = 72) -> str:
    """The same as text, without colours."""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, 16)
    for points, label, marker in ((train, "training", "."), (validation, "validation", "o")):
        signal = figure.signal(*_columns(points), marker=marker)
        figure.draw(signal.label(label).lines())
    figure.label("optimizer step", "x")
    figure.label(f"nats a {unit}", "y")
    return str(plotext.uncolorize(str(figure.build())))


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
