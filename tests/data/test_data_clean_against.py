"""Rows of a benchmark found in training rows, copied or reworded lightly."""

import random

import pytest
from click.testing import CliRunner

from tunesmith.cli.data.clean import clean
from tunesmith.config import CleanConfig
from tunesmith.data.clean import clean_files
from tunesmith.data.clean.contamination import COMMON_ROWS, Benchmark, Boilerplate, hashes_of
from tunesmith.data.rows import Row
from tunesmith.errors import ConfigError

PASSAGE = (
    "The lighthouse keeper wrote down the height of every wave that struck the northern wall "
    "between the first storm of autumn and the last one of spring."
)


def row(question, answer="", where="f:1"):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer or "x"}]
    return Row(where, "chat", "", {"messages": turns, "meta": {}})


def found(benchmark, rows):
    hits = Benchmark([row(q, a, f"test:{n}") for n, (q, a) in enumerate(benchmark, 1)])
    return {
        hit.row_index: (hit.benchmark_row.where, hit.reason)
        for hit in hits.find(len(rows), lambda at: row(*rows[at]))
    }


@pytest.mark.parametrize(
    "reworded",
    [
        "Which river is the longest in Montana?",
        "which river is the longest in montana",
        "Which rivers are the longest in Montana?",
        "In Montana, which river is the longest?",
        "Which river is the longst in Montana?",
        "Hello! Which river is the longest in Montana? Thank you.",
    ],
)
def test_a_test_question_is_found_in_training_even_when_reworded_lightly(reworded):
    hits = found(
        [("Which river is the longest in Montana?", "Yellowstone")], [(reworded, "no idea")]
    )

    assert hits[0][0] == "test:1"


def test_a_synonym_is_found_when_the_answer_is_the_same():
    benchmark = [("Which is the biggest lake in Montana?", "Flathead")]

    assert found(benchmark, [("Which is the largest lake in Montana?", "Flathead")])
    assert not found(benchmark, [("Which is the deepest lake in Montana?", "Quake")])


def test_another_question_of_the_same_template_is_no_contamination():
    benchmark = [(f"How many people live in {name}?", "some") for name in ("Ohio", "Utah", "Iowa")]

    assert not found(benchmark, [("How many people live in Maine?", "others")])


def test_a_passage_inside_a_long_text_is_found_and_the_row_named():
    noise = random.Random(0).sample(["alpha", "beta", "gamma", "delta"] * 50, 200)
    text = " ".join([*noise[:100], PASSAGE, *noise[100:]])

    hits = found(
        [("What did he write?", PASSAGE)], [("Read this.", text), ("Read this.", " ".join(noise))]
    )

    assert list(hits) == [0]
    assert hits[0] == ("test:1", "13 words in a row as in test:1")


def test_a_passage_that_many_training_rows_share_is_boilerplate():
    rows = [(f"{PASSAGE} Item {n} {'abcdefghijkl'[n]}?", str(n)) for n in range(12)]

    assert not found([(f"{PASSAGE} What is it?", "yes")], rows)
    assert found([(f"{PASSAGE} What is it?", "yes")], rows[:3])


def templated(n_rows, seed, n_words=10):
    """Rows of one instruction of fourteen words and some words of their own, of few different ones."""
    draw = random.Random(seed)
    known = ["".join(random.Random(n).choices("abcdefghijklmnop", k=8)) for n in range(99)]
    order = "Read the note that follows and say in one word what it is about"
    return [(f"{order}\n{' '.join(draw.choices(known, k=n_words))}", "yes") for _ in range(n_rows)]


def test_an_instruction_with_a_word_of_the_row_is_no_passage():
    assert not found(templated(90, "test"), templated(210, "train"))


def test_a_copy_among_rows_of_one_instruction_is_found():
    benchmark, rows = templated(90, "test", 15), templated(210, "train", 15)
    for at in (3, 50, 88):
        own = benchmark[at][0].partition("\n")[2]
        rows.append((f"{rows[at][0]} Somebody wrote: {own}. {rows[at + 1][0]}", "no"))

    hits = found(benchmark, rows)

    assert {at: where for at, (where, _) in hits.items()} == {
        210: "test:4",
        211: "test:51",
        212: "test:89",
    }


def test_passages_shorter_than_eight_words_can_be_asked_for():
    benchmark = [row("amber birch cedar drift ember frost", where="test:1")]
    text = "please write down the words amber birch cedar drift ember frost and then some others"

    (hit,) = Benchmark(benchmark, n_words=5).find(1, lambda at: row(text))

    assert hit.reason == "5 words in a row as in test:1"


def test_the_side_file_names_the_benchmark_row(lines, tmp_path):
    import json

    test = lines("test.jsonl", [{"prompt": "How high is Mount Kea?", "completion": "4207 m"}])
    train = lines(
        "train.jsonl",
        [
            {"prompt": "how high is mount kea", "completion": "no idea"},
            {"prompt": "How high is Mount Loa?", "completion": "4169 m"},
        ],
    )

    result = clean_files([train], CleanConfig(against=(str(test),)), out=tmp_path / "out")

    assert result.dropped == {"contamination": 1}
    (line,) = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    assert f"{test}:1" in json.loads(line)["reason"]


def test_a_build_keeps_the_test_rows_that_it_holds_training_rows_against(lines, seal, rows_of):
    places = [
        "Ohio",
        "Utah",
        "Iowa",
        "Maine",
        "Texas",
        "Idaho",
        "Kansas",
        "Nevada",
        "Oregon",
        "Alaska",
        "Hawaii",
        "Georgia",
    ]
    rows = [{"prompt": f"How many people live in {at}?", "completion": at[::-1]} for at in places]
    test = lines("test.jsonl", rows[:4])
    train = lines("train.jsonl", [*rows[4:], {**rows[0], "prompt": "how many people live in Ohio"}])

    result = seal(
        {
            "source": {"kind": "files", "train": str(train), "test": str(test)},
            "clean": {"near": "drop", "against": [str(test)]},
        }
    )

    assert len(rows_of(result, "test")) == 4
    assert result.rows["train"] + result.rows["validation"] == 8


def test_it_is_said_loudly_when_much_of_a_file_is_taken_for_leaks(lines):
    rows = [{"prompt": f"What is {n} plus {n}?", "completion": str(2 * n)} for n in range(20, 60)]
    train = str(lines("train.jsonl", rows))
    told = {}
    for n_leaks in (4, 5):
        test = lines("test.jsonl", rows[:n_leaks])
        told[n_leaks] = CliRunner().invoke(clean, [train, "--against", str(test), "--dry-run"])

    assert "warning" not in told[4].stderr
    assert "warning: 5 of 40 rows (12%) hold what a held-out or benchmark row" in told[5].stderr


def test_a_file_is_not_held_against_itself(lines, tmp_path):
    path = lines("rows.jsonl", [{"prompt": "Which river is it?", "completion": "Yellowstone"}])
    with pytest.raises(ConfigError, match=r"rows\.jsonl is to be cleaned"):
        clean_files([path], CleanConfig(against=(str(tmp_path),)), out=None)


def test_a_row_that_says_a_thing_often_is_one_row_of_those_that_share_it():
    words = hashes_of(f"{PASSAGE} and then once more {PASSAGE} " * 5)
    counted = Boilerplate()
    for _ in range(COMMON_ROWS):
        counted.see([words, words])
    assert not counted.holds(words).any()
    counted.see([words])
    assert counted.holds(words).all()
