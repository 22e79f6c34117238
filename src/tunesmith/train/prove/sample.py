"""A few good rows of the user's dataset, sealed as a dataset of its own for the proofs to work on."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import Recipe
from tunesmith.errors import DataError
from tunesmith.store import Artifact, Run
from tunesmith.train.prove.quick import Judged

__all__ = ["FEWEST_ROWS", "SAMPLE_TOKENS", "Sample", "draw", "small_recipe"]

SAMPLE_TOKENS = 448
"""About so many tokens of training rows are computed by each gradient."""
MOST_ROWS = 12
FEWEST_ROWS = 2
VALIDATION_ROWS = 4
TEST_ROWS = 12
"""More than a few, as a tenth of the references may fail before an evaluation refuses them."""


@dataclass(frozen=True)
class Sample:
    """The sealed sample, and where its rows come from.

    Attributes:
        dataset: train, validation and test rows, and every other file of the dataset.
        lines: lines of train.jsonl.
        tokens: of these rows.
        of_rows: rows of train.jsonl that could have been drawn.
    """

    dataset: Artifact
    lines: tuple[int, ...]
    tokens: int
    of_rows: int

    def as_facts(self, seed: int) -> dict[str, Any]:
        """What the report says of it."""
        return {
            "rows": len(self.lines),
            "of_rows": self.of_rows,
            "tokens": self.tokens,
            "lines": list(self.lines),
            "seed": seed,
        }


def draw(dataset: Artifact, judged: Mapping[str, Judged], folder: Path, seed: int) -> Sample:
    """Draw rows whose masks are right and seal them in `folder`.

    Long rows are left to the rehearsal of the longest batch: the sample is drawn from the rows of at
    most a quarter of `SAMPLE_TOKENS`, or from the shortest when there are too few of these.

    Raises:
        DataError: fewer than two rows are good.
        StorageError: the disk refuses.
    """
    good = judged["train"].good_lines
    chosen = _chosen(good, seed)
    if len(chosen) < FEWEST_ROWS:
        raise DataError(
            f"only {len(chosen)} rows of train.jsonl can be trained on",
            why=f"the proofs compare at least {FEWEST_ROWS} rows with each other",
            fix="mend what the first three proofs name, or add rows",
        )
    validation = list(judged["validation"].good_lines)[:VALIDATION_ROWS]
    keep = {"train": chosen, "validation": validation or chosen}
    with Run.open(folder, "data", inputs={"sample": keep, "of": dataset.sha256}) as at:
        for split, numbers in keep.items():
            source = judged["train" if not validation else split].path
            texts = source.read_text(encoding="utf-8").split("\n")
            at.write_text(f"{split}.jsonl", "".join(f"{texts[n - 1]}\n" for n in numbers))
        _write_test(dataset, at)
        _copy_others(dataset, at)
        sealed = at.finish(dataset.facts)
    return Sample(sealed, tuple(chosen), sum(good[line] for line in chosen), len(good))


def _chosen(good: Mapping[int, int], seed: int) -> list[int]:
    """Lines; `good` has the tokens of each."""
    by_length = sorted(good, key=lambda line: (good[line], line))
    short = [line for line in by_length if good[line] <= SAMPLE_TOKENS // 4]
    pool = short if len(short) >= FEWEST_ROWS else by_length[:FEWEST_ROWS]
    random.Random(seed).shuffle(pool)
    chosen: list[int] = []
    tokens = 0
    for line in pool[:MOST_ROWS]:
        if tokens + good[line] > SAMPLE_TOKENS and len(chosen) >= FEWEST_ROWS:
            break
        chosen.append(line)
        tokens += good[line]
    return sorted(chosen)


def _write_test(dataset: Artifact, at: Run) -> None:
    """The first test rows and the longest one, in the order of the file."""
    if "test.jsonl" not in dataset.files:
        return
    texts = dataset.path("test.jsonl").read_text(encoding="utf-8").split("\n")
    numbers = [number for number, text in enumerate(texts) if text.strip()]
    longest = max(numbers, key=lambda number: len(texts[number]), default=None)
    keep = set(numbers[: TEST_ROWS - 1]) | ({longest} if longest is not None else set())
    at.write_text("test.jsonl", "".join(f"{texts[number]}\n" for number in sorted(keep)))


def _copy_others(dataset: Artifact, at: Run) -> None:
    """Databases and whatever else lies beside the rows."""
    for name in dataset.files:
        if not at.path(name).exists():
            with at.writing(name) as temporary:
                shutil.copyfile(dataset.path(name), temporary)


def small_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with some of its training settings changed; its other settings stay as they are."""
    train = recipe.train.model_copy(update=dict(changes))
    return recipe.model_copy(update={"train": train})
