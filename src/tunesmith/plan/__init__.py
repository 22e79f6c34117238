"""Stage 0: what this machine is, and what it can train."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Doctor", "Machine", "Need", "Shape", "examine", "largest_that_fits", "needs"]

_WHERE = {
    "Doctor": "doctor",
    "examine": "doctor",
    "Machine": "machine",
    "Need": "memory",
    "Shape": "memory",
    "largest_that_fits": "memory",
    "needs": "memory",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
