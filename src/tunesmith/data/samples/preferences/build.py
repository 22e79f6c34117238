"""Makes the preference set: `python -m tunesmith.data.samples.preferences.build`.

Each rejected answer is shown to fail its row's check, and each chosen one to pass it, before the pair is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.samples import text_to_sql
from tunesmith.data.samples.draws import Draws, json_lines, words_in, write_files
from tunesmith.data.samples.preferences.flaws import FLAWS, fails, results
from tunesmith.data.samples.preferences.kinds import KINDS, Pair, Words, sql_pair

__all__ = ["build"]

SEED = 13
WANTED_ROWS = {"train": 1_008, "validation": 96, "test": 208}
N_SQL = 2
"""Pairs of queries in each turn of all kinds."""
WORDS = {
    "train": Words(
        words_in(
            "Ada Ben Carla David Elena Frank Grace Hugo Jonas Karen Leo Maria Paula Simon Tara Victor"
        ),
        words_in(
            "Arden Bellmore Carrick Dunmore Eastvale Farleigh Glenbrook Harwick Inverley Kingsford Langley Milford"
        ),
    ),
    "validation": Words(
        words_in("Iris Quinn Rosa Stefan Uma"), words_in("Northam Oakvale Pemberly Ridgeway")
    ),
    "test": Words(
        words_in("Amir Bianca Cyril Dora Emil Fiona Gareth Hanna"),
        words_in("Rosefield Stanmoor Thornby Upwood Wexcombe Yarford"),
    ),
}


def build() -> dict[str, str]:
    """The set's files: name -> content.

    Raises:
        ValueError: a pair is not what it says, or a split cannot be filled.
    """
    seen: set[str] = set()
    return {f"{split}.jsonl": json_lines(_rows(split, n, seen)) for split, n in WANTED_ROWS.items()}


def _rows(split: str, n_wanted: int, seen: set[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for pair in _pairs(split, n_wanted):
        if len(rows) == n_wanted:
            return rows
        if pair.system + pair.prompt in seen or not _is_shown(pair):
            continue
        seen.add(pair.system + pair.prompt)
        rows.append(_row(pair))
    raise ValueError(f"{split}: {len(rows)} pairs, {n_wanted} wanted")


def _pairs(split: str, n_wanted: int) -> Iterator[Pair]:
    """Turns among the kinds and the queries."""
    text = text_to_sql.row_files()[split].read_text(encoding="utf-8")
    queries = [json.loads(line) for line in text.splitlines()]
    for turn in range(4 * n_wanted // len(KINDS)):
        for kind in KINDS:
            yield kind(Draws(SEED, split, kind.__name__, turn), WORDS[split])
        for at, flaw in enumerate(("query-fails", "wrong-rows")[:N_SQL]):
            row = queries[(N_SQL * turn + at) % len(queries)]
            pair = sql_pair(Draws(SEED, split, flaw, turn), row, flaw)
            if pair is not None:
                yield pair


def _is_shown(pair: Pair) -> bool:
    """Whether the check tells the two answers apart; of queries, some changes change nothing.

    Raises:
        ValueError: the chosen answer fails, or a rejected one that is no query passes.
    """
    bad = fails(pair.check, pair.rejected)
    if fails(pair.check, pair.chosen) or pair.flaw not in FLAWS:
        raise ValueError(f"{pair.flaw}: the chosen answer fails: {pair}")
    if pair.check["kind"] == "sql":
        runs = results(pair.check["database"], pair.rejected) is not None
        return bad and runs == (pair.flaw == "wrong-rows")
    if not bad and pair.flaw != "wrong-code":
        raise ValueError(f"{pair.flaw}: the rejected answer passes: {pair}")
    return bad


def _row(pair: Pair) -> dict[str, Any]:
    turns = [{"role": "system", "content": pair.system}] if pair.system else []
    # What the chosen answer says is not written twice.
    repeats = pair.check["kind"] in ("capitals", "json", "sorted", "sql")
    check = {k: v for k, v in pair.check.items() if k != "is" or not repeats}
    return {
        "prompt": [*turns, {"role": "user", "content": pair.prompt}],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "meta": {"flaw": pair.flaw, "check": check},
    }


if __name__ == "__main__":
    sys.stdout.write(f"{write_files(Path(__file__).resolve().parent, build())} files changed\n")
