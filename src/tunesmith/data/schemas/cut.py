"""One canonical row while a schema writes it: its parts, what is lost, and why it cannot be held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunesmith.data.rows import Field, Row
from tunesmith.data.schemas.slices import as_field, fields_of, items_of, json_text
from tunesmith.data.schemas.turns import turn

__all__ = ["CannotHold", "Cut", "Turn"]


class CannotHold(ValueError):
    """The schema cannot say what the row says."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn and its fields, each with its exact characters."""

    whole: Field
    fields: Mapping[str, Field]

    @property
    def role(self) -> str:
        """Who speaks."""
        return str(self.whole.value["role"])

    @property
    def content(self) -> Field | None:
        """What is said; None when the turn only calls tools."""
        found = self.fields.get("content")
        return found if found is not None and isinstance(found.value, str) else None

    @property
    def calls(self) -> Sequence[Any]:
        """The calls of tools."""
        return self.whole.value.get("tool_calls") or ()

    @property
    def others(self) -> dict[str, Field]:
        """All fields but role, content and calls."""
        known = ("role", "content", "tool_calls")
        return {name: field for name, field in self.fields.items() if name not in known}


class Cut:
    """The parts of a canonical row.

    Attributes:
        row: the row.
        fields: its top-level fields.
        parts: of its last question, where that was read in two.
        lost: names of what the schema cannot hold, in the order in which they were met.
    """

    def __init__(self, row: Row, parts: tuple[Field, Field] | None = None) -> None:
        self.row, self.parts = row, parts
        self.fields = fields_of(row.text)
        self.lost: dict[str, None] = {}

    def lose(self, what: str) -> None:
        """Note that a part is not written."""
        self.lost[what] = None

    @cached_property
    def meta(self) -> dict[str, Field]:
        """The row's other fields."""
        return fields_of(self.fields["meta"].raw)

    @property
    def tools(self) -> Field | None:
        """Descriptions of tools."""
        return self.fields.get("tools")

    def lose_tools(self) -> None:
        """Note that descriptions of tools are not written, if there are any."""
        if self.row.tools:
            self.lose("tools")

    def turns(self, name: str) -> list[Turn]:
        """The turns of one field."""
        return [Turn(item, fields_of(item.raw)) for item in items_of(self.fields[name].raw)]

    def prompt(self) -> list[Turn]:
        """All turns before the answer."""
        return self.turns("messages")[:-1] if self.row.kind == "chat" else self.turns("prompt")

    def conversation(self) -> list[Turn]:
        """The row as one conversation that is to be learned.

        Raises:
            CannotHold: there is none.
        """
        match self.row.kind:
            case "chat":
                return self.turns("messages")
            case "pair":
                self.lose("rejected")
                return [*self.turns("prompt"), *self.turns("chosen")]
            case "feedback":
                if self.row.value["label"] is not True:
                    raise CannotHold("its answer is marked as bad, and would be learned as good")
                self.lose("label")
                return [*self.turns("prompt"), *self.turns("completion")]
            case "problem":
                return [*self.turns("prompt"), self._answer_turn()]
            case "text":
                raise CannotHold("a text asks nothing that could be answered")

    def _answer_turn(self) -> Turn:
        """The checkable answer as a turn of the assistant."""
        found = self.fields["answer"]
        if not isinstance(found.value, str):
            self.lose("the type of the answer (it becomes text)")
            found = as_field(found.raw)
        if not found.value.strip():
            raise CannotHold("its answer is empty")
        made = turn("assistant", found)
        return Turn(made, fields_of(made.raw))

    def answer(self) -> Turn:
        """The turn that is learned, the chosen one, or the checkable answer.

        Raises:
            CannotHold: there is none.
        """
        return self.conversation()[-1]

    def plain(self, one: Turn) -> Field:
        """The text of a turn, where only a text can be written; its further fields are lost.

        Raises:
            CannotHold: it calls tools.
        """
        if one.calls:
            raise CannotHold("a turn calls tools, which the schema has no place for")
        for name, field in one.others.items():
            if field.value is not None:
                self.lose(f"{one.role}.{name}")
        if one.content is None:
            raise CannotHold(f"a turn of {one.role!r} has no text")
        return one.content

    def question_and_answer(self) -> tuple[Field, Field]:
        """Two texts, where only two can be written.

        Raises:
            CannotHold: it has more turns than a question and an answer.
        """
        question, answer = self.single_question(self.conversation()[:-1]), self.answer()
        self.lose_tools()
        return question, self.plain(answer)

    def single_question(self, turns: Sequence[Turn]) -> Field:
        """The text of a prompt that is one turn of the user, its system message aside.

        Raises:
            CannotHold: it has more turns.
        """
        if turns and turns[0].role == "system":
            self.lose("system message")
            turns = turns[1:]
        if len(turns) != 1 or turns[0].role != "user":
            roles = ", ".join(one.role for one in turns)
            raise CannotHold(f"its prompt has {len(turns)} turns ({roles}), not one of the user")
        return self.plain(turns[0])

    def written(self, own: Mapping[str, str], reserved: frozenset[str]) -> str:
        """One line of JSON: the schema's own fields and the row's others.

        The others stand beside the schema's own when no name of theirs would be read as one of
        these, else all of them in `meta`.
        """
        parts = [f'"{name}": {text}' for name, text in own.items()]
        if reserved.isdisjoint(self.meta):
            parts += [f"{one.raw_key}: {one.raw}" for one in self.meta.values()]
        else:
            parts.append(f'"meta": {self.fields["meta"].raw}')
        return f"{{{', '.join(parts)}}}"


def joined(turns: Sequence[Turn]) -> str:
    """Turns as one list, each with its exact characters."""
    return f"[{', '.join(one.whole.raw for one in turns)}]"


def text_of(value: str) -> str:
    """A text as JSON."""
    return json_text(value)
