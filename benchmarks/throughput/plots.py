"""Plots of the journal."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import scenarios

Records = list[dict[str, Any]]
OURS, THEIRS = "#1f6f8b", "#b9b4a7"
PANELS = {
    "throughput": {
        "lora": ("tokens_per_second", "tokens/s", 1),
        "prefix": ("rows_per_second", "rows/s", 1),
        "dpo": ("rows_per_second", "pairs/s", 1),
        "qlora": ("tokens_per_second", "tokens/s", 1),
    },
    "memory": dict.fromkeys(
        ("lora", "prefix", "dpo", "qlora", "full"), ("peak_tree_bytes", "peak GiB", 2**30)
    ),
}


def bars(records: Records, what: str, path: Path) -> None:
    """One panel a scenario, a bar a contestant: the median, with a line from the lowest to the highest run."""
    from matplotlib.figure import Figure

    panels = {
        name: found
        for name, (key, _, unit) in PANELS[what].items()
        if (found := _values(records, name, key, unit))
    }
    if not panels:
        return
    figure = Figure(figsize=(9, 1.0 + 0.45 * sum(map(len, panels.values())) + 0.6 * len(panels)))
    heights = [len(found) + 1 for found in panels.values()]
    axes = figure.subplots(len(panels), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)
    for (name, found), (axis,) in zip(panels.items(), axes, strict=True):
        labels = list(found)
        middles = [statistics.median(values) for values in found.values()]
        spread = [
            [m - min(v) for m, v in zip(middles, found.values(), strict=True)],
            [max(v) - m for m, v in zip(middles, found.values(), strict=True)],
        ]
        colors = [OURS if label.startswith("tunesmith") else THEIRS for label in labels]
        axis.barh(labels, middles, xerr=spread, color=colors, ecolor="#444444", height=0.7)
        axis.invert_yaxis()
        axis.set_title(f"{name}: {PANELS[what][name][1]}", loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _values(records: Records, scenario: str, key: str, unit: float) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in records:
        if record["scenario"] == scenario and "error" not in record and record.get(key):
            found.setdefault(record["contestant"], []).append(record[key] / unit)
    return found


def whole_step(run: dict[str, Any]) -> float:
    """Median seconds of the steps but the first (cold) and the last (what is left); of two the first."""
    seconds = run["step_seconds"]
    return statistics.median(seconds[1:-1] or seconds[:1])


def growth(records: Records, path: Path) -> None:
    """Time and memory over each axis, both logarithmic, with a dashed line of slope one."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    runs = [r for r in records if r["scenario"] == "growth" and "error" not in r]
    names = [axis for axis in scenarios.AXES if sum(r["note"] == axis for r in runs) > 1]
    if not names:
        return
    figure = Figure(figsize=(3.1 * len(names), 5.6))
    axes = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        points = sorted((r for r in runs if r["note"] == name), key=lambda r: r["settings"][name])
        wide = name == "width"
        x = [p["parameters"] / 1e9 if wide else p["settings"][name] for p in points]
        time = [whole_step(p) for p in points]
        peak = [p["peak_tree_bytes"] / 2**30 for p in points]
        for row, (y, shown) in enumerate(((time, "seconds a step"), (peak, "peak GiB"))):
            axis = axes[row][column]
            axis.loglog(x, y, "o-", color=OURS)
            axis.loglog(x, [y[-1] * one / x[-1] for one in x], "--", color=THEIRS)
            axis.set_title(f"slope {slope(x, y):.2f}", fontsize=9)
            axis.set_xlabel("parameters, billions" if wide else name, fontsize=9)
            axis.set_ylabel(shown if column == 0 else "", fontsize=9)
            axis.set_xticks(x, [f"{one:.2g}" if wide else f"{one}" for one in x], minor=False)
            axis.xaxis.set_minor_locator(NullLocator())
            axis.tick_params(labelsize=7, which="both")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def slope(x: list[float], y: list[float]) -> float:
    """Least-squares slope of log y over log x."""
    points = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)]
    middle_x, middle_y = (statistics.fmean(column) for column in zip(*points, strict=True))
    spread = sum((a - middle_x) ** 2 for a, _ in points)
    return sum((a - middle_x) * (b - middle_y) for a, b in points) / spread
