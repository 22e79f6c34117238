"""Metrics declared once, the event log, curves, and progress bars."""

from tunesmith.telemetry.events import EventLog, Recorder, read_events
from tunesmith.telemetry.metrics import METRICS, Metric, metric
from tunesmith.telemetry.progress import Bar, console, progress, silenced, visible

__all__ = [
    "METRICS",
    "Bar",
    "EventLog",
    "Metric",
    "Recorder",
    "console",
    "metric",
    "progress",
    "read_events",
    "silenced",
    "visible",
]
