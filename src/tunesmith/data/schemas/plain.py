"""Plain text, to be learned from its first to its last character."""

from __future__ import annotations

from tunesmith.data.rows import Row
from tunesmith.data.schemas.cut import Cut
from tunesmith.data.schemas.picked import Picked
from tunesmith.data.schemas.slices import json_text

__all__ = ["read", "write"]


def read(picked: Picked) -> Row | None:
    """A text."""
    found = picked.text("text")
    return picked.row("text", {"text": found}) if found else None


def write(cut: Cut) -> dict[str, str]:
    """A text; the turns of a conversation stand one after the other, an empty line between."""
    if cut.row.kind == "text":
        return {"text": cut.fields["text"].raw}
    turns = cut.conversation()
    cut.lose("roles of the turns")
    cut.lose_tools()
    if any(one.calls for one in turns):
        cut.lose("tool_calls")
    said = [one.content.value for one in turns if one.content is not None]
    return {"text": json_text("\n\n".join(said))}
