"""Datasets of kinds that training does not read are refused before anything is loaded."""

from __future__ import annotations

import json

import pytest

from tunesmith import data
from tunesmith.config import recipe_from
from tunesmith.errors import DataError
from tunesmith.train.plan import plan_training

ROWS = {
    "feedback": {"prompt": "q{n}", "completion": "a{n}", "label": True},
    "problem": {"prompt": "What is {n} + 1?", "answer": 7},
    "text": {"text": "A text about the number {n}."},
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_that_training_does_not_read_are_refused_with_the_reason(tmp_path, kind):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(ROWS[kind]).replace("{n}", str(n)) for n in range(60)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = {"kind": "files", "train": str(path)}
    section = {"source": source, "split": {"near_duplicates": False}}
    recipe = recipe_from({"model": {"base": "./nowhere"}, "data": section})
    dataset = data.build(recipe, tmp_path / "sealed").artifact
    assert dataset.facts["kind"] == kind
    with pytest.raises(DataError, match=f"kind {kind!r}, which training does not read") as caught:
        plan_training(recipe, dataset)
    assert caught.value.why
    assert "tunesmith data convert" in caught.value.fix
