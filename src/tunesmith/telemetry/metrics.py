"""Every metric of tunesmith, declared once. Sinks refuse names that are not here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "Metric", "metric"]


@dataclass(frozen=True)
class Metric:
    """A number that is measured.

    Attributes:
        name: `tunesmith_<stage>_<what>_<unit>`, as Prometheus has it.
        kind: counter (only rises), gauge (any value) or histogram.
        help: one sentence.
        labels: names of its labels; their values must be few.
        buckets: upper bounds of a histogram.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_DECLARED = (
    Metric(
        "tunesmith_train_loss_nats",
        "gauge",
        "Mean loss of a step: cross-entropy of a trained token, or preference loss of a pair.",
    ),
    Metric("tunesmith_train_validation_loss_nats", "gauge", "The same on all validation rows."),
    Metric(
        "tunesmith_train_reward_margin_nats",
        "gauge",
        "Mean over pairs: beta times how much more the chosen answer's log-probability rose than the rejected one's.",
    ),
    Metric(
        "tunesmith_train_pair_accuracy_ratio",
        "gauge",
        "Share of pairs with a positive reward margin.",
    ),
    Metric("tunesmith_train_chosen_logp_nats", "gauge", "Mean log-probability of a chosen answer."),
    Metric(
        "tunesmith_train_rejected_logp_nats", "gauge", "Mean log-probability of a rejected answer."
    ),
    Metric(
        "tunesmith_train_validation_reward_margin_nats",
        "gauge",
        "Reward margin on all validation pairs.",
    ),
    Metric(
        "tunesmith_train_validation_pair_accuracy_ratio",
        "gauge",
        "Share of validation pairs with a positive reward margin.",
    ),
    Metric(
        "tunesmith_train_validation_chosen_logp_nats",
        "gauge",
        "Log-probability of a chosen answer, over all validation pairs.",
    ),
    Metric(
        "tunesmith_train_validation_rejected_logp_nats",
        "gauge",
        "Log-probability of a rejected answer, over all validation pairs.",
    ),
    Metric("tunesmith_train_learning_rate", "gauge", "Learning rate of the step."),
    Metric("tunesmith_train_grad_norm", "gauge", "Global gradient norm before clipping."),
    Metric("tunesmith_train_tokens_per_second", "gauge", "Tokens without padding, by step time."),
    Metric("tunesmith_train_tokens_total", "counter", "Tokens seen so far, without padding."),
    Metric("tunesmith_train_epoch", "gauge", "Passes over the training rows so far."),
    Metric("tunesmith_train_rss_bytes", "gauge", "Resident memory of the process."),
    Metric(
        "tunesmith_serve_requests_total",
        "counter",
        "Requests that were answered.",
        labels=("route", "status"),
    ),
    Metric("tunesmith_serve_requests_running", "gauge", "Requests that are decoded now."),
    Metric("tunesmith_serve_requests_waiting", "gauge", "Requests that wait for a slot."),
    Metric("tunesmith_serve_prompt_tokens_total", "counter", "Prompt tokens of finished requests."),
    Metric("tunesmith_serve_answer_tokens_total", "counter", "Tokens generated."),
    Metric("tunesmith_serve_engine_restarts_total", "counter", "Times the engine was restarted."),
    Metric("tunesmith_serve_engine_up", "gauge", "1 while the engine answers, else 0."),
    Metric(
        "tunesmith_serve_first_token_seconds",
        "histogram",
        "From the request's arrival to its first token.",
        buckets=_SECONDS,
    ),
    Metric(
        "tunesmith_serve_request_seconds",
        "histogram",
        "From the request's arrival to its last byte.",
        buckets=_SECONDS,
    ),
)

METRICS: dict[str, Metric] = {declared.name: declared for declared in _DECLARED}


def metric(name: str) -> Metric:
    """The declared metric of this name.

    Raises:
        KeyError: it was never declared, which is a bug of ours.
    """
    return METRICS[name]
