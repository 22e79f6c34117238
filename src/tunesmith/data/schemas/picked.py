"""One raw row while a schema reads it: which fields it takes, what is wrong, and the row it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config import DataConfig
from tunesmith.data.problems import Problems
from tunesmith.data.rows import Field, Kind, RawRow, Row
from tunesmith.data.schemas.slices import inner, items_of, listed_as
from tunesmith.data.schemas.spellings import settled
from tunesmith.data.schemas.turns import text_problems, turn

__all__ = ["ALIASES", "Options", "Picked", "options_of"]

ALIASES: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "question", "query", "problem", "input"),
    "completion": ("completion", "response", "answer", "output", "sql"),
    "answer": ("answer", "ground_truth", "solution", "final_answer"),
    "instruction": ("instruction",),
    "input": ("input",),
    "output": ("output", "response"),
    "system": ("system",),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "label": ("label",),
    "text": ("text",),
}
"""What a field is for -> the names that it has in files, the first that is there counts."""


@dataclass(frozen=True)
class Options:
    """How rows are read.

    Attributes:
        mapping: what a field is for (a key of `ALIASES`) -> its name in the files, where the user
            said so.
        system: message for rows that have none.
        schema: name of the schema, where the user said so.
    """

    mapping: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    schema: str | None = None

    def name_in(self, fields: Mapping[str, Any], use: str) -> str | None:
        """The name of the field for `use` in this row; None when it has none."""
        chosen = self.mapping.get(use)
        if chosen is not None:
            return chosen if chosen in fields else None
        taken = self.mapping.values()
        names = ALIASES[use]
        if use == "completion" and "question" in fields:
            # Text-to-SQL as Spider has it; its `sql` is then the query taken apart, and no text.
            names = (*names[:-1], "query", *names[-1:])
        for name in names:
            if name in fields and name not in taken:
                return name
        return None


def options_of(data: DataConfig) -> Options:
    """What the section `data` of a recipe says of how rows are read."""
    named = data.fields
    uses: dict[str, str | None] = {}
    if named is not None:
        uses = {
            "messages": named.messages,
            "prompt": named.prompt,
            "completion": named.completion,
            "answer": named.answer,
            "chosen": named.chosen,
            "rejected": named.rejected,
            "label": named.label,
            "instruction": named.instruction,
            "input": named.input,
            "output": named.output,
            "system": named.system,
            "history": named.history,
            "tools": named.tools,
            "text": named.text,
        }
    mapping = {use: name for use, name in uses.items() if name is not None}
    return Options(mapping, data.system, data.rows)


class Picked:
    """A raw row, the fields of it that were taken, and its problems.

    Args:
        raw: the row.
        schema: name of the schema that reads it, for messages.
        options: how rows are read.
        problems: gets what is wrong.
    """

    def __init__(self, raw: RawRow, schema: str, options: Options, problems: Problems) -> None:
        self.raw = raw
        self.schema = schema
        self.options = options
        self.failed = False
        self._problems = problems
        self._used: dict[str, str] = {}

    def wrong(self, what: str) -> None:
        """Note a problem; the row will not be made."""
        self.failed = True
        self._problems.add(self.raw.where, what)

    def all_wrong(self, found: Iterable[str]) -> None:
        """Note several problems."""
        for what in found:
            self.wrong(what)

    def named(self, use: str) -> str:
        """The name in the file of a field that was taken, else the name that it should have."""
        return self._used.get(use) or self.options.mapping.get(use, use)

    def has(self, use: str) -> bool:
        """Whether there is a field for `use` under its own names."""
        return self.options.name_in(self.raw.fields, use) is not None

    def take(self, use: str) -> Field | None:
        """The field for `use`; it will not be part of `meta`."""
        name = self.options.name_in(self.raw.fields, use)
        if name is None or name in self._used.values():
            return None
        self._used[use] = name
        return self.raw.fields[name]

    def leave(self, use: str) -> None:
        """Give a field back: it stays in `meta`."""
        self._used.pop(use, None)

    def need(self, use: str) -> Field | None:
        """The field for `use`; a problem when it is missing."""
        found = self.take(use)
        if found is None:
            has = ", ".join(self.raw.fields) or "none"
            name = self.named(use)
            article = "an" if self.schema == "instruction" else "a"
            self.wrong(f"the field {name!r} is missing ({article} {self.schema} row; it has {has})")
        return found

    def text(self, use: str) -> Field | None:
        """A field that must be there and be a text that is not empty."""
        found = self.need(use)
        return None if found is None else self._checked(use, found)

    def text_if_any(self, use: str) -> Field | None:
        """A field that may be missing, null or empty; None then."""
        found = self.take(use)
        if found is None or found.value is None or found.value == "":
            return None
        checked = self._checked(use, found, may_be_empty=True)
        return checked if checked and checked.value.strip() else None

    def _checked(self, use: str, found: Field, *, may_be_empty: bool = False) -> Field | None:
        problems = list(text_problems(found.value, may_be_empty=may_be_empty))
        self.all_wrong(f"{self.named(use)}: {problem}" for problem in problems)
        return None if problems else found

    def turns(self, use: str) -> Field | None:
        """A field that must be a list of at least one turn."""
        found = self.need(use)
        if found is None:
            return None
        found = settled(found)
        if not isinstance(found.value, list) or not found.value:
            self.wrong(f"{self.named(use)}: not a list with at least one message")
            return None
        return found

    def turns_or_text(self, use: str, role: str) -> Field | None:
        """A field that is a list of turns, or a text, which becomes one turn of `role`."""
        name = self.options.name_in(self.raw.fields, use)
        given = self.raw.fields[name] if name else None
        if given is not None and (isinstance(given.value, list | dict) or _spells_turns(given)):
            return self.turns(use)
        found = self.text(use)
        return listed_as([turn(role, found)]) if found else None

    def tools(self) -> Field | None:
        """Descriptions of tools, each with its exact characters; a field of other content is meta."""
        found = self.take("tools")
        if found is None or found.value is None:
            return None
        name, listed = self.named("tools"), inner(found)
        value = listed.value if listed else found.value
        if listed and isinstance(value, list) and all(isinstance(one, dict) for one in value):
            return _as_tools(listed) if name == "functions" else listed
        is_meant = isinstance(value, list) and any(isinstance(one, dict) for one in value)
        if is_meant or (isinstance(value, str) and value.lstrip().startswith("[")):
            self.wrong(f"{name}: not a list of objects that describe tools")
        self.leave("tools")
        return None

    def row(self, kind: Kind, parts: Mapping[str, Field]) -> Row | None:
        """The canonical row of these parts and of all fields that were not taken."""
        if self.failed:
            return None
        meta = self._meta()
        text = "".join(f'"{name}": {part.raw}, ' for name, part in parts.items())
        value = {name: part.value for name, part in parts.items()}
        value["meta"] = meta.value
        return Row(self.raw.where, kind, f'{{{text}"meta": {meta.raw}}}', value)

    def _meta(self) -> Field:
        """All other fields. A row that was sealed has them in `meta` already."""
        used = self._used.values()
        others = {name: found for name, found in self.raw.fields.items() if name not in used}
        only = others.get("meta")
        if len(others) == 1 and only is not None:
            found = inner(only)
            if found is not None and isinstance(found.value, dict):
                return found
        text = ", ".join(f"{one.raw_key}: {one.raw}" for one in others.values())
        return Field({name: one.value for name, one in others.items()}, "", f"{{{text}}}")


def _spells_turns(field: Field) -> bool:
    """Whether a text is a list of turns in JSON, as tables hold it."""
    found = inner(field) if isinstance(field.value, str) else None
    return found is not None and _are_turns(found.value)


def _are_turns(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in value)
    )


def _as_tools(functions: Field) -> Field:
    """OpenAI's older `functions` as `tools`."""
    return listed_as(
        Field(
            {"type": "function", "function": one.value},
            "",
            f'{{"type": "function", "function": {one.raw}}}',
        )
        for one in items_of(functions.raw)
    )
