"""A pair of answers is asked like any row; its chosen answer is the reference."""

from __future__ import annotations

import json

from tunesmith.evaluate.heldout import held_out_rows
from tunesmith.models.chat import turns_of
from tunesmith.store import Run

PAIR = {
    "prompt": [{"role": "user", "content": "2 + 2?"}],
    "chosen": [{"role": "assistant", "content": "4"}],
    "rejected": [{"role": "assistant", "content": "5"}],
    "meta": {"hard": False},
}


def test_the_conversation_of_a_pair_ends_with_the_chosen_answer():
    assert [turn["content"] for turn in turns_of(PAIR)] == ["2 + 2?", "4"]
    row = {"messages": turns_of(PAIR)}
    assert turns_of(row) == row["messages"]


def test_a_test_pair_is_asked_with_its_prompt_and_judged_by_its_chosen_answer(tmp_path):
    with Run.open(tmp_path / "data", "data", inputs={}) as at:
        at.write_text("test.jsonl", json.dumps(PAIR) + "\n")
        dataset = at.finish({})
    (example,), _ = held_out_rows(dataset, None, 0)
    assert example.prompt == tuple(PAIR["prompt"])
    assert example.reference == "4"
    assert example.meta == {"hard": False}
