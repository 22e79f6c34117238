"""Stage 1: raw files to a sealed dataset. Rows stay JSON text from end to end."""

from tunesmith.config import DataConfig
from tunesmith.data.plan import DataPlan, plan_data, sources
from tunesmith.data.show import ShownRow, ShownToken, find_row, show
from tunesmith.data.stage import DataResult, run

__all__ = [
    "DataConfig",
    "DataPlan",
    "DataResult",
    "ShownRow",
    "ShownToken",
    "find_row",
    "plan_data",
    "run",
    "show",
    "sources",
]
