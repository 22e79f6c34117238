"""ShareGPT: `conversations`, each turn with `from` and `value`; `system` and `tools` beside them.

Source: LLaMA-Factory's data/README.md, which also names the turns `function_call` (a function's name
and arguments as JSON text) and `observation` (what the tool said).
"""

from __future__ import annotations

from tunesmith.data.rows import Field, Row
from tunesmith.data.schemas.cut import CannotHold, Cut, Turn
from tunesmith.data.schemas.picked import Picked
from tunesmith.data.schemas.slices import as_field, fields_of, items_of, json_text, listed_as
from tunesmith.data.schemas.spellings import CALL, renamed
from tunesmith.data.schemas.turns import conversation_problems, under_system

__all__ = ["read", "write"]

_NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def read(picked: Picked) -> Row | None:
    """A conversation, whose turns are written with role and content."""
    found = picked.turns("messages")
    if found is None:
        return None
    at = picked.named("messages")
    items = items_of(found.raw)
    turns = [_turn(item, f"{at}[{index}]", picked) for index, item in enumerate(items)]
    if picked.failed:
        return None
    made = listed_as(one for one in turns if one is not None)
    if made.value[0].get("role") != "system":
        made = under_system(made, picked.text_if_any("system"))
    picked.all_wrong(conversation_problems(made.value, at, ("from", "value")))
    tools = picked.tools()
    if picked.failed:
        return None
    parts = {"messages": under_system(made, picked.options.system)}
    if tools is not None:
        parts["tools"] = tools
    return picked.row("chat", parts)


def _turn(item: Field, at: str, picked: Picked) -> Field | None:
    """A turn with `from` and `value` as one with role and content; None when it is wrong."""
    if not isinstance(item.value, dict):
        picked.wrong(f"{at}: not an object with from and value")
        return None
    if "from" not in item.value and "role" in item.value:
        return item
    made = renamed(item)
    if isinstance(made, Field):
        return made
    name, what = made
    picked.wrong(f"{at}.{name}: {what}")
    return None


def write(cut: Cut) -> dict[str, str]:
    """`conversations`, `system` and `tools`; tools as JSON text, as LLaMA-Factory reads them."""
    turns = cut.conversation()
    own = {"conversations": f"[{', '.join(_written(one, cut) for one in turns)}]"}
    if cut.tools:
        own["tools"] = json_text(cut.tools.raw)
    return own


def _written(one: Turn, cut: Cut) -> str:
    others = one.others
    if others.pop("tool_call_id", None) is not None:
        cut.lose("tool.tool_call_id")
    others.pop("content", None)
    if one.calls:
        name, said = CALL, _calls(one, cut)
    else:
        if one.content is None:
            raise CannotHold(f"a turn of {one.role!r} has no text")
        name, said = _NAMES[one.role], one.content.raw
    rest = "".join(f", {field.raw_key}: {field.raw}" for field in others.values())
    return f'{{"from": "{name}", "value": {said}{rest}}}'


def _calls(one: Turn, cut: Cut) -> str:
    """The functions of a turn's calls, as JSON text in JSON."""
    if one.content is not None and one.content.value.strip():
        cut.lose("the assistant's text beside its tool calls")
    functions: list[Field] = []
    for call in items_of(one.fields["tool_calls"].raw):
        fields = fields_of(call.raw)
        function = fields.pop("function", None)
        functions.append(function or call)
        if function is not None:
            for name in fields:
                if name != "type":
                    cut.lose(f"tool_calls.{name}")
    whole = functions[0] if len(functions) == 1 else listed_as(functions)
    return as_field(whole.raw).raw
