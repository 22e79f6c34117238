"""Checks of token rows before an engine sees them, all problems at once."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.errors import ConfigError, DataError, listed

__all__ = ["check_prompts", "check_rows"]


def check_prompts(prompts: Sequence[Sequence[int]], context_tokens: int) -> None:
    """Refuse prompts without tokens or without room for one token of answer.

    Raises:
        DataError: names all of them.
    """
    problems = []
    for index, prompt in enumerate(prompts):
        if not prompt:
            problems.append(f"prompt {index} is empty")
        elif len(prompt) >= context_tokens:
            problems.append(
                f"prompt {index} has {len(prompt)} tokens; the context holds {context_tokens}, "
                "answer included"
            )
    if problems:
        raise DataError(
            f"{len(problems)} of {len(prompts)} prompts cannot be answered:\n{listed(problems)}",
            fix="shorten them, or open the engine with a larger context",
        )


def check_rows(rows: Sequence[Sequence[int]], starts: Sequence[int], context_tokens: int) -> None:
    """Refuse rows that cannot be scored from their start on.

    Raises:
        ConfigError: not as many starts as rows.
        DataError: names all rows whose start is outside, or that are longer than the context.
    """
    if len(rows) != len(starts):
        raise ConfigError(f"{len(rows)} rows but {len(starts)} starts; there must be one a row")
    problems = []
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        if not 1 <= start < len(row):
            problems.append(f"row {index} has {len(row)} tokens and cannot start at {start}")
        if len(row) > context_tokens:
            problems.append(
                f"row {index} has {len(row)} tokens; the context holds {context_tokens}"
            )
    if problems:
        raise DataError(
            f"{len(problems)} of {len(rows)} rows cannot be scored:\n{listed(problems)}",
            fix="shorten them, or open the engine with a larger context",
        )
