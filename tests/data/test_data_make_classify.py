"""Texts and labels to rows that ask for the label."""

from __future__ import annotations

import json

import pytest

from tunesmith.data.make import ClassifyOptions, make_classify
from tunesmith.errors import ConfigError, DataError, MissingError

TABLE = """text,category
Where is my card?,card
I lost my card,card
"a, b",other
where is  my card?,card
hi,card
hi,other
,card
no label,
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(TABLE)
    return path


def test_each_text_is_asked_once_with_all_labels_in_the_prompt(table):
    made = make_classify(table)

    assert [row["messages"][0]["content"] for row in made.rows] == [
        f"Which label fits the text? Answer with the label alone.\nLabels: card, other\n\n{text}"
        for text in ("Where is my card?", "I lost my card", "a, b")
    ]
    assert [row["messages"][1]["content"] for row in made.rows] == ["card", "card", "other"]
    assert made.rows[2]["meta"] == {
        "source": "t.csv",
        "where": "t.csv:4",
        "label": "other",
        "task": "classify",
    }


def test_what_is_left_out_says_why(table):
    reasons = [gone.reason.partition(":")[0] for gone in make_classify(table).dropped]

    assert sorted(reasons) == [
        "a duplicate", "no label", "no text", "one text with 2 labels", "one text with 2 labels",
    ]  # fmt: skip


def test_letters_stand_for_labels(table):
    rows = make_classify(table, ClassifyOptions(show="letters", shuffled=True, seed=1)).rows

    for row in rows:
        asked, letter = (turn["content"] for turn in row["messages"])
        assert f"\n{letter}. {row['meta']['label']}\n" in asked
        assert "letter alone" in asked
    assert rows == make_classify(table, ClassifyOptions(show="letters", shuffled=True, seed=1)).rows


def test_folders_are_classes(tmp_path):
    for name, text in (
        ("good/a.txt", "fine\n"),
        ("bad/b.txt", "poor"),
        ("bad/c.txt", ""),
        ("bad/d.bin", "\0"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    made = make_classify(tmp_path)

    assert {(row["meta"]["where"], row["messages"][1]["content"]) for row in made.rows} == {
        ("good/a.txt", "good"), ("bad/b.txt", "bad"),
    }  # fmt: skip
    assert [gone.where for gone in made.dropped] == ["bad/c.txt", "bad/d.bin"]


def test_the_balance_is_said_and_can_be_evened_out(tmp_path):
    rows = [{"text": f"text {n}", "label": "many" if n else "few"} for n in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    made = make_classify(tmp_path / "a.jsonl")
    assert made.facts["most"] == ["many", 11]
    assert "unbalanced: 11 times" in made.notes[1]
    even = make_classify(tmp_path / "a.jsonl", ClassifyOptions(max_a_class=3))
    assert [row["meta"]["label"] for row in even.rows].count("many") == 3
    assert len(even.rows) + len(even.dropped) == 12


def test_labels_with_commas_are_listed_one_a_line(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "x", "label": "a, b"}\n{"text": "y", "label": "c"}\n'
    )

    assert (
        "Labels:\na, b\nc\n\nx"
        in make_classify(tmp_path / "a.jsonl").rows[0]["messages"][0]["content"]
    )


@pytest.mark.parametrize(
    ("name", "data", "error", "said"),
    [
        ("a.csv", b"text,label\nx,one\ny,one\n", DataError, "1 different labels"),
        ("a.csv", b"words,kind\nx,one\n", DataError, "words, kind"),
        ("a.csv", b"", DataError, "empty"),
        ("a.jsonl", b'{"text": "x", "label"', DataError, "JSON"),
        ("a.jsonl", b"\0\1\2\xff", DataError, "a.jsonl"),
    ],
)
def test_a_bad_file_is_one_error(tmp_path, name, data, error, said):
    (tmp_path / name).write_bytes(data)

    with pytest.raises(error) as caught:
        make_classify(tmp_path / name)
    assert said in str(caught.value)


def test_a_missing_file_an_empty_folder_and_too_many_letters_are_errors(tmp_path):
    with pytest.raises(MissingError):
        make_classify(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no folders"):
        make_classify(tmp_path)
    text = "text,label\n" + "".join(f"t{n},l{n}\n" for n in range(60))
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ConfigError, match="60 labels"):
        make_classify(tmp_path / "a.csv", ClassifyOptions(show="letters"))
