"""What the tests of the data room share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tunesmith import data
from tunesmith.config import recipe_from
from tunesmith.store import Run

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def lines(tmp_path):
    """Writes rows (or raw text) as a JSONL file and returns its path."""

    def write(name, rows):
        path = tmp_path / name
        texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def seal(tmp_path):
    """Runs the data stage on a recipe's values, in a folder of its own."""

    def run(section, seed=0, name="sealed"):
        recipe = recipe_from({"seed": seed, "data": section})
        parents = data.sources(recipe)
        with Run.open(tmp_path / name, "data", inputs={"seed": seed}, parents=parents) as at:
            return data.run(recipe, at)

    return run


@pytest.fixture
def rows_of():
    """Parsed rows of a split of a sealed dataset."""

    from rows_of_text import rows_in

    def read(result, split):
        return rows_in(Path(result.artifact.path(f"{split}.jsonl")))

    return read
