"""Passages of validation and test rows in the rows before them."""

from __future__ import annotations

import json
import random

import pytest
from click.testing import CliRunner

from tunesmith.cli.data.split import split
from tunesmith.data.clean.contamination import COMMON_ROWS
from tunesmith.data.passages import Passages
from tunesmith.data.rows import Row
from tunesmith.errors import ConfigError, DataError


def words(seed, n):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(n))


def row(text, answer="yes"):
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return Row("rows.jsonl:1", "chat", "", {"messages": turns, "meta": {}})


def numbered(*texts):
    return [(number, row(text)) for number, text in enumerate(texts)]


def passage_of(text, n, at=3):
    return " ".join(text.split()[at : at + n])


SECRET = words("secret", 30)


def passages(held, n_words, **more):
    return Passages(held, dict(held).__getitem__, n_words, **more)


def test_a_passage_is_found_in_another_text_whatever_its_case():
    train = numbered(words(1, 40), f"{words(2, 9)} {passage_of(SECRET, 13).upper()}! {words(3, 9)}")
    held = passages([(7, row(words(4, 30))), (8, row(SECRET))], 13)
    assert list(held.find(train)) == [(1, 8)]


def test_one_word_less_is_no_passage():
    train = numbered(f"{words(2, 9)} {passage_of(SECRET, 12)} {words(3, 9)}")
    assert list(passages([(8, row(SECRET))], 13).find(train)) == []


def test_an_answer_that_holds_a_passage_is_found_and_code_is_not():
    code = "SELECT " + ", ".join(SECRET.split()) + " FROM somewhere WHERE a = 1 AND b = 2"
    held = passages([(8, row("ask", SECRET)), (9, row("ask", code))], 13)
    assert list(held.find([(0, row("q", passage_of(SECRET, 14)))])) == [(0, 8)]
    assert list(passages([(9, row("ask", code))], 13).find([(0, row("q", code))])) == []


def test_what_many_rows_share_is_their_form_on_either_side():
    form = words("form", 20)
    many = numbered(*(f"{form} {words(n, 5)}" for n in range(COMMON_ROWS + 1)))
    one = [(99, row(f"{form} {words('x', 5)}"))]
    assert list(passages(many, 13).find(one)) == []
    assert list(passages(one, 13).find(many)) == []
    assert len(list(passages(one, 13).find(many[:COMMON_ROWS]))) == COMMON_ROWS
    very_many = numbered(*(f"{form} {words(n, 2)}" for n in range(2**8 + 2)))
    assert list(passages(one, 13).find(very_many)) == []


def test_of_very_many_passages_some_are_kept_and_long_copies_are_still_found():
    held = [(n, row(words(n, 60))) for n in range(60)]
    few = passages(held, 13, most=400)
    train = numbered(*(words(n, 60) for n in range(60)))
    assert len(few._known) <= 400
    assert len(list(few.find(train))) >= 58
    assert list(few.find(numbered(words("other", 60)))) == []


@pytest.fixture
def leaking(lines):
    """A test row of which a training row holds a passage, far from nearly equal."""
    rows = [{"prompt": f"{words(n, 12)}?", "completion": f"answer {n}"} for n in range(60)]
    rows[4]["prompt"] = f"{words('a', 40)} {passage_of(SECRET, 15)} {words('b', 40)}"
    named = {
        "train": lines("train.jsonl", rows),
        "validation": lines("v.jsonl", [{"prompt": words("v", 20), "completion": "v"}]),
        "test": lines("test.jsonl", [{"prompt": SECRET, "completion": "t"}]),
    }
    return {"source": {"kind": "files", **{k: str(v) for k, v in named.items()}}}


def test_a_copy_that_is_found_whole_can_be_missed_where_passages_are_thinned():
    held = [(n, row(words(n, 60))) for n in range(60)]
    bare = numbered(*(f"{words(-n - 1, 5)} {passage_of(words(n, 60), 13)}" for n in range(60)))
    assert len(list(passages(held, 13).find(bare))) == 60
    assert 0 < len(list(passages(held, 13, most=400).find(bare))) < 30


def test_passages_across_splits_are_reported_refused_or_dropped(seal, leaking, rows_of):
    silent = seal(leaking, name="silent")
    section = {**leaking, "overlap_words": 13}
    told = seal(section, name="told")
    dropped = seal({**section, "on_near_overlap": "drop_from_train"}, name="dropped")

    assert silent.report["near_overlaps"]["found"] == 0
    assert told.report["near_overlaps"]["found"] == 1
    lines = told.artifact.path("findings.jsonl").read_text(encoding="utf-8").splitlines()
    (found,) = [one for one in map(json.loads, lines) if one["check"] == "near-overlap"]
    assert found["where"].endswith("train.jsonl:5")
    assert "13 words in a row" in found["what"]
    assert "test.jsonl:1 in test" in found["what"]
    assert dropped.rows["train"] == 59
    (line,) = dropped.artifact.path("dropped.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["rule"] == "passage-overlap"
    with pytest.raises(DataError, match="1 row shares a passage with held-out rows"):
        seal({**section, "on_near_overlap": "refuse"}, name="refused")


def test_a_row_that_leaks_by_its_prompt_is_not_told_again_for_its_passage(seal, lines):
    long = passage_of(SECRET, 25)
    named = {
        "train": lines("a.jsonl", [{"prompt": words(n, 9), "completion": "x"} for n in range(9)]),
        "validation": lines("v.jsonl", [{"prompt": words("v", 20), "completion": "v"}]),
        "test": lines("t.jsonl", [{"prompt": f"{long}?", "completion": "t"}]),
    }
    with named["train"].open("a") as file:
        file.write(json.dumps({"prompt": f"{long} please", "completion": "t"}) + "\n")
    source = {"kind": "files", **{k: str(v) for k, v in named.items()}}
    assert seal({"source": source}, name="one").report["near_overlaps"]["found"] == 1
    both = seal({"source": source, "overlap_words": 13}, name="both")
    assert both.report["near_overlaps"]["found"] == 1


def test_drawn_splits_are_searched_too_and_the_policy_is_read(seal, lines, tmp_path):
    copies = [f"{words(n, 30)} {SECRET} {words(n + 100, 30)}" for n in range(8)]
    rows = [{"prompt": text, "completion": f"c{n}"} for n, text in enumerate(copies)]
    rows += [{"prompt": words(n, 20), "completion": f"answer {n}"} for n in range(200, 240)]
    section = {"source": {"kind": "files", "train": str(lines("a.jsonl", rows))}}
    with pytest.raises(ConfigError, match="on_near_overlap"):
        seal({**section, "on_near_overlap": "drop_from_train"}, name="no")
    section = {**section, "overlap_words": 13, "test_ratio": 0.3, "validation_ratio": 0.3}
    told = seal(section, name="told").report["near_overlaps"]["found"]
    kept = seal({**section, "on_near_overlap": "drop_from_train"}, name="kept")
    assert told >= 1
    card = (tmp_path / "told" / "README.md").read_text(encoding="utf-8")
    assert f"Shared passages of 13 words in two splits: {told}." in card
    assert sum(kept.report["left_out"]["by_near_overlap"].values()) == told
    assert kept.report["near_overlaps"]["found"] == 0


def test_data_split_takes_the_length_of_passages(lines, tmp_path):
    rows = [{"prompt": words(n, 20), "completion": f"answer {n}"} for n in range(40)]
    asked = [str(lines("a.jsonl", rows)), "--out", str(tmp_path / "out"), "--json"]
    more = ["--overlap-words", "13", "--on-near-overlap", "refuse"]
    run = CliRunner().invoke(split, [*asked, *more], catch_exceptions=False)
    assert json.loads(run.stdout)["near_overlaps"]["passages_of_words"] == 13


def test_words_of_a_shared_instruction_are_no_part_of_a_passage():
    order = words("order", 14)
    train = numbered(*(f"{order} {words(n, 12)}" for n in range(60)))
    first_words = [f"{order} {words(n, 12).split()[0]} {words(f'own {n}', 12)}" for n in range(60)]
    test = [(100 + n, row(text)) for n, text in enumerate(first_words)]
    assert list(passages(test, 13).find(train)) == []
    copy = f"{order} {words('a', 9)} {' '.join(first_words[7].split()[-12:])} {words('b', 9)}"
    copied = [*train, (60, row(copy))]
    assert list(passages(test, 12).find(copied)) == [(60, 107)]
