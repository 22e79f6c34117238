"""Random choices for the datasets' builders: the same on every machine and Python version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Draws", "json_lines", "words_in", "write_files"]

Item = TypeVar("Item")


class Draws:
    """A sequence of choices that depends on nothing but its key (SHA-256)."""

    def __init__(self, *key: object) -> None:
        self._key = "/".join(map(str, key))
        self._n_drawn = 0

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + self._next() % (high - low + 1)

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self._next() % len(items)]

    def several(self, items: Sequence[Item], count: int) -> list[Item]:
        """Different ones of the items, in random order."""
        left = list(items)
        return [left.pop(self._next() % len(left)) for _ in range(count)]

    def _next(self) -> int:
        self._n_drawn += 1
        text = f"{self._key}/{self._n_drawn}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def words_in(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_files(folder: Path, files: Mapping[str, str]) -> int:
    """Write a dataset's files (name -> content); returns how many differed from what was there."""
    n_changed = 0
    for name, content in files.items():
        path = folder / name
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            continue
        path.write_text(content, encoding="utf-8", newline="\n")
        n_changed += 1
    return n_changed
