"""Faults of one row's conversation: roles, order, empty and equal turns, calls of tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.data.check.finding import Finding, finding, shortened
from tunesmith.data.rows import Row

__all__ = ["in_turns", "named_turns", "said"]

Turn = Mapping[str, Any]
_FOLLOWS: Mapping[str, tuple[str, ...]] = {
    "": ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Role -> roles that may come next."""
_MIN_EQUAL_CHARACTERS = 10
_GREETING_LIST = "hi hello hey bye goodbye thanks cheers ok okay morning hallo hola ciao salut bonjour servus tschüss"
_GREETINGS = frozenset(_GREETING_LIST.split())
_MIN_LEAK_CHARACTERS = 20
_MIN_LEAK_SHARE = 0.25


def said(turn: Turn) -> str:
    """A turn's text; a turn that only calls tools has none."""
    content = turn.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


def named_turns(row: Row) -> list[tuple[str, Turn]]:
    """Path and turn of all turns of a row, in the order in which the model reads them."""
    match row.kind:
        case "chat":
            parts: tuple[str, ...] = ("messages",)
        case "pair":
            parts = ("prompt", "chosen", "rejected")
        case "feedback":
            parts = ("prompt", "completion")
        case "problem":
            parts = ("prompt",)
        case "text":
            return []
    return [(f"{part}[{i}]", turn) for part in parts for i, turn in enumerate(row.value[part])]


def in_turns(row: Row) -> Iterator[Finding]:
    """Findings about the conversation as a whole; none for plain text."""
    if row.kind == "text":
        return
    turns = named_turns(row)
    yield from _order(row, [named for named in turns if not named[0].startswith("rejected")])
    for at, turn in turns:
        yield from _empty(row.where, at, turn)
    if row.tools or any("tool_calls" in turn or "tool_call_id" in turn for _, turn in turns):
        yield from _calls(row, turns)
    yield from _equal(row, turns)


def _order(row: Row, turns: Sequence[tuple[str, Turn]]) -> Iterator[Finding]:
    before = ""
    for at, turn in turns:
        role = turn.get("role")
        if not isinstance(role, str) or role not in _FOLLOWS or not role:
            what = "not one of system, user, assistant, tool"
            yield finding(row.where, "roles", what, field=f"{at}.role", value=shortened(role))
            return
        if role not in _FOLLOWS[before]:
            after = f"comes after {before!r}" if before else "is the first turn"
            expected = " or ".join(_FOLLOWS[before])
            what = f"{role!r} {after}; expected {expected}"
            yield finding(row.where, "roles", what, field=f"{at}.role", value=shortened(said(turn)))
            return
        before = role
    wanted = "user" if row.kind == "problem" else "assistant"
    if before != wanted and not (wanted == "user" and before == "tool"):
        at = turns[-1][0] if turns else "messages"
        what = f"the last turn is {before or 'missing'!r}; it must be the {wanted}'s"
        yield finding(row.where, "roles", what, field=f"{at}.role")


def _empty(where: str, at: str, turn: Turn) -> Iterator[Finding]:
    if turn.get("tool_calls") or said(turn).strip():
        return
    # A tool may answer nothing, and an empty system message does no harm.
    if turn.get("role") != "tool":
        what = "no text" if turn.get("content") else "empty"
        value = shortened(turn.get("content")) if turn.get("content") else ""
        yield finding(where, "empty", what, field=f"{at}.content", value=value)


def _equal(row: Row, turns: Sequence[tuple[str, Turn]]) -> Iterator[Finding]:
    """Turns that say what another one said."""
    seen: dict[tuple[str, str], str] = {}
    asked, asked_at = "", ""
    for at, turn in turns:
        if at.startswith("rejected"):
            break
        role, text = str(turn.get("role")), said(turn).strip()
        check, what = "", ""
        if role == "assistant" and asked:
            if text.casefold() == asked.casefold() and _is_echo(row, text):
                check, what = "equal-turns", f"the same text as {asked_at}"
            elif _leaks(text, asked):
                check, what = "answer-in-prompt", f"the whole answer stands in {asked_at}"
        first = seen.setdefault((role, text), at)
        if first != at and not check and len(text) >= _MIN_LEAK_CHARACTERS:
            check, what = "repeated-turn", f"the same turn as {first}"
        if check and "tool_calls" not in turn:
            yield finding(row.where, check, what, field=f"{at}.content", value=shortened(text))
        # What a tool returned may be the answer, word for word.
        asked, asked_at = (text, at) if role == "user" else ("", "")
    yield from _equal_answers(row)


def _is_echo(row: Row, text: str) -> bool:
    """Whether an answer that equals its question is no more than that.

    A short one is told where it is the whole conversation: a greeting is answered by one, a class may be
    called as its text is, and a number or a sign may stand for itself.
    """
    if len(text) >= _MIN_EQUAL_CHARACTERS:
        return True
    said_by = [turn.get("role") for turn in row.messages]
    label = row.meta.get("label")
    is_class = isinstance(label, str) and label.casefold() == text.casefold()
    word = text.strip(" .!?,").casefold()
    return (
        said_by.count("assistant") == 1
        and word not in _GREETINGS
        and not is_class
        and any(map(str.isalpha, text))
    )


def _equal_answers(row: Row) -> Iterator[Finding]:
    if row.kind != "pair" or any("tool_calls" in turn for turn in (*row.messages, *row.rejected)):
        return
    chosen, rejected = said(row.value["chosen"][-1]), said(row.rejected[-1])
    if chosen.strip() == rejected.strip():
        what = "chosen and rejected are the same answer, so there is nothing to prefer"
        value = shortened(rejected)
        yield finding(row.where, "equal-answers", what, field="rejected[0].content", value=value)


def _leaks(answer: str, prompt: str) -> bool:
    """Whether a long answer makes up a good part of its prompt, word for word.

    A short answer inside a long prompt is what extraction looks like, and no leak.
    """
    return (
        len(answer) >= _MIN_LEAK_CHARACTERS
        and len(answer) >= _MIN_LEAK_SHARE * len(prompt)
        and answer in prompt
    )


def _calls(row: Row, turns: Sequence[tuple[str, Turn]]) -> Iterator[Finding]:
    """Calls of tools that are not described, arguments that are no JSON, results of no call."""
    known = {_function(tool).get("name") for tool in row.tools}
    called: set[object] = set()
    for at, turn in turns:
        calls = turn.get("tool_calls")
        for index, call in enumerate(calls if isinstance(calls, list) else ()):
            function = _function(call)
            called.add(call.get("id") if isinstance(call, dict) else None)
            path = f"{at}.tool_calls[{index}].function"
            name, arguments = function.get("name"), function.get("arguments")
            if known and name not in known:
                yield finding(
                    row.where,
                    "tool-calls",
                    f"calls a tool that the row does not describe; it has {_listed(known)}",
                    field=f"{path}.name",
                    value=shortened(name),
                )
            if isinstance(arguments, str) and (why := _not_an_object(arguments)):
                yield finding(
                    row.where,
                    "tool-calls",
                    why,
                    field=f"{path}.arguments",
                    value=shortened(arguments),
                )
        answers = turn.get("tool_call_id")
        if answers is not None and answers not in called:
            yield finding(
                row.where,
                "tool-calls",
                "answers a call that was not made before",
                field=f"{at}.tool_call_id",
                value=shortened(answers),
            )


def _function(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        return {}
    inner = value.get("function")
    return inner if isinstance(inner, dict) else value


def _not_an_object(text: str) -> str:
    """Why a text is no JSON object; empty when it is one."""
    if not text.strip():
        return "the arguments are empty; write {} for none"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"the arguments are not valid JSON: {error}"
    return "" if isinstance(value, dict) else "the arguments are no JSON object"


def _listed(names: set[Any]) -> str:
    return ", ".join(sorted(str(name) for name in names))[:80]
