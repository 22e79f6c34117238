"""Conversations to token rows, with proof that the mask covers the answers and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import DataError, TrainingError, listed
from tunesmith.models import chat, token_cache
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.token_cache import TokenCache
from tunesmith.store import Artifact, sha256_of_file
from tunesmith.train import token_rows
from tunesmith.train.masks import MIN_STOPPED_SHARE, MaskFigures, judge
from tunesmith.train.token_rows import EncodedRows, TokenRow, from_arrays, to_arrays

__all__ = [
    "EncodedRows",
    "LongRowPolicy",
    "TokenRow",
    "check_kind",
    "check_masks",
    "encode_rows",
    "key_parts",
]

LongRowPolicy = Literal["refuse", "drop", "cut_prompt"]
MASK_POLICY = "answers with their stop tokens, not those of weight 0; of a pair the last answer"
"""What is learned of a row, in words; a part of the token cache's key."""


@dataclass(frozen=True)
class Conversation:
    """Turns, of which the first `given` are never learned, even where the assistant speaks."""

    messages: Sequence[Mapping[str, Any]]
    given: int = 0

    @property
    def answers(self) -> tuple[str, ...]:
        """Contents of the assistant's turns that are learned."""
        learned = self.messages[self.given :]
        return tuple(str(turn["content"]) for turn in learned if _is_answer(turn))


def _is_answer(turn: Mapping[str, Any]) -> bool:
    """Whether the renderer lets a turn be learned: the assistant's, without OpenAI's `weight` 0."""
    return bool(turn["role"] == "assistant" and turn.get("weight") != 0)


_READ = ("chat", "pair")
"""Kinds of rows that training reads."""
_NOT_READ: Mapping[str, str] = {
    "feedback": "its rows say of one answer whether it was good, which no objective learns from yet",
    "problem": "its rows have answers to be checked and none to be learned",
    "text": "its rows are plain text, without questions and answers",
}


def check_kind(dataset: Artifact) -> None:
    """Refuse a dataset whose rows training cannot read, before anything is loaded.

    Raises:
        DataError: says why, and what to do.
    """
    kind = dataset.facts.get("kind", "chat")
    if kind not in _READ:
        raise DataError(
            f"{dataset.dir} holds rows of the kind {kind!r}, which training does not read",
            why=_NOT_READ.get(kind, "this version knows no such rows"),
            fix="train on chat rows or on pairs of answers: `tunesmith data convert --help` lists schemas, and "
            "data.rows and data.fields say which fields are questions and answers",
        )


def read_conversations(path: Path) -> Iterator[tuple[int, list[Conversation]]]:
    """Line number and conversations of each row of a sealed dataset file: one, or a pair's two."""
    with path.open(encoding="utf-8") as stream:
        for line, text in enumerate(stream, 1):
            row = json.loads(text)
            _refuse_tools(row, f"{path.name}:{line}")
            if "messages" in row:
                yield line, [Conversation(row["messages"])]
                continue
            prompt = row["prompt"]
            answers = (row["chosen"], row["rejected"])
            yield line, [Conversation([*prompt, *answer], len(prompt)) for answer in answers]


def _refuse_tools(row: Mapping[str, Any], where: str) -> None:
    """A model that never saw its tools' descriptions would learn to call what it cannot know."""
    turns = [
        turn for name in ("messages", "prompt", "chosen", "rejected") for turn in row.get(name, ())
    ]
    if row.get("tools") or any(turn.get("tool_calls") for turn in turns):
        raise DataError(
            f"{where}: the row has tools, which training does not render yet",
            why="the model would be trained without their descriptions and calls",
            fix="leave such rows out of the dataset, or turn their calls into text",
        )


def encode_rows(
    path: Path,
    renderer: ChatRenderer,
    *,
    max_row_tokens: int,
    on_long_row: LongRowPolicy,
    cache: TokenCache | None = None,
) -> EncodedRows:
    """Every conversation of a dataset file as tokens, made now or found in the cache: the same rows.

    Raises:
        DataError: rows are longer than `max_row_tokens` and the policy is to refuse them, or a
            prompt cannot be cut enough because the answer alone is too long; or a row has tools.
    """
    if cache is None:
        return _made(path, renderer, max_row_tokens, on_long_row)
    parts = key_parts(path, renderer, max_row_tokens=max_row_tokens, on_long_row=on_long_row)
    found = cache.find(parts)
    if found.arrays is not None:
        return replace(from_arrays(found.arrays), origin=found.why)
    made = _made(path, renderer, max_row_tokens, on_long_row)
    not_kept = cache.keep(parts, to_arrays(made))
    return replace(made, origin=f"made, {found.why}" + (f"; not kept: {not_kept}" * bool(not_kept)))


def key_parts(
    path: Path, renderer: ChatRenderer, *, max_row_tokens: int, on_long_row: LongRowPolicy
) -> dict[str, Any]:
    """Everything that a dataset file's tokens depend on, by name."""
    modules = (__file__, token_rows.__file__, chat.__file__, token_cache.__file__)
    return {
        "rows": sha256_of_file(path),
        **token_cache.renderer_parts(renderer),
        "mask policy": MASK_POLICY,
        "max_row_tokens": max_row_tokens,
        "on_long_row": on_long_row,
        "code": token_cache.code_hash(modules),
    }


def _made(
    path: Path, renderer: ChatRenderer, max_row_tokens: int, on_long_row: LongRowPolicy
) -> EncodedRows:
    rows: list[TokenRow] = []
    dropped: list[int] = []
    cut: list[int] = []
    too_long: list[str] = []
    groups: list[tuple[int, ...]] = []
    for line, conversations in read_conversations(path):
        found = [_encoded(line, conversation, renderer) for conversation in conversations]
        size = max(len(row.tokens) for row in found)
        if size > max_row_tokens:
            if on_long_row == "drop":
                dropped.append(line)
                continue
            shorter = (
                _cut_prompt(conversations, renderer, max_row_tokens)
                if on_long_row == "cut_prompt"
                else None
            )
            if shorter is None:
                too_long.append(f"{path.name}:{line}: {size} tokens")
                continue
            cut.append(line)
            found = [_encoded(line, conversation, renderer) for conversation in shorter]
        groups.append(tuple(range(len(rows), len(rows) + len(found))))
        rows += found
    if too_long:
        raise DataError(
            f"{len(too_long)} rows are longer than train.max_row_tokens={max_row_tokens}:\n"
            + listed(too_long),
            why="their prompts cannot be cut far enough without touching an answer"
            if on_long_row == "cut_prompt"
            else "cutting them silently could cut their answers",
            fix="raise train.max_row_tokens, or set train.on_long_row to drop or cut_prompt",
        )
    paired = any(len(group) > 1 for group in groups)
    return EncodedRows(tuple(rows), tuple(dropped), tuple(cut), tuple(groups) if paired else None)


def _encoded(line: int, conversation: Conversation, renderer: ChatRenderer) -> TokenRow:
    rendered = renderer.render(conversation.messages)
    skipped = sum(map(_is_answer, conversation.messages[: conversation.given]))
    trained = _without_first(rendered.trained, skipped)
    return TokenRow(line, rendered.token_ids, trained, conversation.answers)


def _without_first(trained: tuple[bool, ...], count: int) -> tuple[bool, ...]:
    """The mask without its first `count` trained stretches, one for each of the assistant's turns."""
    if not count:
        return trained
    starts = [i for i, on in enumerate(trained) if on and (i == 0 or not trained[i - 1])]
    if count >= len(starts):
        return (False,) * len(trained)
    return (False,) * starts[count] + trained[starts[count] :]


def _cut_prompt(
    conversations: Sequence[Conversation], renderer: ChatRenderer, limit: int
) -> list[Conversation] | None:
    """The conversations with their longest user message shortened from the left, the same in all.

    None when that is not enough. They differ in their last turn only.
    """
    turns = conversations[0].messages[:-1]
    users = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
    if not users:
        return None
    place = max(users, key=lambda user: len(turns[user]["content"]))
    text, found = turns[place]["content"], list(conversations)
    while True:
        sizes = [len(renderer.render(conversation.messages).token_ids) for conversation in found]
        if max(sizes) <= limit:
            return found
        # Characters per token only steer how much is cut; the token count alone decides when it ends.
        keep = len(text) - max(max(sizes) - limit, 1)
        if keep <= 0:
            return None
        text = text[-keep:]
        found = [_with_turn(conversation, place, text) for conversation in found]


def _with_turn(conversation: Conversation, place: int, text: str) -> Conversation:
    messages = [dict(turn) for turn in conversation.messages]
    messages[place]["content"] = text
    return Conversation(messages, conversation.given)


def check_masks(rows: Sequence[TokenRow], path: Path, renderer: ChatRenderer) -> MaskFigures:
    """Prove that what is trained is the assistants' text and its stop token, and nothing else.

    Returns what was proved.

    Raises:
        TrainingError: a mask is empty or full, decodes to other text, an answer lost its end, or the
            stop token is missing.
    """
    if not rows:
        raise TrainingError(
            f"{path} has no rows to train on",
            why="every row was dropped, or the file is empty",
            fix="check train.on_long_row and train.max_row_tokens against the data",
        )
    verdicts = [judge(row, row.answers, renderer) for row in rows]
    problems = [
        f"{path.name}:{row.line}: {verdict.wrong or verdict.cut}"
        for row, verdict in zip(rows, verdicts, strict=True)
        if not verdict.right
    ]
    stopped = sum(verdict.stopped for verdict in verdicts)
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
    return MaskFigures(len(rows), sum(sum(row.trained) for row in rows), stopped)
