"""Metrics declared once, the event log, curves, and progress bars."""

from tunesmith.telemetry.energy import EnergyMeter
from tunesmith.telemetry.events import EventLog, Recorder, read_events
from tunesmith.telemetry.metrics import METRICS, Metric, metric
from tunesmith.telemetry.process import peak_rss_bytes
from tunesmith.telemetry.progress import (
    Bar,
    Notes,
    console,
    point_nowhere,
    progress,
    silenced,
    visible,
)

__all__ = [
    "METRICS",
    "Bar",
    "EnergyMeter",
    "EventLog",
    "Metric",
    "Notes",
    "Recorder",
    "console",
    "metric",
    "peak_rss_bytes",
    "point_nowhere",
    "progress",
    "read_events",
    "silenced",
    "visible",
]
