"""What is wrong with rows and datasets: findings with place, value and remedy, and a score."""

from typing import Any

from tunesmith.data.check.checker import Checker, check_rows
from tunesmith.data.check.domains import tell as tell_domains
from tunesmith.data.check.finding import CHECKS, Finding
from tunesmith.data.check.options import CheckOptions
from tunesmith.data.check.score import Reason, Score, Tally, score
from tunesmith.data.check.tokens import TokenMeter, meter_of, offline_meter

__all__ = [
    "CHECKS",
    "CheckOptions",
    "CheckResult",
    "Checker",
    "Finding",
    "Reason",
    "Score",
    "Tally",
    "TokenMeter",
    "check_places",
    "check_rows",
    "meter_of",
    "offline_meter",
    "score",
    "tell_domains",
]

_LATER = {
    "CheckResult": "tunesmith.data.check.files",
    "check_places": "tunesmith.data.check.places",
}
"""Name -> module that has it, imported at first use: these two stand on other parts of the room."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)
