"""Run and tasks to a sealed report: did the model get better, and how sure is that?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.evaluate.result import EvaluateResult, open_result
    from tunesmith.evaluate.stage import run
    from tunesmith.evaluate.summary import render_summary

__all__ = ["EvaluateResult", "open_result", "render_summary", "run"]

_HOMES = {
    "EvaluateResult": "tunesmith.evaluate.result",
    "open_result": "tunesmith.evaluate.result",
    "render_summary": "tunesmith.evaluate.summary",
    "run": "tunesmith.evaluate.stage",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import tunesmith.evaluate` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
