"""`tunesmith data clean` from the command line."""

import io
import json
import sys

import pytest
from command_line import call


@pytest.fixture
def here(tmp_path, monkeypatch):
    rows = [
        ("What is the capital of Texas?", "Austin", "web"),
        ("What is the capital of Texas?", "Austin", "web"),
        ("what is the capitol of texas", "Austin", "web"),
        ("Write to ann@example.com  ", "ok\r\n", "mail"),
    ]
    lines = [json.dumps({"prompt": q, "completion": a, "source": s}) for q, a, s in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept(folder):
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def test_without_a_rule_exact_duplicates_go_and_texts_are_mended(here, capsys):
    assert call("data", "clean", "rows.jsonl") == 0

    said = capsys.readouterr()
    assert said.out == ""
    assert "4 rows in = 3 out + 1 dropped; 1 of those out were changed" in said.err
    assert "rows.jsonl:2" in said.err
    assert kept(here / "cleaned")[-1] == "Write to ann@example.com"


def test_rules_are_options_and_the_result_can_be_json(here, capsys):
    code = call(
        "data", "clean", "rows.jsonl", "--near", "drop", "--pii", "mask", "--out", "out",
        "--drop-where", "source=none", "--set", "min_answer_characters=2", "--json",
    )  # fmt: skip

    assert code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dropped"] == {"near": 2}
    assert found["changed"] == {"private": 1}
    assert kept(here / "out") == ["What is the capital of Texas?", "Write to [EMAIL_1]  "]


def test_rows_go_through_a_pipe(here, capfdbinary, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO((here / "rows.jsonl").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)

    assert call("data", "clean", "-", "--exact", "drop", "--out", "-", "--sides", "sides") == 0

    rows = capfdbinary.readouterr().out.splitlines()
    assert len(rows) == 3
    assert all(json.loads(row)["messages"] for row in rows)
    assert len((here / "sides" / "dropped.jsonl").read_text().splitlines()) == 1
    assert not (here / "sides" / "rows.jsonl").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(here, capsys):
    assert call("data", "clean", "rows.jsonl", "--near", "drop", "--dry-run") == 0

    assert "2 dropped" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["rows.jsonl"]


def test_a_recipe_brings_its_own_rules_and_files(here, capsys):
    (here / "recipe.yaml").write_text(
        "data:\n  source: {kind: files, train: rows.jsonl}\n  clean: {exact: drop}\n"
    )

    assert call("data", "clean", "recipe.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == {"exact": 1}


def test_a_rule_that_does_not_exist_is_named(here, capsys):
    assert call("data", "clean", "rows.jsonl", "--set", "min_anser_characters=2") == 2
    assert "min_anser_characters" in capsys.readouterr().err


def test_the_users_own_folder_is_not_replaced(here, capsys):
    assert call("data", "clean", "rows.jsonl", "--out", ".") == 7
    assert (here / "rows.jsonl").is_file()


def test_a_setting_without_effect_is_refused_and_the_form_of_the_files_is_obeyed(here, capsys):
    assert (
        call("data", "clean", "rows.jsonl", "--set", "near_threshold=0.6", "--exact", "drop") == 2
    )
    assert "data.clean.near_threshold" in capsys.readouterr().err
    assert call("data", "clean", "rows.jsonl", "--set", "data.form=csv", "--dry-run") == 3
