"""The held-out rows of a dataset: read, checked, and drawn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tunesmith.config import EvaluateConfig, ExactMatchTask, SqlExecutionTask
from tunesmith.errors import DataError, listed
from tunesmith.evaluate.tasks.judgement import Example
from tunesmith.models.chat import turns_of
from tunesmith.store import Artifact

__all__ = ["databases", "held_out_rows", "task_for"]


def held_out_rows(dataset: Artifact, max_rows: int | None, seed: int) -> tuple[list[Example], int]:
    """The test rows to use, in the order of the file, and how many the dataset has.

    Args:
        max_rows: draw this many at random, without replacement; all when None.
        seed: of the draw.

    Raises:
        DataError: there are none, or rows do not end with an assistant's turn.
        ArtifactError: the file is not what was sealed.
    """
    path = dataset.path("test.jsonl")
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = [
        (number, _as_conversation(json.loads(text)))
        for number, text in enumerate(lines, 1)
        if text.strip()
    ]
    if not rows:
        raise DataError(
            f"{path} has no rows",
            why="without held-out rows nothing can be said about the model",
            fix="name a test file under data.source.test, or raise data.test_ratio",
        )
    bad = [
        f"{path}:{number}: ends with {row['messages'][-1]['role']!r}"
        for number, row in rows
        if row["messages"][-1]["role"] != "assistant" or len(row["messages"]) < 2
    ]
    if bad:
        raise DataError(
            f"{len(bad)} test rows have no reference answer:\n{listed(bad)}",
            fix="end each row with the assistant's turn",
        )
    chosen = range(len(rows))
    if max_rows is not None and max_rows < len(rows):
        chosen = sorted(random.Random(seed).sample(chosen, max_rows))  # type: ignore[assignment]
    return [_example(*rows[index]) for index in chosen], len(rows)


def _as_conversation(row: dict[str, object]) -> dict[str, Any]:
    """A pair's reference answer is the chosen one."""
    return {"messages": turns_of(row), "meta": row.get("meta")}


def _example(line: int, row: dict[str, Any]) -> Example:
    messages = row["messages"]
    meta = row.get("meta") or {}
    assert isinstance(messages, list)
    assert isinstance(meta, dict)
    return Example(line, tuple(messages[:-1]), str(messages[-1]["content"]), meta)


def databases(dataset: Artifact) -> dict[str, Path]:
    """Name -> SQLite file of the dataset, each file's hash checked."""
    return {
        name: dataset.path(f"databases/{name}.sqlite")
        for name in dataset.facts.get("databases", [])
    }


def task_for(config: EvaluateConfig, found: dict[str, Path]) -> SqlExecutionTask | ExactMatchTask:
    """The task that is set, or by execution if the dataset has databases, else exact match."""
    if config.task is not None:
        return config.task
    return SqlExecutionTask(kind="sql_execution") if found else ExactMatchTask()
