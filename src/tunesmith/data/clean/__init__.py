"""What is dropped from rows and changed in them, each time with a rule and a reason."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.data.clean.cleaner import Cleaned, Cleaner
    from tunesmith.data.clean.files import CleanResult, clean_files
    from tunesmith.data.clean.plan import CleanPlan, Decision, plan_clean
    from tunesmith.data.clean.sets import Drop, Rows, drops, exact_key

__all__ = [
    "CleanPlan",
    "CleanResult",
    "Cleaned",
    "Cleaner",
    "Decision",
    "Drop",
    "Rows",
    "clean_files",
    "drops",
    "exact_key",
    "plan_clean",
]

_HOMES = {
    "Cleaned": "cleaner",
    "Cleaner": "cleaner",
    "CleanResult": "files",
    "clean_files": "files",
    "CleanPlan": "plan",
    "Decision": "plan",
    "plan_clean": "plan",
    "Drop": "sets",
    "Rows": "sets",
    "drops": "sets",
    "exact_key": "sets",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is used: planning a build needs no finder of private data."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
