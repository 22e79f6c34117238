"""The rules of a conversation, and turns in the one form that datasets seal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.data.rows import Field, json_kind
from tunesmith.data.schemas.slices import as_field, json_text

__all__ = [
    "ROLES",
    "conversation_problems",
    "said_in",
    "text_problems",
    "turn",
    "under_system",
]

ROLES = ("system", "user", "assistant", "tool")
_CALLING = "assistant with tool calls"
_FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    _CALLING: ("tool",),
    "tool": ("tool", "assistant"),
}
"""Role -> roles that may come next."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def turn(role: str, content: Field, others: Mapping[str, Field] | None = None) -> Field:
    """A turn whose content is carried as it stands; `others` are its further fields."""
    value = {"role": role, "content": content.value}
    text = f'{{"role": "{role}", "content": {content.raw}'
    for name, field in (others or {}).items():
        value[name] = field.value
        text += f", {field.raw_key or json_text(name)}: {field.raw}"
    return Field(value, "", f"{text}}}")


def under_system(turns: Field, system: Field | str | None) -> Field:
    """Turns with a system message in front when they have none; otherwise as they are."""
    if system is None or turns.value[0]["role"] == "system":
        return turns
    first = turn("system", as_field(system) if isinstance(system, str) else system)
    return Field([first.value, *turns.value], "", f"[{first.raw}, {turns.raw[1:]}")


def said_in(value: object) -> object:
    """What a turn says and calls, white space at the ends of its text aside; for comparing."""
    if not isinstance(value, dict):
        return value
    content = value.get("content")
    return (
        content.strip() if isinstance(content, str) else content or None,
        value.get("tool_calls") or None,
    )


def text_problems(value: object, *, may_be_empty: bool = False) -> Iterator[str]:
    """What keeps a value from being the text of a turn."""
    if not isinstance(value, str):
        yield _not_text(value)
    elif not may_be_empty and not value.strip():
        yield "empty"
    elif "\0" in value:
        yield f"a NUL character at character {value.index(chr(0)) + 1}"
    elif not value.isascii() and _SURROGATE.search(value):
        yield "half of a surrogate pair, which is no character"


def _not_text(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        kinds = dict.fromkeys(str(part.get("type", "text")) for part in value)
        if set(kinds) <= {"text"}:
            return f"a list of {len(value)} text parts; write them as one text"
        return f"parts of type {', '.join(map(repr, kinds))}; only text can be learned"
    return f"not a string but {json_kind(value)}{_shown(value)}"


def _shown(value: object) -> str:
    """A value that is no text, in quotes after a space; null is named already."""
    if value is None:
        return ""
    return f" {(json_text(value) if isinstance(value, bool) else str(value))[:40]!r}"


def conversation_problems(
    turns: Sequence[Any],
    at: str = "messages",
    keys: tuple[str, str] = ("role", "content"),
    *,
    ends: str = "assistant",
) -> Iterator[str]:
    """What is wrong with a conversation, each with the field's path.

    Args:
        turns: in the form that datasets seal.
        at: name of the list in the user's file.
        keys: names of a turn's role and content there.
        ends: "assistant" when the last turn must be the assistant's, "other" when it must not.
    """
    role_key, content_key = keys
    before, calls = "", frozenset[str]()
    for index, one in enumerate(turns):
        here = f"{at}[{index}]"
        if not isinstance(one, dict):
            yield f"{here}: not an object with {role_key} and {content_key}"
            return
        role = one.get("role")
        if not isinstance(role, str) or role not in ROLES:
            yield f"{here}.{role_key}: {role!r} is not one of {', '.join(ROLES)}"
            return
        if role not in _FOLLOWS[before]:
            after = f"after {before!r}" if before else "as the first turn"
            yield f"{here}.{role_key}: {role!r} {after}; expected {' or '.join(_FOLLOWS[before])}"
            return
        is_call = bool(one.get("tool_calls"))
        if is_call or "tool_call_id" in one:
            yield from _call_problems(one, here, calls)
        yield from _content_problems(one, f"{here}.{content_key}", is_call=is_call)
        if is_call and role == "assistant":
            before, calls = _CALLING, _ids(one)
        else:
            before, calls = role, calls if role == "tool" else frozenset()
    yield from _ending_problems(turns, at, ends)


def _ending_problems(turns: Sequence[Any], at: str, ends: str) -> Iterator[str]:
    roles = [one["role"] for one in turns]
    if ends == "other":
        if roles[-1] in ("assistant", "system"):
            yield f"{at}: the last turn is {roles[-1]!r}; it must be the user's or a tool's"
    elif "assistant" not in roles:
        yield f"{at}: no assistant turn, so there is nothing to learn"
    elif roles[-1] != "assistant":
        yield f"{at}: the last turn is {roles[-1]!r}; it must be the assistant's"
    elif all(one.get("weight") == 0 for one in turns if one["role"] == "assistant"):
        yield f"{at}: every assistant turn has weight 0, so there is nothing to learn"


def _content_problems(one: Mapping[str, Any], at: str, *, is_call: bool) -> Iterator[str]:
    content = one.get("content")
    if is_call and content is None:
        return
    if "content" not in one:
        yield f"{at}: missing"
        return
    may_be_empty = is_call or one["role"] == "tool"
    for problem in text_problems(content, may_be_empty=may_be_empty):
        yield f"{at}: {problem}"


def _call_problems(one: Mapping[str, Any], at: str, known: frozenset[str]) -> Iterator[str]:
    """What is wrong with the calls of a turn, or with the call that it answers."""
    role, answered = one["role"], one.get("tool_call_id")
    if role == "tool" and answered is not None and known and answered not in known:
        yield (
            f"{at}.tool_call_id: {answered!r} is no call of the assistant's turn before "
            f"(its calls: {', '.join(map(repr, sorted(known)))})"
        )
    calls = one.get("tool_calls")
    if not calls:
        return
    if role != "assistant":
        yield f"{at}.tool_calls: in a turn of {role!r}; only the assistant calls tools"
    elif not isinstance(calls, list):
        yield f"{at}.tool_calls: not a list but {json_kind(calls)}"
    else:
        for index, call in enumerate(calls):
            yield from _one_call_problems(call, f"{at}.tool_calls[{index}]")


def _one_call_problems(call: object, at: str) -> Iterator[str]:
    if not isinstance(call, dict):
        yield f"{at}: not an object with a function"
        return
    function = call.get("function", call)
    path = f"{at}.function" if "function" in call else at
    if not isinstance(function, dict):
        yield f"{path}: not an object with name and arguments"
        return
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        yield f"{path}.name: {name!r} is not the name of a function"
    if not isinstance(function.get("arguments"), str | dict):
        has = "missing" if "arguments" not in function else "neither an object nor its JSON text"
        yield f"{path}.arguments: {has}"


def _ids(one: Mapping[str, Any]) -> frozenset[str]:
    """Names of a turn's calls; nothing when any has none, so that nothing is held against them."""
    calls = one["tool_calls"]
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return frozenset()
    ids = [call.get("id") for call in calls]
    return frozenset(ids) if all(isinstance(name, str) for name in ids) else frozenset()
