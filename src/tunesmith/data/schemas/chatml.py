"""ChatML in one text: `<|im_start|>role`, a line end, the content, `<|im_end|>`, turn after turn.

Source: chatml.md in OpenAI's Python library, release 0.28. It has no form for calls of tools.
"""

from __future__ import annotations

import re

from tunesmith.data.rows import Field, Row
from tunesmith.data.schemas.cut import CannotHold, Cut
from tunesmith.data.schemas.picked import Picked
from tunesmith.data.schemas.slices import as_field, json_text, listed_as
from tunesmith.data.schemas.turns import conversation_problems, turn, under_system

__all__ = ["OPENS", "read", "write"]

OPENS, CLOSES = "<|im_start|>", "<|im_end|>"
_SPACE = re.compile(r"\s*")


def read(picked: Picked) -> Row | None:
    """A conversation cut out of a text; contents keep every character between the markers."""
    found = picked.text("text")
    if found is None:
        return None
    at = picked.named("text")
    try:
        turns = _turns(found.value)
    except ValueError as error:
        picked.wrong(f"{at}: {error}")
        return None
    picked.all_wrong(conversation_problems(turns.value, at))
    if picked.failed:
        return None
    return picked.row("chat", {"messages": under_system(turns, picked.options.system)})


def _turns(text: str) -> Field:
    found: list[Field] = []
    place = _after_space(text, 0)
    while place < len(text):
        if not text.startswith(OPENS, place):
            raise ValueError(f"no {OPENS} at character {place + 1}")
        line_end = text.find("\n", place)
        closes = text.find(CLOSES, place)
        if closes < 0:
            raise ValueError(f"the turn at character {place + 1} has no {CLOSES}")
        if line_end < 0 or line_end > closes:
            raise ValueError(f"the turn at character {place + 1} has no line with its role")
        role, content = text[place + len(OPENS) : line_end].strip(), text[line_end + 1 : closes]
        if OPENS in content:
            raise ValueError(f"the turn at character {place + 1} has no {CLOSES}")
        made = turn("user", as_field(content))
        value = {"role": role, "content": content}
        raw = made.raw.replace('"user"', json_text(role), 1)
        found.append(Field(value, "", raw))
        place = _after_space(text, closes + len(CLOSES))
    return listed_as(found)


def _after_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def write(cut: Cut) -> dict[str, str]:
    """`text`, each turn on lines of its own."""
    cut.lose_tools()
    parts: list[str] = []
    for one in cut.conversation():
        content = cut.plain(one).value
        if OPENS in content or CLOSES in content:
            raise CannotHold(f"a turn of {one.role!r} spells a ChatML marker itself")
        parts.append(f"{OPENS}{one.role}\n{content}{CLOSES}\n")
    return {"text": json_text("".join(parts))}
