"""Makes the arithmetic set: `python -m tunesmith.data.samples.arithmetic.build`.

Every answer is the exact value of the expression that its row carries. The main operand of a test
problem comes from a fifth of its range that no other split uses for that kind.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tunesmith.data.samples.arithmetic.kinds import KINDS, Kind, Operands, said, value_of
from tunesmith.data.samples.draws import Draws, json_lines, write_files

__all__ = ["build"]

WANTED_ROWS = {"train": 1_050, "validation": 99, "test": 231}
SEED = 11


def build() -> dict[str, str]:
    """The set's files: name -> content.

    Raises:
        ValueError: a split cannot be filled, or an answer has no short form.
    """
    seen: set[str] = set()
    return {f"{split}.jsonl": json_lines(_rows(split, n, seen)) for split, n in WANTED_ROWS.items()}


def _rows(split: str, n_wanted: int, seen: set[str]) -> list[dict[str, Any]]:
    """Turns among the kinds; no sum twice in any split."""
    rows: list[dict[str, Any]] = []
    for turn in range(20 * n_wanted):
        if len(rows) == n_wanted:
            return rows
        kind = KINDS[turn % len(KINDS)]
        row = _row(kind, Operands(Draws(SEED, split, turn), held=split == "test"))
        # 7 times 2 asks what 2 times 7 asks.
        key = " ".join(sorted(row["meta"]["expression"].split()))
        if key not in seen:
            seen.add(key)
            rows.append(row)
    raise ValueError(f"{split}: {len(rows)} problems, {n_wanted} wanted")


def _row(kind: Kind, operands: Operands) -> dict[str, Any]:
    question, expression = kind.make(operands)
    return {
        "prompt": [{"role": "user", "content": question}],
        "answer": said(value_of(expression), kind.name),
        "meta": {"kind": kind.name, "level": kind.level, "expression": expression},
    }


if __name__ == "__main__":
    sys.stdout.write(f"{write_files(Path(__file__).resolve().parent, build())} files changed\n")
