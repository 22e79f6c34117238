"""What the user named: files once, fields that rows have; and numbers with their nouns."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from tunesmith.cli.data.check import check
from tunesmith.cli.data.clean import clean
from tunesmith.cli.data.convert import convert
from tunesmith.cli.data.split import split
from tunesmith.errors import ConfigError, DataError, counted

COMMANDS = {
    "clean": (clean, ["--out", "clean"]),
    "convert": (convert, ["--to", "chat", "--out", "chat.jsonl"]),
    "split": (split, ["--out", "split"]),
}


@pytest.fixture
def rows(lines, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [{"question": f"question {n}", "reply": f"answer {n}"} for n in range(30)]
    return lines("rows.jsonl", made).name


FIELDS = ["--field", "prompt=question", "--field", "completion=reply"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("tools=toolz", "no row has a field 'toolz'"),
        ("history=question", "rows that are read as prompt-completion have no place for it"),
    ],
)
def test_a_mapped_field_without_effect_is_refused_by_every_command(rows, name, asked, why):
    command, words = COMMANDS[name]
    run = CliRunner().invoke(command, [rows, *words, *FIELDS, "--field", asked])
    assert isinstance(run.exception, DataError)
    use = asked.partition("=")[0]
    assert f"data.fields.{use} (--field {asked}): {why}" in run.exception.what
    assert os.listdir() == [rows]


def test_a_mapped_field_without_effect_is_an_error_of_a_check(rows):
    words = [rows, *FIELDS, "--no-model", "--json"]
    good = json.loads(CliRunner().invoke(check, words).stdout)
    run = CliRunner().invoke(check, [*words, "--field", "tools=toolz", "--strict"])
    assert "idle-field" not in {reason["check"] for reason in good["reasons"]}
    assert run.exit_code == DataError.exit_code
    (found,) = [r for r in json.loads(run.stdout)["reasons"] if r["check"] == "idle-field"]
    assert found["severity"] == "error"
    assert "no row has a field 'toolz'" in found["first"][0]["what"]


def test_a_field_that_only_one_of_two_files_has_is_no_idle_field(rows, lines):
    tools = json.dumps([])
    more = lines("more.jsonl", [{"question": "q", "reply": "r", "toolz": tools}]).name
    words = [rows, more, *FIELDS, "--field", "tools=toolz", "--no-model", "--json"]
    found = json.loads(CliRunner().invoke(check, words).stdout)
    assert "idle-field" not in {reason["check"] for reason in found["reasons"]}


@pytest.mark.parametrize("name", [*COMMANDS, "check"])
def test_a_file_named_twice_is_refused_by_every_command(rows, tmp_path, name):
    command, words = COMMANDS.get(name, (check, ["--no-model"]))
    again = str(tmp_path / rows)
    run = CliRunner().invoke(command, [rows, again, *words, *FIELDS])
    assert isinstance(run.exception, ConfigError)
    assert "means a file twice" in run.exception.what
    assert rows in run.exception.what
    assert os.listdir() == [rows]


def test_a_number_is_told_with_its_noun():
    assert counted(1, "row") == "1 row"
    assert counted(0, "row") == "0 rows"
    assert counted(1234, "query", "queries") == "1,234 queries"


def test_rows_that_cannot_be_split_are_told_in_the_singular(seal, lines):
    row = {"prompt": "the same", "completion": "one"}
    with pytest.raises(DataError) as caught:
        seal({"source": {"kind": "files", "train": str(lines("a.jsonl", [row]))}})
    assert "1 row in 1 group cannot be split: 1 row is wanted for" in caught.value.what


@pytest.mark.parametrize("key", ["html", "clean.html", "data.clean.html"])
def test_a_setting_of_a_cleaning_may_be_named_in_full_or_in_part(rows, key):
    run = CliRunner().invoke(clean, [rows, *FIELDS, "--dry-run", "--set", f"{key}=strip"])
    assert run.exit_code == 0, run.exception
