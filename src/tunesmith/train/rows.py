"""Conversations to token rows, with proof that the mask covers the answers and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import DataError, TrainingError, listed
from tunesmith.models.chat import ChatRenderer, Rendered

__all__ = ["LongRowPolicy", "TokenRow", "check_masks", "encode_rows", "read_conversations"]

LongRowPolicy = Literal["refuse", "drop", "cut_prompt"]
MIN_STOPPED_SHARE = 0.99


@dataclass(frozen=True)
class TokenRow:
    """One conversation as tokens.

    Attributes:
        line: line of the dataset file it came from, from 1.
        tokens: ids.
        trained: for each token, whether it is learned.
    """

    line: int
    tokens: tuple[int, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True)
class EncodedRows:
    """All rows of a split, and the lines that were dropped or cut because they were too long."""

    rows: tuple[TokenRow, ...]
    dropped_lines: tuple[int, ...]
    cut_lines: tuple[int, ...]


def read_conversations(path: Path) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    """Line number and messages of each row of a sealed dataset file."""
    with path.open(encoding="utf-8") as stream:
        for line, text in enumerate(stream, 1):
            yield line, json.loads(text)["messages"]


def encode_rows(
    path: Path, renderer: ChatRenderer, *, max_row_tokens: int, on_long_row: LongRowPolicy
) -> EncodedRows:
    """Every conversation of a dataset file as tokens.

    Raises:
        DataError: rows are longer than `max_row_tokens` and the policy is to refuse them, or a
            prompt cannot be cut enough because the answer alone is too long.
    """
    rows: list[TokenRow] = []
    dropped: list[int] = []
    cut: list[int] = []
    too_long: list[str] = []
    for line, messages in read_conversations(path):
        rendered = renderer.render(messages)
        size = len(rendered.token_ids)
        if size > max_row_tokens:
            if on_long_row == "drop":
                dropped.append(line)
                continue
            shorter = (
                _cut_prompt(messages, renderer, max_row_tokens)
                if on_long_row == "cut_prompt"
                else None
            )
            if shorter is None:
                too_long.append(f"{path.name}:{line}: {size} tokens")
                continue
            cut.append(line)
            rendered = shorter
        rows.append(TokenRow(line, rendered.token_ids, rendered.trained))
    if too_long:
        raise DataError(
            f"{len(too_long)} rows are longer than train.max_row_tokens={max_row_tokens}:\n"
            + listed(too_long),
            why="their prompts cannot be cut far enough without touching an answer"
            if on_long_row == "cut_prompt"
            else "cutting them silently could cut their answers",
            fix="raise train.max_row_tokens, or set train.on_long_row to drop or cut_prompt",
        )
    return EncodedRows(tuple(rows), tuple(dropped), tuple(cut))


def _cut_prompt(
    messages: Sequence[Mapping[str, Any]], renderer: ChatRenderer, limit: int
) -> Rendered | None:
    """The row with its longest user message shortened from the left, or None when that is not enough."""
    turns = [dict(message) for message in messages]
    users = [turn for turn in turns if turn["role"] == "user"]
    if not users:
        return None
    longest = max(users, key=lambda turn: len(turn["content"]))
    rendered = renderer.render(turns)
    while len(rendered.token_ids) > limit:
        # Characters per token only steer how much is cut; the token count alone decides when it ends.
        excess = len(rendered.token_ids) - limit
        keep = len(longest["content"]) - max(excess, 1)
        if keep <= 0:
            return None
        longest["content"] = longest["content"][-keep:]
        rendered = renderer.render(turns)
    return rendered


def check_masks(rows: Sequence[TokenRow], path: Path, renderer: ChatRenderer) -> None:
    """Prove that what is trained is the assistants' text and its stop token, and nothing else.

    Raises:
        TrainingError: a mask is empty or full, decodes to other text, or the stop token is missing.
    """
    if not rows:
        raise TrainingError(
            f"{path} has no rows to train on",
            why="every row was dropped, or the file is empty",
            fix="check train.on_long_row and train.max_row_tokens against the data",
        )
    answers = {
        line: [str(m["content"]) for m in messages if m["role"] == "assistant"]
        for line, messages in read_conversations(path)
    }
    problems: list[str] = []
    stopped = 0
    for row in rows:
        learned = [token for token, on in zip(row.tokens, row.trained, strict=True) if on]
        problem = _mask_problem(row, learned, answers[row.line], renderer)
        if problem:
            problems.append(f"{path.name}:{row.line}: {problem}")
        stopped += bool(learned) and learned[-1] in renderer.stop_ids
    if problems:
        raise TrainingError(
            f"the loss mask of {len(problems)} rows is wrong:\n{listed(problems)}",
            why="the model would learn something else than the answers",
            fix="look at these rows with `tunesmith data show`; drop or reword those that the tokenizer "
            "cannot spell, and report the others",
        )
    if stopped < MIN_STOPPED_SHARE * len(rows):
        raise TrainingError(
            f"the stop token is trained in only {stopped} of {len(rows)} rows",
            why="the model would not learn to end its answers",
            fix="use a model whose chat template closes the assistant's turn",
        )


def _mask_problem(
    row: TokenRow, learned: Sequence[int], answers: Sequence[str], renderer: ChatRenderer
) -> str:
    if not learned:
        return "no token is trained"
    if all(row.trained):
        return "every token is trained, the prompt too"
    spoken = "".join(answer.strip() for answer in answers)
    decoded = renderer.decode([token for token in learned if token not in renderer.stop_ids])
    if "".join(decoded.split()) != "".join(spoken.split()):
        if "\ufffd" in decoded:
            return (
                f"the model's tokenizer cannot spell the answer {spoken[:60]!r}: some of it is lost"
            )
        return f"trained text {decoded[:60]!r} is not the assistant's {spoken[:60]!r}"
    return ""
