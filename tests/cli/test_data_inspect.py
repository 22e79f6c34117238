"""`tunesmith data inspect` says what files are taken for, and fails on what cannot be read."""

import gzip
import json

import pytest
from click.testing import CliRunner

from tunesmith.cli.data.inspect import inspect


def run(*arguments, stdin=None):
    return CliRunner().invoke(inspect, [str(word) for word in arguments], input=stdin)


def test_form_schema_mapping_and_first_rows_are_shown(tmp_path):
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"question;sql\nhow many?;select 1\nwhich?;select 2\n"))
    done = run(path, "--field", "prompt=question", "--field", "completion=sql", "--rows", 1)
    assert done.exit_code == 0
    for said in (
        "csv, packed by gzip (2 cells a line, with a semicolon between them)",
        "prompt-completion (100% of all 2 rows)",
        "prompt = question, completion = sql",
        f'{path}:2\n    question: "how many?"',
    ):
        assert said in done.stdout
    assert "which?" not in done.stdout


def test_json_names_all_of_it(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"data": [{"prompt": "a", "completion": "b"}, 7]}', encoding="utf-8")
    done = run(path, "--json")
    assert done.exit_code == 3
    (file,) = json.loads(done.stdout)["files"]
    assert (file["form"], file["container"], file["schema"]) == (
        "json",
        "data",
        "prompt-completion",
    )
    assert file["problems"] == [f"{path}:2: a row is a JSON object, this is a number"]
    assert file["fields"][0] == {
        "name": "prompt",
        "holds": {"a string": 1},
        "rows": 1,
        "example": '"a"',
    }


def test_a_file_that_cannot_be_read_is_named_and_others_are_shown(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("{\n" * 9, encoding="utf-8")
    (tmp_path / "c.zip").write_bytes(b"PK\x03\x04")
    done = run(tmp_path)
    assert done.exit_code == 3
    assert "text (100% of all 1 row)" in done.stdout
    assert f"problem: {tmp_path}/b.jsonl:1: not valid JSON" in done.stderr
    assert "... and 4 more" in done.stderr
    assert f"not read: {tmp_path}/c.zip: a ZIP archive" in done.stderr


@pytest.mark.parametrize("form", ["auto", "jsonl"])
def test_stdin_is_looked_at_once(form):
    done = run("-", "--json", "--form", form, stdin='{"text": "x"}\n')
    (file,) = json.loads(done.stdout)["files"]
    assert (file["path"], file["looked_at"], file["bytes"]) == ("stdin", 1, None)


def test_only_the_first_thousand_rows_are_looked_at(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 1_001, encoding="utf-8")
    (file,) = json.loads(run(path, "--json").stdout)["files"]
    assert (file["looked_at"], file["is_whole"]) == (1_000, False)
