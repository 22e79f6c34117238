"""SQL that may come from anywhere, run in a process of its own that cannot change files and can be ended."""

from tunesmith.store.sqlite.runner import (
    SCRIPT_SECONDS,
    SCRIPT_STEPS,
    Base,
    Cell,
    Mode,
    QueryFailed,
    QueryRows,
    QueryRunner,
)

__all__ = [
    "SCRIPT_SECONDS",
    "SCRIPT_STEPS",
    "Base",
    "Cell",
    "Mode",
    "QueryFailed",
    "QueryRows",
    "QueryRunner",
]
