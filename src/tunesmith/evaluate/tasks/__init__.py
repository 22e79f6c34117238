"""The table of tasks: how an answer is judged."""

from tunesmith.registry import Table

__all__ = ["TASKS"]

TASKS = Table(
    "task",
    {
        "exact_match": "tunesmith.evaluate.tasks.exact_match:ExactMatch",
        "sql_execution": "tunesmith.evaluate.tasks.sql_execution:SqlExecution",
    },
    extra="evaluate",
)
