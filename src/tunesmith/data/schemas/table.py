"""Every schema: how it is read, how it is written, and which names it may not share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunesmith.data.rows import Row
from tunesmith.data.schemas import (
    chat,
    chatml,
    completion,
    feedback,
    instruction,
    plain,
    preference,
    problem,
    sharegpt,
)
from tunesmith.data.schemas.cut import Cut
from tunesmith.data.schemas.picked import ALIASES, Picked

__all__ = ["SCHEMAS", "Schema"]


@dataclass(frozen=True)
class Schema:
    """One form of rows.

    Attributes:
        name: what the user calls it.
        what: its fields, in a line.
        family: schemas of one family are read alike, so that a file may hold rows of both.
        uses: what its fields are for (keys of `ALIASES`), those first that it must have.
        n_needed: how many of these it must have.
        reads: raw row to canonical row; None when the row is wrong, which is noted.
        writes: canonical row to the schema's own fields, as JSON text. Raises `CannotHold`.
    """

    name: str
    what: str
    family: str
    uses: tuple[str, ...]
    n_needed: int
    reads: Callable[[Picked], Row | None]
    writes: Callable[[Cut], dict[str, str]]

    @property
    def reserved(self) -> frozenset[str]:
        """Names that a further field may not have beside this schema's own: it would be read as one."""
        own = (name for use in self.uses for name in ALIASES[use])
        return _TELLING | {*own, "meta"}


_TELLING = frozenset({"messages", "conversations", "conversation", "chosen", "rejected"}) | {
    "instruction",
    "tools",
    "functions",
}
"""Names by which a schema is told before those that come after it."""

_TALK = ("messages", "tools", "system")
_ASKED = ("prompt", "completion", "tools", "label", "answer")
_PAIR = ("prompt", "chosen", "rejected", "tools", "messages", "instruction", "input", "system")
_GOOD = ("prompt", "completion", "label", "tools")
_CHECKED = ("prompt", "answer", "tools", "completion", "label")

_ROWS = (
    Schema("chat", "messages [{role, content}], tools", "chat", _TALK, 1, chat.read, chat.write),
    Schema(
        "sharegpt",
        "conversations [{from, value}], system, tools",
        "sharegpt",
        _TALK,
        1,
        sharegpt.read,
        sharegpt.write,
    ),
    Schema(
        "chatml",
        "text with <|im_start|> and <|im_end|>",
        "chatml",
        ("text", "prompt", "completion", "answer"),
        1,
        chatml.read,
        chatml.write,
    ),
    Schema(
        "instruction",
        "instruction, input, output, system, history",
        "instruction",
        ("instruction", "output", "input", "system", "history", "tools"),
        2,
        instruction.read,
        instruction.write,
    ),
    Schema(
        "prompt-completion",
        "prompt, completion (texts)",
        "prompt-completion",
        _ASKED,
        2,
        completion.read,
        completion.write,
    ),
    Schema(
        "prompt-completion-turns",
        "prompt [turns], completion [turns], tools",
        "prompt-completion",
        _ASKED,
        2,
        completion.read,
        completion.write_turns,
    ),
    Schema(
        "preference",
        "prompt [turns], chosen [turn], rejected [turn], tools",
        "preference",
        _PAIR,
        3,
        preference.read,
        preference.write,
    ),
    Schema(
        "preference-text",
        "prompt, chosen, rejected (texts)",
        "preference",
        _PAIR,
        3,
        preference.read,
        preference.write_texts,
    ),
    Schema(
        "preference-implicit",
        "chosen [turns], rejected [turns]: whole conversations",
        "preference-implicit",
        ("chosen", "rejected", "prompt", "tools"),
        2,
        preference.read_implicit,
        preference.write_implicit,
    ),
    Schema(
        "preference-hh",
        "chosen, rejected (texts of Human: and Assistant:)",
        "preference-hh",
        ("chosen", "rejected", "prompt", "tools"),
        2,
        preference.read_hh,
        preference.write_hh,
    ),
    Schema(
        "feedback",
        "prompt [turns], completion [turn], label (true or false)",
        "feedback",
        _GOOD,
        3,
        feedback.read,
        feedback.write,
    ),
    Schema(
        "feedback-text",
        "prompt, completion (texts), label (true or false)",
        "feedback",
        _GOOD,
        3,
        feedback.read,
        feedback.write_texts,
    ),
    Schema(
        "problem",
        "prompt [turns], answer (any JSON)",
        "problem",
        _CHECKED,
        2,
        problem.read,
        problem.write,
    ),
    Schema(
        "problem-text",
        "prompt (text), answer (any JSON)",
        "problem",
        _CHECKED,
        2,
        problem.read,
        problem.write_texts,
    ),
    Schema(
        "text",
        "text",
        "text",
        ("text", "prompt", "completion", "answer"),
        1,
        plain.read,
        plain.write,
    ),
)

SCHEMAS: Mapping[str, Schema] = {schema.name: schema for schema in _ROWS}
"""Name -> schema, in the order in which they are told."""
