"""Rows of every kind as a model sees them; text of users never steers the terminal."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tunesmith import data
from tunesmith.errors import MissingError

spec = importlib.util.spec_from_file_location(
    "shown_rows", Path(__file__).with_name("test_data_show.py")
)
shown_rows = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shown_rows)
renderer = shown_rows.renderer

USER = {"role": "user", "content": "hi"}
SAID = [{"role": "assistant", "content": "yes"}]
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"at": "Oslo"}'},
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def show(lines, renderer, row):
    return data.show(data.find_row(lines("a.jsonl", [row])), renderer)


def trained(shown):
    return "".join(token.text for token in shown.tokens if token.trained)


def test_feedback_shows_its_label_and_trains_the_answer_alone(lines, renderer):
    prompt = [USER, {"role": "assistant", "content": "one"}, USER]
    shown = show(lines, renderer, {"prompt": prompt, "completion": SAID, "label": False})
    assert trained(shown) == "yes<|im_end|>"
    assert shown.notes == ("label: bad",)
    assert shown.as_dict()["kind"] == "feedback"
    assert "label: bad" in shown.plain()


def test_a_problem_ends_with_the_opening_of_an_answer(lines, renderer):
    shown = show(lines, renderer, {"prompt": [USER], "answer": {"n": 2}})
    assert "".join(token.text for token in shown.tokens).endswith("<|im_start|>assistant\n")
    assert shown.n_trained == 0
    assert 'answer to check: {"n": 2}' in shown.rich().plain


def test_text_is_shown_without_a_template(lines, renderer):
    shown = show(lines, renderer, {"text": "Once, 你好"})
    assert trained(shown) == "Once, 你好"
    assert shown.kind == "text"


def test_a_conversation_with_tools_is_shown_even_where_the_template_refuses_it(lines, renderer):
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    turns += [{"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "21"}, *SAID]
    shown = show(lines, renderer, {"messages": turns, "tools": [TOOL]})
    text = shown.plain()
    assert "weather" in text
    assert "Oslo" in text
    assert shown.n_trained == 0


def test_a_template_that_leaves_tools_out_is_told(lines, renderer):
    shown = show(lines, renderer, {"messages": [USER, *SAID], "tools": [TOOL]})
    assert any("leaves out descriptions" in note for note in shown.notes)
    roles = {token.role for token in shown.tokens}
    assert {"user", "assistant", "template"} <= roles


def test_control_characters_of_rows_never_reach_the_terminal(lines, renderer):
    evil = "a\x1b[2J\x9b31m\u202eb\x07"
    for row in (
        {"messages": [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}]},
        {"prompt": [USER], "answer": evil},
        {"messages": [{"role": "user", "content": evil}, *SAID], "tools": [TOOL]},
    ):
        shown = show(lines, renderer, row)
        for text in (shown.plain(), shown.rich().plain):
            assert not any(ord(c) < 32 and c not in "\n\t" for c in text)
            assert not any(0x7F <= ord(c) <= 0x9F or c == "\u202e" for c in text)
            assert "\\x1b" in text or "\\u001b" in text


def test_several_rows_come_in_the_order_that_was_asked(lines):
    path = lines("a.jsonl", [{"prompt": f"q{n}", "completion": "a"} for n in range(1, 30)])
    found = data.find_rows(path, None, split="train", numbers=[7, 2, 7])
    assert [row.question for row in found] == ["q7", "q2", "q7"]
    with pytest.raises(MissingError, match="has no row 30"):
        data.find_rows(path, None, split="train", numbers=[1, 30])


def test_rows_are_drawn_by_the_seed_and_each_at_most_once(lines):
    path = lines("a.jsonl", [{"prompt": f"q{n}", "completion": "a"} for n in range(50)])
    drawn = [data.draw_rows(path, None, split="train", count=5, seed=n) for n in (0, 0, 1)]
    questions = [[row.question for row in rows] for rows in drawn]
    assert questions[0] == questions[1] != questions[2]
    assert len(set(questions[0])) == 5
    assert len(data.draw_rows(path, None, split="train", count=99, seed=0)) == 50


def test_a_pair_keeps_its_kind_for_programs(lines, renderer):
    row = {"prompt": [USER], "chosen": SAID, "rejected": [{"role": "assistant", "content": "no"}]}
    found = json.loads(json.dumps(show(lines, renderer, row).as_dict()))
    assert found["kind"] == found["rejected"]["kind"] == "pair"
