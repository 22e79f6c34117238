"""The project's own text-to-SQL set. `build.py` makes the files beside this module."""

from __future__ import annotations

from pathlib import Path

from tunesmith.data.rows import Kind

__all__ = ["ABOUT", "CARD", "KIND", "row_files", "scripts"]

_HERE = Path(__file__).resolve().parent
ABOUT = "Questions about eight small databases, each with a query that runs."
CARD = _HERE / "CARD.md"
KIND: Kind = "chat"


def row_files() -> dict[str, Path]:
    """Split -> file of its rows."""
    return {split: _HERE / f"{split}.jsonl" for split in ("train", "validation", "test")}


def scripts() -> dict[str, Path]:
    """Database name -> SQL script that makes it."""
    return {path.stem: path for path in sorted((_HERE / "databases").glob("*.sql"))}
