"""What travels through the data room: raw rows as files have them, canonical rows as datasets seal them.

A row stays JSON text: raw rows keep the exact characters of every value, and a canonical row is
written as the line that it carries, so nothing is encoded a second time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["KINDS", "BadRow", "Field", "Kind", "RawRow", "Row", "bad_text", "json_kind"]

Kind = Literal["chat", "pair", "feedback", "problem", "text"]
KINDS: tuple[Kind, ...] = ("chat", "pair", "feedback", "problem", "text")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a row: its parsed value, and its key and value as they stand in the file."""

    value: Any
    raw_key: str
    raw: str


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a file; `line` counts from 1 (in a table the row's own number, heading included)."""

    file: str
    line: int
    fields: dict[str, Field]

    @property
    def where(self) -> str:
        """ "file:line", for messages."""
        return f"{self.file}:{self.line}"

    @property
    def text(self) -> str:
        """The row as one line of JSON, each key and value as it stands in the file."""
        return f"{{{', '.join(f'{one.raw_key}: {one.raw}' for one in self.fields.values())}}}"


_SHOWN = 10_000


def bad_text(text: str) -> str:
    """Text that is no row as a JSON object `{"raw": TEXT}`; of long text the begin, and how many characters follow."""
    held: dict[str, Any] = {"raw": text[:_SHOWN]}
    if len(text) > _SHOWN:
        held["cut_characters"] = len(text) - _SHOWN
    return json.dumps(held, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row of a file that cannot be read; what it costs is this row alone.

    Attributes:
        file, line: as of a `RawRow`.
        what: what is wrong with it, at least one.
        text: what stands there as a JSON object: the row itself where it is one, else as `bad_text` has it. Empty
            where it cannot be shown (too long, damaged): such a row is not left out, its file is refused.
    """

    file: str
    line: int
    what: tuple[str, ...]
    text: str

    @property
    def where(self) -> str:
        """ "file:line", for messages."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Row:
    """One canonical row.

    Attributes:
        where: "file:line" of its origin.
        kind: `chat`: a conversation to learn; `pair`: a prompt with a chosen and a rejected answer;
            `feedback`: a prompt, an answer and whether it was good; `problem`: a prompt with an
            answer that can be checked; `text`: plain text.
        text: the row as one line of JSON, without its line end.
        value: the same, parsed. By kind: `messages`; `prompt`, `chosen`, `rejected`; `prompt`,
            `completion`, `label`; `prompt`, `answer`; `text`. Where the row has tools: `tools`.
            Always `meta`: all other fields, unchanged.
    """

    where: str
    kind: Kind
    text: str
    value: Mapping[str, Any]

    @property
    def messages(self) -> tuple[Mapping[str, Any], ...]:
        """The conversation: of a pair with the chosen answer, of a problem without one."""
        match self.kind:
            case "chat":
                return tuple(self.value["messages"])
            case "pair":
                return (*self.value["prompt"], *self.value["chosen"])
            case "feedback":
                return (*self.value["prompt"], *self.value["completion"])
            case "problem":
                return tuple(self.value["prompt"])
            case "text":
                return ()

    @property
    def rejected(self) -> tuple[Mapping[str, Any], ...]:
        """The rejected answer of a pair, one turn; else nothing."""
        return tuple(self.value["rejected"]) if self.kind == "pair" else ()

    @property
    def tools(self) -> tuple[Any, ...]:
        """Descriptions of the tools that the conversation may call."""
        return tuple(self.value.get("tools") or ())

    @property
    def meta(self) -> Mapping[str, Any]:
        """All fields that are not the conversation."""
        found: Mapping[str, Any] = self.value["meta"]
        return found

    @property
    def question(self) -> str:
        """What is asked: the text of all turns before the answer, one after the other."""
        turns = self.messages if self.kind == "problem" else self.messages[:-1]
        return "\n".join(_content(turn) for turn in turns)

    @property
    def answer(self) -> str:
        """What is learned: the last turn's text (of a pair the chosen one), or the whole text."""
        match self.kind:
            case "text":
                return str(self.value["text"])
            case "problem":
                return str(self.value["answer"])
            case _:
                return _content(self.messages[-1])


def _content(turn: Mapping[str, Any]) -> str:
    """A turn's text; a turn that only calls tools has none."""
    content = turn.get("content")
    return content if isinstance(content, str) else ""


def json_kind(value: object) -> str:
    """What a parsed JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
