"""Stage 0: what this machine is, and what it can train."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Doctor", "Machine", "Need", "Shape", "examine", "largest_that_fits", "needs"]

_WHERE = {
    "Doctor": "tunesmith.plan.doctor",
    "examine": "tunesmith.plan.doctor",
    "Machine": "tunesmith.plan.machine",
    "Need": "tunesmith.models.memory",
    "Shape": "tunesmith.models.memory",
    "largest_that_fits": "tunesmith.models.memory",
    "needs": "tunesmith.models.memory",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
