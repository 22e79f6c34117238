"""Which base a model was made from, and its licence, where both can be known without asking anyone."""

from __future__ import annotations

import re

from tunesmith.errors import EnvironmentProblem
from tunesmith.models.embedded import NAME, already_dequantised, embedded_gguf
from tunesmith.models.load import BaseModel

__all__ = ["EMBEDDED_ON_HUB", "is_embedded", "licence_of"]

EMBEDDED_ON_HUB = f"HuggingFaceTB/{NAME}"
"""The model that the embedded one was quantised from."""

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)
_LICENCE = re.compile(
    r"^license:[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9.+-]*)[\"']?[ \t]*$", re.MULTILINE
)


def is_embedded(base: BaseModel) -> bool:
    """Whether it is the installed wheel's own model; a folder that merely has its name is not."""
    if base.name != NAME:
        return False
    try:
        made = already_dequantised(embedded_gguf())
    except EnvironmentProblem:
        return False
    return made is not None and base.dir.resolve() == (made.dir / "model").resolve()


def licence_of(base: BaseModel) -> tuple[str, str]:
    """The licence's identifier and where it is stated; two empty texts when it is not known."""
    # A name with an owner comes from the Hub: those of folders and files have no slash.
    if base.name == EMBEDDED_ON_HUB or is_embedded(base):
        return "apache-2.0", "as published by Hugging Face"
    card = base.dir / "README.md"
    if card.is_file():
        head = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
        found = _LICENCE.search(head[1]) if head else None
        if found:
            return found[1], "front matter of its README.md"
    return "", ""
