"""The gateway's Prometheus metrics, made from the declarations in `telemetry`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from tunesmith.telemetry import METRICS, Metric, metric

__all__ = ["CONTENT_TYPE", "Meters"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "tunesmith_serve_"

Meter = Counter | Gauge | Histogram
MeterType = TypeVar("MeterType", Counter, Gauge, Histogram)


class Meters:
    """One gateway's counts. Each gateway has its own, so that several in a process stay apart."""

    def __init__(self) -> None:
        # Those `_created` series would be metrics that nobody declared.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._meters: dict[str, Meter] = {
            name: _made(declared, self._registry)
            for name, declared in METRICS.items()
            if name.startswith(PREFIX)
        }

    def request(self, route: str, status: int) -> None:
        """Count an answered request."""
        counter = self._meter("requests_total", Counter)
        counter.labels(route=route, status=str(status)).inc()

    def first_token(self, seconds: float) -> None:
        """From a request's arrival to its first token."""
        self._meter("first_token_seconds", Histogram).observe(seconds)

    def generated(self, tokens: int) -> None:
        """Count tokens that the engine made, whether or not the answer was finished."""
        self._meter("answer_tokens_total", Counter).inc(tokens)

    def finished(self, seconds: float, prompt_tokens: int) -> None:
        """Count a whole answer."""
        self._meter("request_seconds", Histogram).observe(seconds)
        self._meter("prompt_tokens_total", Counter).inc(prompt_tokens)

    def restarted(self, times: int) -> None:
        """Count restarts of the engine since the last call."""
        self._meter("engine_restarts_total", Counter).inc(times)

    def set(self, now: Mapping[str, float]) -> None:
        """Set gauges, by their names without the prefix."""
        for name, value in now.items():
            self._meter(name, Gauge).set(value)

    def text(self) -> bytes:
        """What `/metrics` answers."""
        return generate_latest(self._registry)

    def _meter(self, name: str, kind: type[MeterType]) -> MeterType:
        found = self._meters[metric(PREFIX + name).name]
        if not isinstance(found, kind):
            raise TypeError(f"{PREFIX}{name} is declared as another kind of metric")
        return found


def _made(declared: Metric, registry: CollectorRegistry) -> Meter:
    if declared.kind == "histogram":
        return Histogram(
            declared.name,
            declared.help,
            declared.labels,
            buckets=declared.buckets,
            registry=registry,
        )
    made = Counter if declared.kind == "counter" else Gauge
    return made(declared.name, declared.help, declared.labels, registry=registry)
