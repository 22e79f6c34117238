"""The report for readers: one HTML file that needs nothing else, and is inert."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tunesmith.evaluate import plot, wording
from tunesmith.evaluate.comparison import Comparison
from tunesmith.telemetry import visible

__all__ = ["render_html"]

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_SHOWN = (("won", "Won"), ("lost", "Lost"), ("still wrong", "Still wrong"))

_LABELS = {
    "device": "Device",
    "device_name": "Accelerator",
    "processor": "Processor",
    "cores": "Cores",
    "memory_gib": "Memory, GiB",
    "system": "System",
}


def render_html(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], show: int) -> str:
    """The report as one HTML text.

    Whatever stands in rows and answers is shown as text: the template escapes all of it, and the
    page forbids itself scripts and the network.

    Args:
        report: what `report.json` holds.
        rows: the lines of `rows.jsonl`.
        show: rows shown of each outcome, drawn with the report's seed.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = _plain
    environment.filters["percent"] = wording.percent
    comparison = Comparison.from_dict(report["comparison"])
    return environment.get_template(_TEMPLATE.name).render(
        report=report,
        comparison=comparison,
        headline=wording.headline(comparison),
        evidence=wording.evidence(comparison),
        explanation=wording.explanation(comparison),
        level=f"{100 * comparison.gain.confidence:g} %",
        p_text=wording.p_text(comparison.p_value),
        accuracy=plot.accuracy_axis(comparison),
        gain=plot.gain_axis(comparison),
        machine=[(_LABELS.get(key, key), value) for key, value in report["hardware"].items()],
        groups=[(title, *_drawn(rows, outcome, show, report["seed"])) for outcome, title in _SHOWN],
    )


def _drawn(
    rows: Sequence[Mapping[str, Any]], outcome: str, show: int, seed: int
) -> tuple[int, list[Mapping[str, Any]]]:
    """How many rows had this outcome, and some of them in the order of the test set."""
    matching = [row for row in rows if row["outcome"] == outcome]
    chosen = random.Random(seed).sample(range(len(matching)), min(show, len(matching)))
    return len(matching), [matching[index] for index in sorted(chosen)]


def _plain(text: object) -> str:
    """Control and direction-changing characters as escapes, so that no answer hides or reorders."""
    return visible(str(text))
