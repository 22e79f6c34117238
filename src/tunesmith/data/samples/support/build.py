"""Makes the support set: `python -m tunesmith.data.samples.support.build`.

Of the wordings of each question most are for training, one is for validation and one for the test, so that
no wording of the test is seen in training. What is said about orders is computed from the shop's rules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tunesmith.data.samples.draws import Draws, json_lines, write_files
from tunesmith.data.samples.support.orders import INTRO, KINDS, Talk

__all__ = ["build", "policies"]

SEED = 17
WANTED_ROWS = {"train": 1_008, "validation": 104, "test": 208}
_HERE = Path(__file__).resolve().parent
_WORDINGS = {"train": range(6), "validation": range(6, 7), "test": range(7, 8)}
_ORDER_WORDINGS = {"train": range(5), "validation": range(5, 6), "test": range(6, 7)}
_N_ORDERS = {"train": 480, "validation": 40, "test": 110}
_OPENINGS = (
    "Thanks. {}",
    "OK. {}",
    "One more thing: {}",
    "I see. {}",
    "Then this: {}",
    "Something else. {}",
)
_ODD = ("not_ours", "unknown")
"""Topics that do not open a conversation of two questions."""


def policies() -> dict[str, tuple[str, list[str]]]:
    """Topic -> answer, and the eight ways to ask.

    Raises:
        ValueError: a topic has another number of wordings.
    """
    found = YAML(typ="safe", pure=True).load((_HERE / "shop.yaml").read_text(encoding="utf-8"))
    for topic, (_, asked) in found.items():
        if len(asked) != 8:
            raise ValueError(f"{topic}: {len(asked)} wordings")
    return {topic: (answer, list(asked)) for topic, (answer, asked) in found.items()}


def build() -> dict[str, str]:
    """The set's files: name -> content.

    Raises:
        ValueError: a split cannot be filled.
    """
    seen: set[str] = set()
    return {f"{split}.jsonl": json_lines(_rows(split, n, seen)) for split, n in WANTED_ROWS.items()}


def _rows(split: str, n_wanted: int, seen: set[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for talk in _talks(split):
        key = "\n".join([talk.system, *(asked for asked, _ in talk.turns)])
        if key not in seen and len(rows) < n_wanted:
            seen.add(key)
            rows.append(_row(talk))
    if len(rows) < n_wanted:
        raise ValueError(f"{split}: {len(rows)} conversations, {n_wanted} wanted")
    draws = Draws(SEED, "order", split)
    return draws.several(rows, len(rows))


def _talks(split: str) -> Iterator[Talk]:
    """Each policy in each wording, then orders, then conversations of two questions."""
    known = policies()
    for topic, (answer, asked) in known.items():
        for at in _WORDINGS[split]:
            yield Talk(topic, INTRO, [(asked[at], answer)])
    wordings = _ORDER_WORDINGS[split]
    for turn in range(_N_ORDERS[split]):
        kind = KINDS[turn % len(KINDS)]
        yield kind(
            Draws(SEED, split, kind.__name__, turn), wordings[turn // len(KINDS) % len(wordings)]
        )
    for turn in range(2_000):
        d = Draws(SEED, split, "two", turn)
        first, second = d.several([topic for topic in known if topic not in _ODD], 2)
        (answer, asked), (further, more) = known[first], known[second]
        opening, next_one = asked[d.pick(_WORDINGS[split])], more[d.pick(_WORDINGS[split])]
        turns = [(opening, answer), (d.pick(_OPENINGS).format(next_one), further)]
        yield Talk(f"{first}, {second}", INTRO, turns)


def _row(talk: Talk) -> dict[str, Any]:
    messages = [{"role": "system", "content": talk.system}]
    for asked, answered in talk.turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return {"messages": messages, "meta": {"topic": talk.topic}}


if __name__ == "__main__":
    sys.stdout.write(f"{write_files(_HERE, build())} files changed\n")
