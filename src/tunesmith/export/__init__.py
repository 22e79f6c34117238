"""Stage 4: a run to a sealed bundle, each form proved to be the model that was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.config import ExportConfig
    from tunesmith.export.parity import FormParity
    from tunesmith.export.stage import ExportResult, run

__all__ = ["ExportConfig", "ExportResult", "FormParity", "run"]

_HOMES = {
    "ExportConfig": "tunesmith.config",
    "ExportResult": "tunesmith.export.stage",
    "FormParity": "tunesmith.export.parity",
    "run": "tunesmith.export.stage",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import tunesmith.export` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
