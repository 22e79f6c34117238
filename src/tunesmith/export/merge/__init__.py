"""Several models, one model: adapters and whole models merged tensor by tensor in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.export.merge.asked import Asked
    from tunesmith.export.merge.methods import METHODS
    from tunesmith.export.merge.plan import MergePlan
    from tunesmith.export.merge.quantised import BaseEffect, quantised_base_effect
    from tunesmith.export.merge.stage import MergeResult, foreseen, run

__all__ = [
    "METHODS",
    "Asked",
    "BaseEffect",
    "MergePlan",
    "MergeResult",
    "foreseen",
    "quantised_base_effect",
    "run",
]

_HOMES = {
    "METHODS": "tunesmith.export.merge.methods",
    "Asked": "tunesmith.export.merge.asked",
    "BaseEffect": "tunesmith.export.merge.quantised",
    "MergePlan": "tunesmith.export.merge.plan",
    "MergeResult": "tunesmith.export.merge.stage",
    "foreseen": "tunesmith.export.merge.stage",
    "quantised_base_effect": "tunesmith.export.merge.quantised",
    "run": "tunesmith.export.merge.stage",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the command's help needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
