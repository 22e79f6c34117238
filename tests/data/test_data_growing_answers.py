"""New rows whose answer would no longer hold are not made: numbers, texts that end nowhere, paragraphs, luck."""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from random import Random

import pytest
from rows_of_text import chat_row

from tunesmith.data.grow import AugmentOptions, augment
from tunesmith.data.grow.ask import Ask
from tunesmith.data.grow.noise import Noise, open_words
from tunesmith.data.grow.paraphrase import TEMPLATES
from tunesmith.data.grow.rename import Rename, _tells
from tunesmith.data.grow.shuffle import shuffled
from tunesmith.data.grow.verify import final_value
from tunesmith.data.rows import Row
from tunesmith.errors import EnvironmentProblem


def asked(row, rule, times=12):
    (found,) = augment([row], AugmentOptions((rule,), times=times))
    return [made.value["messages"][-2]["content"] for made in found.made]


def test_no_slip_touches_a_number_word():
    question = "Why do nine birds like four trees and fifty ponds?"
    words = {question[start:end] for start, end in open_words(question, "")}
    assert {"birds", "like", "trees", "ponds"} <= words
    assert not {"nine", "four", "fifty"} & words


def test_no_slip_makes_a_word_on_which_the_meaning_hangs():
    noise = Noise(())
    slips = {noise._slip("thena", Random(seed))[1] for seed in range(400)}
    assert len(slips) > 5
    assert not {"then", "than"} & slips


@pytest.mark.parametrize(
    "question",
    [
        "Translate into German how are you?",
        "Classify the sentiment of this great movie!",
        "Please summarize the dog ran home.",
    ],
)
def test_nothing_is_added_after_a_text_that_ends_nowhere(question):
    made = asked(chat_row(question, "x"), "paraphrase")
    assert made
    assert all(one.endswith(question) for one in made)


def test_a_request_that_ends_in_an_exclamation_mark_does_not_lose_it():
    assert not any(TEMPLATES[name].fits("Give us hello!") for name in ("can-you", "could-you"))
    assert TEMPLATES["can-you"].fits("Give us the name.")


def test_who_has_is_not_made_who_is():
    assert not TEMPLATES["whats"].fits("Who's got the most wins?")
    assert TEMPLATES["whats"].fits("Who's the winner?")


def test_a_documents_second_paragraph_keeps_its_head():
    text = "Document 1: a b\n\nDocument 2: c d\n\nmore of c d\n\nWhat does it say?"
    three = f"Document 0: z\n\n{text}"
    for seed in range(12):
        assert shuffled(text, is_sql=False, refers=False, rng=Random(seed))[0] == text
        moved = shuffled(three, is_sql=False, refers=False, rng=Random(seed))[0]
        assert "Document 2: c d\n\nmore of c d" in moved


def test_columns_stay_where_an_answer_inserts_by_their_order():
    system = "city(name state)\nriver(name length)"
    assert (
        asked(chat_row("Add Reno.", "insert into city values ('Reno', 'NV')", system), "shuffle")
        == []
    )
    assert asked(chat_row("All names?", "select name from city", system), "shuffle")


@pytest.mark.parametrize(
    ("rows", "telling"),
    [([(0,)], False), ([(None, 0.0), (None, "")], False), ([(0, 3)], True), ([], False)],
)
def test_a_result_of_nothing_but_zero_and_null_proves_nothing(rows, telling):
    assert _tells(rows) is telling


def test_a_count_of_zero_is_proved_by_the_program(tmp_path):
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("create table city (name text, state text);")
    row = chat_row(
        "How many in Ohio?",
        "select count(*) from city where state = 'Ohio'",
        "city(name state)",
        database="shop",
    )
    options = AugmentOptions(
        ("rename",), databases={"shop": path}, databases_folder=tmp_path / "copies"
    )
    (found,) = augment([row], options)
    (made,) = found.made
    assert "compile to the same program" in made.meta["origin"]["proof"]


@pytest.mark.parametrize(
    ("text", "at_least"), [("你好吗" * 400, 1_200), ("8" * 900, 900), ("a plain text " * 90, 300)]
)
def test_what_a_request_may_cost_is_not_put_too_low(text, at_least):
    ask = Ask("a", ({"role": "user", "content": text},), 0.0, 10, 0)
    assert ask.most_tokens >= at_least + 10


def test_the_final_value_has_no_space_around_it():
    assert final_value("So the answer is:   42 . ") == "42"
    assert final_value("#### 1,000\n") == "1000"


def test_without_sqlglot_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sqlglot", None)
    with pytest.raises(EnvironmentProblem, match="sqlglot") as caught:
        Rename({}, tmp_path, 0)
    assert "tunesmith[data]" in caught.value.fix


@pytest.mark.parametrize("rule", ["noise", "paraphrase"])
def test_half_of_a_surrogate_pair_stays_an_escape_in_a_new_row(rule):
    text = '{"messages": [{"role": "user", "content": "Why does \\ud800 é fail when printed?"},'
    text += ' {"role": "assistant", "content": "x"}], "meta": {}}'
    row = Row("a.jsonl:1", "chat", text, json.loads(text))
    (found,) = augment([row], AugmentOptions((rule,), times=3))
    assert found.made
    for made in found.made:
        assert made.text.encode("utf-8").decode("utf-8") == made.text
        assert "\ud800" in made.value["messages"][0]["content"]
