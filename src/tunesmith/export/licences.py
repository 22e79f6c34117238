"""The licence of a base model, where it can be known without asking anyone."""

from __future__ import annotations

import re

from tunesmith.models.embedded import NAME
from tunesmith.models.load import BaseModel

__all__ = ["licence_of"]

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)
_LICENCE = re.compile(
    r"^license:[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9.+-]*)[\"']?[ \t]*$", re.MULTILINE
)


def licence_of(base: BaseModel) -> tuple[str, str]:
    """The licence's identifier and where it is stated; two empty texts when it is not known."""
    if base.name == NAME or base.name.endswith(f"/{NAME}"):
        return "apache-2.0", "as published by Hugging Face"
    card = base.dir / "README.md"
    if card.is_file():
        head = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
        found = _LICENCE.search(head[1]) if head else None
        if found:
            return found[1], "front matter of its README.md"
    return "", ""
