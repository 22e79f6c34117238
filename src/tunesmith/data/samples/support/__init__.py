"""The project's own customer support conversations. `build.py` makes its files."""

from __future__ import annotations

from pathlib import Path

from tunesmith.data.rows import Kind

__all__ = ["ABOUT", "CARD", "KIND", "row_files", "scripts"]

_HERE = Path(__file__).resolve().parent
ABOUT = "Customers of an invented shop and its support: fixed policies, orders, several turns."
CARD = _HERE / "CARD.md"
KIND: Kind = "chat"


def row_files() -> dict[str, Path]:
    """Split -> file of its rows."""
    return {split: _HERE / f"{split}.jsonl" for split in ("train", "validation", "test")}


def scripts() -> dict[str, Path]:
    """None: the rows need no database."""
    return {}
