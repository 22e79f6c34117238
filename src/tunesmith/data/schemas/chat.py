"""OpenAI's chat messages: `messages`, each with role and content, and `tools`.

Source: the reference of OpenAI's chat completions. The older `functions`, `function_call` and
role `function` are read as what replaced them.
"""

from __future__ import annotations

from tunesmith.data.rows import Row
from tunesmith.data.schemas.cut import Cut, joined
from tunesmith.data.schemas.picked import Picked
from tunesmith.data.schemas.turns import conversation_problems, under_system

__all__ = ["read", "write"]


def read(picked: Picked) -> Row | None:
    """A conversation; all of the assistant's turns are learned, those with `weight` 0 aside."""
    turns = picked.turns("messages")
    if turns is None:
        return None
    picked.all_wrong(conversation_problems(turns.value, picked.named("messages")))
    tools = picked.tools()
    if picked.failed:
        return None
    parts = {"messages": under_system(turns, picked.options.system)}
    if tools is not None:
        parts["tools"] = tools
    return picked.row("chat", parts)


def write(cut: Cut) -> dict[str, str]:
    """`messages` and `tools`."""
    is_chat = cut.row.kind == "chat"
    raw = cut.fields["messages"].raw if is_chat else joined(cut.conversation())
    return {"messages": raw, **({"tools": cut.tools.raw} if cut.tools else {})}
