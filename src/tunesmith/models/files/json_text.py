"""JSON files of a model: small, shallow and without a key twice, or not read at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.models.files.finding import Findings

__all__ = ["MOST_CONFIG_BYTES", "MOST_TOKENIZER_BYTES", "read_json_object"]

MOST_CONFIG_BYTES = 1 << 24
"""An index of 100,000 tensors has 8 MB; a config has a few kB."""
MOST_TOKENIZER_BYTES = 1 << 28
"""The vocabulary of 262,144 tokens makes 33 MB of tokenizer.json."""
MOST_DEPTH = 64


def read_json_object(
    path: Path,
    found: Findings,
    *,
    most_bytes: int = MOST_CONFIG_BYTES,
    any_value: bool = False,
) -> dict[str, Any] | None:
    """The object in a JSON file; None, with a finding, when it cannot be read within the limits.

    Args:
        most_bytes: a longer file is not opened.
        any_value: a list or text is no finding either; it is not returned.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            told = f"it has {size:,} bytes, {most_bytes:,} is the most for such a file"
            found.error("json-size", "", told, "reading it would fill the memory")
            return None
        raw = path.read_bytes()
    except OSError as error:
        found.error("file-unreadable", "", f"it cannot be read: {error.strerror}")
        return None
    twice: list[str] = []
    small = size <= MOST_CONFIG_BYTES
    try:
        value = json.loads(raw, object_pairs_hook=_noting(twice) if small else None)
    except (ValueError, RecursionError) as error:
        told = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        found.error("json-syntax", "", f"it is no JSON: {told[:200]}", "nothing can load it")
        return None
    if twice:
        keys = ", ".join(sorted(set(twice))[:5])
        told = f"keys are there twice: {keys}"
        found.warning("json-duplicate", "", told, "two readers may take two values")
    if not isinstance(value, dict) and not any_value:
        found.error("json-syntax", "", f"it holds a {type(value).__name__}, not an object")
        return None
    if _is_deep(value):
        told = f"it is nested more than {MOST_DEPTH} levels deep"
        found.error("json-depth", "", told, "a reader that calls itself for each level would crash")
        return None
    return value if isinstance(value, dict) else None


def _noting(twice: list[str]) -> Any:
    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                if name in seen:
                    twice.append(name)
                seen.add(name)
        return value

    return made


def _is_deep(value: Any) -> bool:
    level = [value] if type(value) in (dict, list) else []
    for _ in range(MOST_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) in (dict, list)
        ]
        if not level:
            return False
    return True
