"""Masks are proved before training, long rows are dealt with, and an answer is never cut."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError, TrainingError
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_tokenizer, resolve_base
from tunesmith.train.rows import check_masks, encode_rows


@pytest.fixture(scope="module")
def renderer(tokenizer) -> ChatRenderer:
    return ChatRenderer(tokenizer)


def write_rows(path, *conversations):
    lines = [json.dumps({"messages": turns, "meta": {}}) + "\n" for turns in conversations]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def turns(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def learned(row) -> list[int]:
    return [token for token, on in zip(row.tokens, row.trained, strict=True) if on]


def encode(path, renderer, limit=512, policy="refuse"):
    return encode_rows(path, renderer, max_row_tokens=limit, on_long_row=policy)


def test_trained_tokens_are_the_answer_and_its_stop_and_nothing_else(tmp_path, renderer):
    path = write_rows(tmp_path / "t.jsonl", turns("one?", " first \n", "two?", "second"))
    (row,) = encode(path, renderer).rows
    text = renderer.decode(learned(row), special=True)
    assert text == " first \n<|im_end|>second<|im_end|>"
    check_masks([row], path, renderer)


@pytest.mark.parametrize("mask", ["none", "all", "shifted", "no stop"])
def test_a_planted_fault_in_the_mask_is_caught(tmp_path, renderer, mask):
    path = write_rows(tmp_path / "t.jsonl", turns("what is it?", "a small brown dog"))
    (row,) = encode(path, renderer).rows
    first, last = row.trained.index(True), len(row.trained) - row.trained[::-1].index(True)
    wrong = {
        "none": [False] * len(row.trained),
        "all": [True] * len(row.trained),
        "shifted": [False, *row.trained[:-1]],
        "no stop": [first <= i < last - 1 for i in range(len(row.trained))],
    }[mask]
    with pytest.raises(TrainingError):
        check_masks([replace(row, trained=tuple(wrong))], path, renderer)


def test_no_rows_at_all_is_refused(tmp_path, renderer):
    path = write_rows(tmp_path / "t.jsonl")
    with pytest.raises(TrainingError, match="no rows"):
        check_masks([], path, renderer)


def test_a_cut_prompt_keeps_its_end_and_the_whole_answer(tmp_path, renderer):
    question = "word " * 300 + "last words"
    path = write_rows(tmp_path / "t.jsonl", turns(question, "the whole answer"))
    found = encode(path, renderer, limit=80, policy="cut_prompt")
    (row,) = found.rows
    assert found.cut_lines == (1,)
    assert len(row.tokens) <= 80
    assert renderer.decode(learned(row)) == "the whole answer"
    assert "last words" in renderer.decode(row.tokens)


def test_an_answer_that_is_too_long_alone_is_refused_not_cut(tmp_path, renderer):
    path = write_rows(tmp_path / "t.jsonl", turns("short", "long " * 200))
    with pytest.raises(DataError, match=r"t\.jsonl:1"):
        encode(path, renderer, limit=80, policy="cut_prompt")


def test_dropped_rows_are_counted_by_line(tmp_path, renderer):
    path = write_rows(
        tmp_path / "t.jsonl", turns("a", "b"), turns("a", "b " * 200), turns("c", "d")
    )
    found = encode(path, renderer, limit=80, policy="drop")
    assert found.dropped_lines == (2,)
    assert [row.line for row in found.rows] == [1, 3]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)


def spells(text: str) -> bool:
    """Whether the tokenizer has tokens for all of the text; SmolLM2's lacks some bytes."""
    from tunesmith.config import ModelConfig

    tokenizer = _renderer(ModelConfig()).tokenizer
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_an_answer_that_the_tokenizer_cannot_spell_is_refused_with_its_line(tmp_path, renderer):
    path = write_rows(tmp_path / "t.jsonl", turns("a", "b"), turns("a", "\U00040000"))
    with pytest.raises(TrainingError, match=r"t\.jsonl:2: the model's tokenizer cannot spell"):
        check_masks(encode(path, renderer).rows, path, renderer)


@given(
    st.lists(TEXT.filter(str.strip).filter(spells), min_size=2, max_size=6).filter(
        lambda t: len(t) % 2 == 0
    )
)
def test_any_text_is_masked_right_even_when_it_spells_control_tokens(tmp_path_factory, contents):
    from tunesmith.config import ModelConfig

    renderer = _renderer(ModelConfig())
    contents = [c + "<|im_end|>\n<|im_start|>" if i == 0 else c for i, c in enumerate(contents)]
    path = write_rows(tmp_path_factory.mktemp("p") / "t.jsonl", turns(*contents))
    (row,) = encode(path, renderer, limit=4096).rows
    check_masks([row], path, renderer)
    stop = renderer.stop_ids[0]
    # One stop token for each turn, none of them out of a content.
    assert row.tokens.count(stop) == len(contents) + 1
    assert sum(token == stop for token in learned(row)) == len(contents) // 2


_RENDERERS: dict = {}


def _renderer(config) -> ChatRenderer:
    if "one" not in _RENDERERS:
        _RENDERERS["one"] = ChatRenderer(load_tokenizer(resolve_base(config)))
    return _RENDERERS["one"]
