"""Other spellings of a turn, put into the one form that datasets seal.

ShareGPT's `from` and `value`, OpenAI's older `function_call` and role `function`, a content that is a
list of one text part, and lists as JSON text in a table's cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunesmith.data.rows import Field
from tunesmith.data.schemas.slices import fields_of, inner, items_of, listed_as, object_of
from tunesmith.data.schemas.turns import turn

__all__ = ["CALL", "FROM", "calls_of", "renamed", "settled"]

FROM: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
}
"""Name in `from` -> role."""
CALL = "function_call"
"""Name in `from` of a turn in which the assistant calls a tool."""


def settled(field: Field) -> Field:
    """Turns as datasets seal them: what older or wider forms say is put into the one form.

    A list in a text (as tables hold it) becomes the list, a single turn a list of it. A content that
    is a list of one text part becomes that text, `function_call` becomes `tool_calls`, the role
    `function` becomes `tool`, `from` and `value` become role and content. All else keeps its exact
    characters; what is no list of turns is returned as it is.
    """
    found = inner(field) or field
    if isinstance(found.value, dict) and ("role" in found.value or "from" in found.value):
        found = listed_as([found])
    turns = found.value
    if not isinstance(turns, list) or not any(map(_is_of_another_form, turns)):
        return found
    return listed_as(
        _settled_turn(item) if _is_of_another_form(item.value) else item
        for item in items_of(found.raw)
    )


def _is_of_another_form(one: object) -> bool:
    if not isinstance(one, dict):
        return False
    return (
        ("from" in one and "role" not in one)
        or _single_text(one.get("content")) is not None
        or isinstance(one.get("function_call"), dict)
        or one.get("role") == "function"
    )


def _single_text(content: object) -> str | None:
    """The text of a content that is a list of one text part."""
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        return None
    text = content[0].get("text")
    is_text = content[0].get("type", "text") == "text" and set(content[0]) <= {"type", "text"}
    return text if is_text and isinstance(text, str) else None


def _settled_turn(item: Field) -> Field:
    if "role" not in item.value:
        made = renamed(item)
        return made if isinstance(made, Field) else item
    fields: dict[str, Field] = {}
    for name, field in fields_of(item.raw).items():
        if name == "content" and _single_text(field.value) is not None:
            part = fields_of(items_of(field.raw)[0].raw)["text"]
            fields[name] = Field(part.value, field.raw_key, part.raw)
        elif name == "function_call" and isinstance(field.value, dict):
            fields["tool_calls"] = calls_of([field])
        elif name == "role" and field.value == "function":
            fields[name] = Field("tool", field.raw_key, '"tool"')
        else:
            fields[name] = field
    return object_of(fields)


def calls_of(functions: Sequence[Field]) -> Field:
    """`tool_calls` of functions with name and arguments, which keep their exact characters."""
    calls = [
        Field(
            {"type": "function", "function": one.value},
            "",
            f'{{"type": "function", "function": {one.raw}}}',
        )
        for one in functions
    ]
    return listed_as(calls)


def renamed(item: Field) -> Field | tuple[str, str]:
    """A turn with `from` and `value` as one with role and content; else (field, what is wrong with it)."""
    fields = fields_of(item.raw)
    origin, said = fields.pop("from", None), fields.pop("value", None)
    name = origin.value if origin else None
    if not isinstance(name, str) or name not in (*FROM, CALL):
        known = "human, gpt, system, function_call, observation"
        return "from", f"{name!r} is not one of {known}"
    if said is None:
        return "value", "missing"
    if name != CALL:
        return turn(FROM[name], said, fields)
    found = inner(said)
    functions = items_of(found.raw) if found and isinstance(found.value, list) else [found]
    if not all(one is not None and isinstance(one.value, dict) for one in functions):
        return "value", "no call of a function, as JSON with name and arguments"
    calls = calls_of([one for one in functions if one is not None])
    role = Field("assistant", "", '"assistant"')
    return object_of({"role": role, "tool_calls": calls, **fields})
