"""The project's own arithmetic problems with checkable answers. `build.py` makes its files."""

from __future__ import annotations

from pathlib import Path

from tunesmith.data.rows import Kind

__all__ = ["ABOUT", "CARD", "KIND", "row_files", "scripts"]

_HERE = Path(__file__).resolve().parent
ABOUT = "Arithmetic in words and signs, five levels, each answer computed."
CARD = _HERE / "CARD.md"
KIND: Kind = "problem"


def row_files() -> dict[str, Path]:
    """Split -> file of its rows."""
    return {split: _HERE / f"{split}.jsonl" for split in ("train", "validation", "test")}


def scripts() -> dict[str, Path]:
    """None: the rows need no database."""
    return {}
