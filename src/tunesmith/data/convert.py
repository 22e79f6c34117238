"""Raw rows of four schemas, or of mapped fields, to canonical rows: messages (or pairs) and meta."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.data.problems import Problems
from tunesmith.data.read import RawFile
from tunesmith.data.rows import Field, RawRow, Row

__all__ = ["PREFERENCE", "convert"]

CHAT, INSTRUCTION, COMPLETION, MAPPED = "chat", "instruction", "prompt-completion", "mapped"
PREFERENCE = "preference"
_FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Role -> roles that may come next."""


@dataclass(frozen=True)
class _Schema:
    """How rows of one schema are told and read.

    Attributes:
        telling: fields of which one suffices to tell the schema.
        needed: fields that must be non-empty strings.
        optional: fields that must be strings where they are.
    """

    name: str
    telling: tuple[str, ...]
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


_SCHEMAS = (
    _Schema(CHAT, ("messages",), ("messages",)),
    _Schema(INSTRUCTION, ("instruction",), ("instruction", "output"), ("input",)),
    _Schema(PREFERENCE, ("chosen", "rejected"), ("prompt", "chosen", "rejected")),
    _Schema(COMPLETION, ("prompt", "completion"), ("prompt", "completion")),
)


def convert(
    file: RawFile, fields: tuple[str, str] | None, system: str | None, problems: Problems
) -> tuple[str, list[Row]]:
    """The file's schema, told from all of its rows, and its canonical rows.

    Args:
        fields: names of the prompt and completion fields, when the user gave them.
        system: message for rows that have none.
        problems: gets every row that cannot be converted, with the field.
    """
    if fields is not None:
        schema = _Schema(MAPPED, (), fields)
    else:
        told = _told(file, problems)
        if told is None:
            return "unknown", []
        schema = told
    rows: list[Row] = []
    for raw in file.rows:
        other = None if schema.name == MAPPED else _schema_of(raw)
        if other is not None and other is not schema:
            problems.add(raw.where, f"mixed schemas: a {other.name} row in a file of {schema.name}")
            continue
        row = _row(raw, schema, system, problems)
        if row is not None:
            rows.append(row)
    return schema.name, rows


def _schema_of(raw: RawRow) -> _Schema | None:
    return next((s for s in _SCHEMAS if any(name in raw.fields for name in s.telling)), None)


def _told(file: RawFile, problems: Problems) -> _Schema | None:
    """The schema of most rows; the first in `_SCHEMAS` where equally many."""
    counts = Counter(s.name for raw in file.rows if (s := _schema_of(raw)))
    if counts:
        return max(_SCHEMAS, key=lambda schema: counts[schema.name])
    if file.rows:
        names = ", ".join(dict.fromkeys(name for raw in file.rows for name in raw.fields))
        problems.add(
            file.rows[0].where,
            "no row of the file has messages, instruction/output, prompt/completion or "
            "prompt/chosen/rejected; its fields "
            f"are {names or 'none'}: name two of them as data.fields.prompt and .completion",
        )
    return None


def _row(raw: RawRow, schema: _Schema, system: str | None, problems: Problems) -> Row | None:
    used = (*schema.needed, *schema.optional)
    n_before = problems.n_problems
    for name in used:
        _check_field(raw, name, schema, problems)
    if problems.n_problems > n_before:
        return None
    if schema.name == PREFERENCE:
        return _pair(raw, used, system, problems)
    if schema.name == CHAT:
        messages, raw_messages = raw.fields["messages"].value, raw.fields["messages"].raw
        for problem in _conversation_problems(messages):
            problems.add(raw.where, problem)
        if problems.n_problems > n_before:
            return None
    else:
        messages, raw_messages = _two_turns(raw, schema)
    messages, raw_messages = _under_system(messages, raw_messages, system)
    meta, raw_meta = _meta(raw, used)
    text = f'{{"messages": {raw_messages}, "meta": {raw_meta}}}'
    return Row(raw.where, "chat", text, {"messages": messages, "meta": meta})


def _under_system(
    messages: list[Mapping[str, Any]], raw: str, system: str | None
) -> tuple[list[Mapping[str, Any]], str]:
    """Turns, parsed and as they stand in the file, with a system message when they have none."""
    if system is None or messages[0]["role"] == "system":
        return messages, raw
    first = {"role": "system", "content": system}
    return [first, *messages], f"[{_json(first)}, {raw.removeprefix('[')}"


def _pair(raw: RawRow, used: tuple[str, ...], system: str | None, problems: Problems) -> Row | None:
    """A prompt with two answers; each answer is one turn of the assistant."""
    prompt, chosen, rejected = (raw.fields[name].value for name in used)
    found = list(_pair_problems(prompt, chosen, rejected))
    for problem in found:
        problems.add(raw.where, problem)
    if found:
        return None
    turns, raw_prompt = _under_system(prompt, raw.fields["prompt"].raw, system)
    raws = [f'"{name}": {raw.fields[name].raw}' for name in ("chosen", "rejected")]
    meta, raw_meta = _meta(raw, used)
    text = f'{{"prompt": {raw_prompt}, {", ".join(raws)}, "meta": {raw_meta}}}'
    value = {"prompt": turns, "chosen": chosen, "rejected": rejected, "meta": meta}
    return Row(raw.where, "pair", text, value)


def _pair_problems(prompt: list[Any], chosen: list[Any], rejected: list[Any]) -> Iterator[str]:
    """What is wrong with a pair, each with the field's path."""
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) != 1:
            yield f"{name}: {len(answer)} turns; it must be one turn of the assistant"
            continue
        for problem in _conversation_problems([*prompt, *answer]):
            at = f"messages[{len(prompt)}]"
            if problem.startswith(at):
                yield f"{name}[0]{problem.removeprefix(at)}"
            elif name == "chosen" or problem.startswith("messages:"):
                yield problem.replace("messages", "prompt" if "[" in problem else name, 1)
    if len(chosen) == len(rejected) == 1 and _said(chosen[0]) == _said(rejected[0]):
        yield "chosen and rejected are the same answer, so there is nothing to prefer"


def _said(turn: object) -> object:
    """What a turn says, white space at its ends aside."""
    content = turn.get("content") if isinstance(turn, dict) else turn
    return content.strip() if isinstance(content, str) else content


def _check_field(raw: RawRow, name: str, schema: _Schema, problems: Problems) -> None:
    """Note a field that is missing, empty or of another type."""
    found = raw.fields.get(name)
    if found is None:
        if name in schema.needed:
            has = ", ".join(raw.fields) or "none"
            problems.add(
                raw.where, f"the field {name!r} is missing (a {schema.name} row; it has {has})"
            )
    elif schema.name in (CHAT, PREFERENCE):
        if not isinstance(found.value, list) or not found.value:
            problems.add(raw.where, f"{name}: not a list with at least one message")
    else:
        for problem in _text_problems(found.value, may_be_empty=name in schema.optional):
            problems.add(raw.where, f"{name}: {problem}")


def _text_problems(value: object, *, may_be_empty: bool) -> Iterator[str]:
    """What keeps a value from being the text of a turn."""
    if not isinstance(value, str):
        yield f"not a string but {type(value).__name__} {str(value)[:40]!r}"
    elif not may_be_empty and not value.strip():
        yield "empty"
    elif "\0" in value:
        yield f"a NUL character at character {value.index(chr(0)) + 1}"
    elif any("\ud800" <= character <= "\udfff" for character in value):
        yield "half of a surrogate pair, which is no character"


def _conversation_problems(messages: list[Any]) -> Iterator[str]:
    """What is wrong with a chat row's turns, each with the field's path."""
    before = ""
    for index, message in enumerate(messages):
        at = f"messages[{index}]"
        if not isinstance(message, dict):
            yield f"{at}: not an object with role and content"
            return
        role = message.get("role")
        if not isinstance(role, str) or role not in _FOLLOWS or not role:
            yield f"{at}.role: {role!r} is not one of system, user, assistant, tool"
            return
        if role not in _FOLLOWS[before]:
            after = f"after {before!r}" if before else "as the first turn"
            yield f"{at}.role: {role!r} {after}; expected {' or '.join(_FOLLOWS[before])}"
            return
        if "content" not in message:
            yield f"{at}.content: missing"
        else:
            for problem in _text_problems(message["content"], may_be_empty=False):
                yield f"{at}.content: {problem}"
        before = role
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        yield "messages: no assistant turn, so there is nothing to learn"
    elif before != "assistant":
        yield f"messages: the last turn is {before!r}; it must be the assistant's"


def _two_turns(raw: RawRow, schema: _Schema) -> tuple[list[Mapping[str, Any]], str]:
    prompt, answer = (raw.fields[name] for name in schema.needed)
    added = raw.fields.get("input") if schema.name == INSTRUCTION else None
    if added is not None and added.value.strip():
        joined = f"{prompt.value}\n\n{added.value}"
        prompt = Field(joined, "", _json(joined))
    turns = (("user", prompt), ("assistant", answer))
    messages: list[Mapping[str, Any]] = [
        {"role": role, "content": turn.value} for role, turn in turns
    ]
    raws = [f'{{"role": "{role}", "content": {turn.raw}}}' for role, turn in turns]
    return messages, f"[{', '.join(raws)}]"


def _meta(raw: RawRow, used: tuple[str, ...]) -> tuple[Mapping[str, Any], str]:
    """All other fields. A row that we sealed has them in `meta` already."""
    others = {name: found for name, found in raw.fields.items() if name not in used}
    only = others.get("meta")
    if len(others) == 1 and only is not None and isinstance(only.value, dict):
        return only.value, only.raw
    text = ", ".join(f"{found.raw_key}: {found.raw}" for found in others.values())
    return {name: found.value for name, found in others.items()}, f"{{{text}}}"


_json: Callable[[object], str] = json.JSONEncoder(ensure_ascii=False).encode
