"""`tunesmith data split` and `tunesmith data build` as they are typed."""

from __future__ import annotations

import json

import pytest

from tunesmith.cli.main import main
from tunesmith.store import Artifact


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nouns = ("apple", "boat", "cloud", "engine", "guitar", "island", "lantern", "river")
    verbs = ("sink", "burn", "turn", "vanish", "boil", "hum", "grow", "freeze")
    with (tmp_path / "a.jsonl").open("w") as out:
        for n in range(64):
            prompt = f"Why does the {nouns[n % 8]} {verbs[n // 8]}?"
            made = {
                "prompt": prompt,
                "completion": f"reason {n}",
                "label": "xy"[n % 4 == 0],
                "t": n,
            }
            out.write(json.dumps(made) + "\n")
    return tmp_path / "a.jsonl"


def tunesmith(*words):
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return caught.value.code or 0


def test_files_become_a_sealed_dataset_and_the_screen_says_what_the_test_can_show(rows, capsys):
    assert tunesmith("data", "split", "a.jsonl", "--out", "s", "--stratify", "label") == 0
    said = capsys.readouterr().out
    assert "s: 52 train, 6 validation, 6 test rows" in said
    assert "6 test rows: too few to show a gain in a paired test" in said
    Artifact.open(rows.parent / "s", "data").verify()


def test_a_number_of_rows_and_a_share_are_told_apart(rows, capsys):
    asked = ("--test", "10", "--validation", "0.25", "--no-near-duplicates", "--json")
    assert tunesmith("data", "split", "a.jsonl", "--out", "s", *asked) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == {
        "train": 38,
        "validation": 16,
        "test": 10,
    }


def test_the_latest_rows_are_held_out_and_other_ways_are_refused_beside_it(rows, capsys):
    assert tunesmith("data", "split", "a.jsonl", "--out", "s", "--time", "t", "--test", "4") == 0
    text = Artifact.open("s").path("test.jsonl").read_text().splitlines()
    assert [json.loads(line)["meta"]["t"] for line in text] == [60, 61, 62, 63]
    code = tunesmith("data", "split", "a.jsonl", "--out", "s2", "--time", "t", "--group", "label")
    assert code == 2
    assert "goes without --group" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--test", "many"), 2, "'many' is no number"),
        (("--test", "inf"), 2, "inf is neither a number of rows"),
        (("--validation", "nan"), 2, "nan is neither a number of rows"),
        (("--test", "1.0"), 2, "1.0 is neither a number of rows"),
        (("--test", "0"), 2, "0 is neither a number of rows"),
        (("--test", "0.5"), 2, "0.5 is neither a number of rows"),
        (("--test", "0.7"), 2, "over 0, under 0.5"),
        (("--processes", "0"), 2, "x>=1"),
        (("--group", "nobody"), 3, "no field 'nobody' in the rows"),
        (("--test", "63"), 3, "cannot be split"),
    ],
)
def test_wrong_options_are_told_and_leave_no_folder(rows, capsys, words, code, said):
    assert tunesmith("data", "split", "a.jsonl", "--out", "s", *words) == code
    assert said in capsys.readouterr().err
    assert not (rows.parent / "s").exists()


def test_a_used_folder_is_refused(rows, capsys):
    assert tunesmith("data", "split", "a.jsonl", "--out", "s") == 0
    assert tunesmith("data", "split", "a.jsonl", "--out", "s", "--seed", "1") == 7
    assert "holds a finished run" in capsys.readouterr().err


def test_a_build_prints_what_became_of_the_rows(rows, capsys):
    (rows.parent / "r.yaml").write_text(
        "data: {source: {kind: files, train: a.jsonl}, require: {label: x}}\n"
    )
    assert tunesmith("data", "build", "r.yaml", "--processes", "1") == 0
    said = capsys.readouterr().out
    assert "dropped: require" in said
    assert "16" in said
