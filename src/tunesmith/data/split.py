"""Rows to train, validation and test: by file or by ratio, and never the same prompt in two."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.rows import Row
from tunesmith.errors import DataError, listed

__all__ = [
    "SPLITS",
    "Overlap",
    "drawn",
    "find_overlaps",
    "hold_out",
    "prompt_key",
    "refuse_overlaps",
]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Overlap:
    """A row whose prompt also stands in a split that is to be judged or chosen by."""

    split: str
    row: Row
    held_out_split: str
    held_out: Row

    def __str__(self) -> str:
        """Both places and the shared prompt."""
        prompt = str(self.row.messages[-2]["content"])
        shown = prompt if len(prompt) <= 60 else f"{prompt[:60]}..."
        return (
            f"{self.row.where} ({self.split}) = {self.held_out.where} ({self.held_out_split}): "
            f"{shown!r}"
        )


def prompt_key(row: Row) -> str:
    """Equal for rows that ask the same: hash of their database and all turns before the last answer.

    Case, Unicode forms, runs of white space and closing punctuation do not count.
    """
    turns = [f"{turn['role']}\0{_plain(str(turn['content']))}" for turn in row.messages[:-1]]
    text = "\0\0".join([str(row.meta.get("database", "")), *turns])
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(text: str) -> str:
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).rstrip(" ?!.。？！")


def hold_out(
    rows: Sequence[Row], n_wanted: int, seed: int, split: str
) -> tuple[list[Row], list[Row]]:
    """Divide rows in two by their prompts: all rows with one prompt go to the same side.

    The choice depends on the seed and the prompts alone, not on the order of the rows.

    Args:
        n_wanted: rows to hold out, or a few more when the last prompt has several; at least one row
            is held out and at least one prompt stays.
        split: what the rows are held out for.

    Returns:
        What stays and what is held out, each in the order of `rows`.

    Raises:
        DataError: there is only one prompt.
    """
    groups: dict[str, int] = defaultdict(int)
    keys = [prompt_key(row) for row in rows]
    for key in keys:
        groups[key] += 1
    if len(groups) < 2:
        raise DataError(
            f"{len(rows)} rows with {len(groups)} different prompts cannot be split for {split}",
            why="a prompt that is trained on says nothing when it is also tested",
            fix=f"add rows, or name a file as data.source.{split}",
        )
    held: set[str] = set()
    n_held = 0
    for key in sorted(groups, key=lambda key: _rank(seed, split, key))[:-1]:
        if n_held >= max(1, n_wanted):
            break
        held.add(key)
        n_held += groups[key]
    stays = [row for row, key in zip(rows, keys, strict=True) if key not in held]
    return stays, [row for row, key in zip(rows, keys, strict=True) if key in held]


def drawn(rows: Sequence[Row], limit: int | None, seed: int, split: str) -> list[Row]:
    """At most `limit` rows, drawn by the seed, in the order of `rows`."""
    if limit is None or len(rows) <= limit:
        return list(rows)
    places = sorted(range(len(rows)), key=lambda place: _rank(seed, split, str(place)))
    return [rows[place] for place in sorted(places[:limit])]


def _rank(seed: int, split: str, key: str) -> str:
    return hashlib.sha256(f"{seed}/{split}/{key}".encode()).hexdigest()


def find_overlaps(splits: Mapping[str, Sequence[Row]]) -> list[Overlap]:
    """Rows of train and validation whose prompt stands in the test, and of train in validation.

    Each row is named once, with the first row that it repeats.
    """
    found: list[Overlap] = []
    held: dict[str, tuple[str, Row]] = {}
    for split in reversed(SPLITS):
        keyed = [(prompt_key(row), row) for row in splits[split]]
        found += [Overlap(split, row, *held[key]) for key, row in keyed if key in held]
        for key, row in keyed:
            held.setdefault(key, (split, row))
    return found


def refuse_overlaps(overlaps: Sequence[Overlap]) -> None:
    """Stop when a prompt is both trained on and tested.

    Raises:
        DataError: names every such pair of rows.
    """
    if overlaps:
        noun = "row shares its prompt" if len(overlaps) == 1 else "rows share their prompts"
        raise DataError(
            f"{len(overlaps)} {noun} with held-out rows:\n"
            + listed((str(overlap) for overlap in overlaps), limit=50),
            why="a test on rows that were trained on measures memory, not skill",
            fix="remove them, or set data.on_overlap to drop_from_train",
        )
