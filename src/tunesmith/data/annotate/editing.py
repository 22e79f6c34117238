"""A row's JSON on many lines for an editor, and on one line again, each number with its own characters."""

from __future__ import annotations

import json
import re

__all__ = ["on_lines", "on_one_line"]

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{},:]|[^\s\[\]{},:"]++', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


def on_lines(text: str) -> str:
    """Valid JSON with two spaces a level; escapes in texts are spelled out, numbers stay as they are."""
    parts: list[str] = []
    depth, before = 0, ""
    for token in _TOKEN.findall(text):
        if token in ("]", "}"):
            depth -= 1
        ends_empty = before + token in ("[]", "{}")
        if (before in ("[", "{", ",") or token in ("]", "}")) and not ends_empty:
            parts.append(f"\n{'  ' * depth}")
        parts.append(_readable(token) if token.startswith('"') else token)
        if token == ":":
            parts.append(" ")
        depth += token in ("[", "{")
        before = token
    return "".join(parts) + "\n"


def on_one_line(text: str) -> str:
    """Valid JSON without the white space between its parts but one space after `,` and `:`."""
    spaced = (f"{token} " if token in (",", ":") else token for token in _TOKEN.findall(text))
    return "".join(spaced)


def _readable(token: str) -> str:
    said = json.loads(token, strict=False)
    return token if _SURROGATE.search(said) else json.dumps(said, ensure_ascii=False)
