"""How base and tuned model are compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.config.base import Settings

__all__ = ["EvaluateConfig", "ExactMatchTask", "SqlExecutionTask"]


class SqlExecutionTask(Settings):
    """An answer is right when its query returns the same multiset of rows as the reference query."""

    kind: Literal["sql_execution"]
    timeout_seconds: float = Field(5.0, gt=0)
    """Longest time a query may run; a longer one counts as wrong."""


class ExactMatchTask(Settings):
    """An answer is right when it equals the reference after both are normalised."""

    kind: Literal["exact_match"] = "exact_match"
    ignore_case: bool = False
    """Compare without regard to case."""


class EvaluateConfig(Settings):
    """Run and held-out rows to a sealed report."""

    task: Annotated[SqlExecutionTask | ExactMatchTask, Field(discriminator="kind")] | None = None
    """How an answer is judged. When not set: by execution if the dataset has databases, else by exact match."""
    max_rows: int | None = Field(None, ge=1)
    """Test rows to use, drawn with the recipe's seed; all when not set."""
    max_answer_tokens: int = Field(128, ge=1)
    """Longest answer that is generated; greedy decoding."""
    batch_rows: int = Field(32, ge=1)
    """Prompts that are decoded side by side."""
    resamples: int = Field(10_000, ge=100)
    """Bootstrap resamples for the interval of the gain."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Level of every interval."""
    show_rows: int = Field(5, ge=0)
    """Won, lost and still wrong rows shown in the report, of each this many."""
