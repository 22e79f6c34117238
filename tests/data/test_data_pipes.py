"""`-`: rows come by a pipe and go into one where that makes sense; elsewhere one sentence says what to do."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunesmith.cli.data import data
from tunesmith.errors import DataError, UsedDirectoryError

ROWS = [{"prompt": f"Is {n} a prime number?", "completion": f"It is {n % 7}."} for n in range(60)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words, stdin="", fails=None):
    done = CliRunner().invoke(data, words, input=stdin)
    if fails is not None:
        assert isinstance(done.exception, fails), done.output
        return done.exception
    return done


def test_a_split_of_a_pipe_is_that_of_a_file_and_its_rows_are_kept_beside_it(folder):
    (folder / "rows.jsonl").write_text(LINES)
    assert run("split", "rows.jsonl", "--out", "a").exit_code == 0
    assert run("split", "-", "--out", "b", stdin=LINES).exit_code == 0
    assert (folder / "b.stdin").read_text() == LINES
    for name in ("train", "validation", "test"):
        rows = (folder / f"a/{name}.jsonl").read_bytes()
        assert (folder / f"b/{name}.jsonl").read_bytes() == rows != b""
    report = json.loads((folder / "b/report.json").read_text())
    assert [Path(file["path"]).name for file in report["files"]] == ["b.stdin"]


def test_a_split_that_fails_leaves_nothing_of_the_pipe(folder):
    error = run("split", "-", "--out", "b", stdin='{"prompt": "a"\n', fails=DataError)
    assert "b.stdin:1" in str(error)
    assert list(folder.iterdir()) == []


def test_a_file_in_the_place_of_the_pipes_rows_is_not_written_over(folder):
    (folder / "b.stdin").write_text("mine")
    error = run("split", "-", "--out", "b", stdin=LINES, fails=UsedDirectoryError)
    assert "b.stdin is there already" in str(error)
    assert (folder / "b.stdin").read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == ["b.stdin"]


CSV = "text,label\nWhere is my parcel?,post\nIt came broken.,damage\nWho brings it?,post\n"
FAQ = "# How are you?\n\nFine, thank you very much indeed.\n"
PYTHON = 'def f(a):\n    """Return the sum of all things."""\n    b = a\n    return b\n'
DDL = "create table town (name text, size int);"


@pytest.mark.parametrize(
    ("words", "stdin", "source"),
    [
        (["classify"], CSV, "stdin"),
        (["extract", "--template", "{text} ({label})"], CSV, "stdin"),
        (["support"], FAQ, "stdin.md"),
        (["code-docs"], PYTHON, "stdin.py"),
        (["sql"], DDL, "stdin.sql"),
    ],
)
def test_every_builder_reads_a_pipe_and_writes_one(folder, words, stdin, source):
    done = run("make", words[0], "-", *words[1:], "--out", "-", stdin=stdin)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["meta"]["source"] for row in rows} == {source}
    assert list(folder.iterdir()) == []


def test_a_database_comes_by_a_pipe_too():
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(f"{DDL} insert into town values ('Ulm', 3), ('Bonn', 4);")
        content = connection.serialize()
    done = run("make", "sql", "-", "--out", "-", stdin=content)
    assert json.loads(done.stdout.splitlines()[0])["meta"]["database"] == "stdin"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("split rows.jsonl --out -", "name a new folder by --out"),
        ("split - - --out a", "name - once"),
        ("review -", "save them to a file"),
        ("review rows.jsonl --out -", "name a file by --out"),
        ("convert rows.jsonl --to chat --rest -", "--rest - is no place"),
        ("clean rows.jsonl --out - --sides -", "--sides - is no place"),
        ("annotate export rows.jsonl --out - --config c.xml", "--out - is no place"),
        ("annotate export rows.jsonl --out t.json --config -", "--config - is no place"),
        ("annotate import rows.jsonl --results t.sql --out -", "--out - needs --side FILE"),
        ("check rows.jsonl --no-model --out -", "--out - is no place"),
        ("stats rows.jsonl --html -", "--html - is no place"),
        ("sample support --out -", "--out - is no place"),
        ("synthesize questions faq.md --local embedded --out -", "--out - is no place"),
        ("augment rows.jsonl --rule noise --side -", "--side - is no place"),
        ("make sql t.sql --out a.jsonl --keep-database -", "--keep-database - is no place"),
        ("make support faq.md --out a.jsonl --dropped -", "--dropped - is no place"),
    ],
)
def test_where_a_pipe_makes_no_sense_one_sentence_says_what_to_do(folder, command, said):
    for name, text in (("rows.jsonl", LINES), ("t.sql", DDL), ("faq.md", FAQ)):
        (folder / name).write_text(text)
    before = sorted(folder.iterdir())
    done = run(*command.split(), stdin=LINES)
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())
    assert sorted(folder.iterdir()) == before


def test_annotated_rows_go_to_stdout_and_the_others_to_the_side_file(folder):
    (folder / "rows.jsonl").write_text(LINES)
    done = run("annotate", "export", "rows.jsonl", "--out", "t.json", "--config", "c.xml")
    assert done.exit_code == 0, done.output
    words = ["import", "rows.jsonl", "--results", "t.json", "--side", "side.jsonl", "--out"]
    assert run("annotate", *words, "out.jsonl").exit_code == 0
    assert run("annotate", *words, "-").stdout == (folder / "out.jsonl").read_text() != ""
