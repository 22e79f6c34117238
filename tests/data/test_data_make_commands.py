"""`tunesmith data make` and `tunesmith data sample`, as users type them."""

from __future__ import annotations

import json
import sqlite3

import pytest
from command_line import call

from tunesmith.data.make import make_sql
from tunesmith.data.samples import SAMPLES


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    connection = sqlite3.connect("shop.sqlite")
    connection.executescript(
        "create table town (name text, size integer); insert into town values ('A', 5), ('B', 7), ('C', 9);"
    )
    connection.close()
    (tmp_path / "faq.md").write_text("# Is it free?\nYes, it is.\n\n## Prices\nNone.\n")
    (tmp_path / "t.csv").write_text("text,label,age\nx is 5,a,5\ny is 6,b,6\n")
    (tmp_path / "m.py").write_text(
        'def f(a):\n    """Return the doubled number here."""\n    b = 2 * a\n    return b\n'
    )
    return tmp_path


MAKES = [
    ("sql", "shop.sqlite"),
    ("code-docs", "m.py"),
    ("support", "faq.md"),
    ("classify", "t.csv"),
    ("extract", "t.csv", "--template", "{text} years"),
]


@pytest.mark.parametrize("words", MAKES, ids=lambda words: words[0])
def test_rows_go_to_a_file_or_to_stdout_and_are_the_same(here, capsys, words):
    assert call("data", "make", *words, "--out", "rows.jsonl", "--dropped", "d.jsonl") == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert " rows" in told.err

    assert call("data", "make", *words, "--out", "-") == 0
    printed = capsys.readouterr().out
    assert printed == (here / "rows.jsonl").read_text()
    rows = [json.loads(line) for line in printed.splitlines()]
    assert all({"source", "where"} <= set(row["meta"]) for row in rows)


@pytest.mark.parametrize("words", MAKES, ids=lambda words: words[0])
def test_the_summary_is_json_on_demand(here, capsys, words):
    assert call("data", "make", *words, "--out", "rows.jsonl", "--json") == 0

    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == words[0]
    assert told["rows"] == (here / "rows.jsonl").read_text().count("\n")
    assert call("data", "make", *words, "--out", "-", "--json") == 2


@pytest.mark.slow
@pytest.mark.parametrize("words", MAKES, ids=lambda words: words[0])
def test_what_is_made_can_be_sealed(here, capsys, words):
    call("data", "make", *words, "--out", "rows.jsonl")
    more = (f'{{"prompt": "number {n}?", "completion": "yes"}}\n' for n in range(20))
    (here / "more.jsonl").write_text("".join(more))
    (here / "recipe.yaml").write_text(
        "data: {source: {kind: files, train: [rows.jsonl, more.jsonl]}}\nworkspace: ws\n"
    )
    assert call("data", "build", "recipe.yaml") == 0, capsys.readouterr().err


def test_made_queries_go_with_their_database(here, capsys):
    call("data", "make", "sql", "shop.sqlite", "--out", "rows.jsonl")
    (here / "recipe.yaml").write_text(
        "data: {source: {kind: files, train: rows.jsonl}, databases: {shop: shop.sqlite}}\nworkspace: ws\n"
    )
    assert call("data", "build", "recipe.yaml") == 0, capsys.readouterr().err
    assert len(list(here.glob("ws/*/*/databases/shop.sqlite"))) == 1


def test_builders_and_samples_are_there_from_python():
    from tunesmith import data

    assert data.make.make_sql is make_sql
    assert data.samples.load_sample("support") is SAMPLES["support"]


def test_words_are_printed_and_the_rows_of_a_folder_are_split(here, capsys):
    assert call("data", "make", "sql", "shop.sqlite", "--show-names") == 0
    assert "town.size: size" in capsys.readouterr().out
    assert (
        call("data", "make", "sql", "shop.sqlite", "--hold-out", "templates", "--out", "folder")
        == 0
    )
    assert {file.name for file in (here / "folder").iterdir()} == {
        "train.jsonl",
        "validation.jsonl",
        "test.jsonl",
    }


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("sql", "none.sqlite", "--out", "x.jsonl"), 5, "no such file"),
        (("sql", "faq.md", "--out", "x.jsonl"), 3, "no SQLite database"),
        (("sql", "shop.sqlite"), 2, "Missing option '--out'"),
        (("support", "t.csv", "--out", "x.jsonl"), 3, "no question"),
        (("classify", "t.csv", "--label", "lable", "--out", "x.jsonl"), 3, "did you mean 'label'"),
        (("extract", "t.csv", "--template", "{nme}", "--out", "x.jsonl"), 2, "no field nme"),
        (("code-docs", ".", "--min-words", "99", "--out", "x.jsonl"), 3, "fewer than 99 words"),
    ],
)
def test_a_mistake_is_one_clear_error_and_writes_nothing(here, capsys, words, code, said):
    assert call("data", "make", *words) == code
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert "Traceback" not in told.err
    assert not (here / "x.jsonl").exists()


def test_samples_are_listed_described_and_written(here, capsys):
    assert call("data", "sample", "--json") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(SAMPLES)
    assert call("data", "sample") == 0
    assert "preferences" in capsys.readouterr().out
    assert call("data", "sample", "support") == 0
    assert capsys.readouterr().out.startswith("# Customer support sample set")
    assert call("data", "sample", "support", "--out", "mine") == 0
    assert (here / "mine" / "train.jsonl").read_bytes() == SAMPLES["support"].row_files()[
        "train"
    ].read_bytes()
    assert call("data", "sample", "support", "--out", "mine") == 2
    assert call("data", "sample", "suport") == 2
    assert call("data", "sample", "--out", "x") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SAMPLES))
def test_the_checks_find_nothing_wrong_with_a_sample(here, capsys, name):
    files = SAMPLES[name].row_files().values()
    assert call("data", "check", *files, "--no-model", "--json") == 0

    told = json.loads(capsys.readouterr().out)
    assert told["colour"] == "green", told
