"""Queries of rows and of models, run on a database that they cannot change, within limits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.budget import SqlBudget
from tunesmith.errors import counted
from tunesmith.store.sqlite import QueryFailed, QueryRunner

__all__ = [
    "BUDGET",
    "BUDGET_ROWS",
    "COST_SECONDS",
    "SECONDS",
    "Failed",
    "Found",
    "ReadOnly",
    "same_rows",
]

SECONDS = 5.0
"""Longest time for one query."""
COST_SECONDS = 5
"""What a query that was ended after that time counts for in a budget."""
BUDGET = 30
"""What queries that the clock ended may cost for each `BUDGET_ROWS` rows or answers whose query is run: six of them."""
BUDGET_ROWS = 1_000
MAX_ROWS = 100_000


@dataclass(frozen=True)
class Found:
    """What a query returned: its rows, in SQLite's order, and how many columns."""

    rows: tuple[tuple[Any, ...], ...]
    columns: int


@dataclass(frozen=True)
class Failed:
    """Why a query gave no rows: SQLite's message, or the limit that it broke.

    Attributes:
        is_left_out: it was not run, since limits ended too many before.
    """

    error: str
    is_left_out: bool = False


class ReadOnly:
    """One SQLite file whose queries run in another process, to be read only.

    Args:
        path: the file.
        runner: the process; many files may share one.
    """

    def __init__(self, path: Path, runner: QueryRunner) -> None:
        self._path, self._runner = path, runner

    def run(self, sql: str, budget: SqlBudget | None = None) -> Found | Failed:
        """The rows of one query. Nothing raises for what stands in `sql`.

        Args:
            budget: is charged for a query that a limit ends; when it is spent none is run.
        """
        if budget is not None and budget.is_spent:
            ended = counted(budget.n_ended, "query", "queries")
            return Failed(f"limits of time ended {ended} before it", is_left_out=True)
        found = self._runner.run(self._path, sql, max_rows=MAX_ROWS)
        if isinstance(found, QueryFailed):
            if budget is not None:
                budget.charge(found)
            return Failed(found.error)
        if found.more:
            return Failed(f"it returns more than {MAX_ROWS:,} rows")
        return Found(found.rows, found.columns)

    def program(self, sql: str) -> tuple[tuple[Any, ...], ...] | None:
        """SQLite's compiled program for a query; None when it cannot be compiled.

        Equal programs on files with equal pages return equal rows: names do not occur in it. The
        opcode Transaction is left out, since it holds the schema's version number.
        """
        found = self.run(f"EXPLAIN {sql}")
        if isinstance(found, Failed):
            return None
        return tuple(row[:7] for row in found.rows if row[1] != "Transaction")


def same_rows(left: Found, right: Found) -> bool:
    """Whether two results hold the same rows, each as often, in any order; 1 is not "1"."""
    if left.columns != right.columns:
        return False
    return _counted(left) == _counted(right)


def _counted(found: Found) -> Counter[tuple[Any, ...]]:
    return Counter(tuple((type(cell).__name__, cell) for cell in row) for row in found.rows)
