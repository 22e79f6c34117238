"""Stage 1: raw files to a sealed dataset. Rows stay JSON text from end to end."""

from typing import Any

from tunesmith.config import DataConfig
from tunesmith.data.calls import build, mix_files, split_files
from tunesmith.data.plan import DataPlan, plan_data, sources, token_inputs
from tunesmith.data.show import ShownRow, ShownToken, draw_rows, find_row, find_rows, show
from tunesmith.data.stage import DataResult, run

__all__ = [
    "DataConfig",
    "DataPlan",
    "DataResult",
    "ShownRow",
    "ShownToken",
    "build",
    "draw_rows",
    "find_row",
    "find_rows",
    "mix_files",
    "plan_data",
    "run",
    "show",
    "sources",
    "split_files",
    "token_inputs",
]

_LATER = {
    "Target": "tunesmith.data.conversion",
    "convert": "tunesmith.data.conversion",
    "diff": "tunesmith.data.look",
    "inspect": "tunesmith.data.inspection",
    "stats": "tunesmith.data.look",
    "augment": "tunesmith.data.grow",
    "synthesize": "tunesmith.data.grow",
}
"""Name -> module that has it, imported at first use."""


_MODULES = ("annotate", "check", "clean", "grow", "look", "make", "samples")
"""Modules of their own: `data.make.make_sql(...)`, `data.samples.load_sample(...)`."""


def __getattr__(name: str) -> Any:
    if name not in _LATER and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(_LATER[name]), name)
