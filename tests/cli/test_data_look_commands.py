"""`tunesmith data show | stats | diff | card` from the command line."""

from __future__ import annotations

import json

import pytest
from command_line import call

EVIL = "what\x1b[31m is \u202e this <script>x</script>"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def write(name, rows):
    with open(name, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def pairs(n):
    return [
        {"prompt": f"question {i}", "completion": f"answer {i}", "label": "ab"[i % 2]}
        for i in range(n)
    ]


def test_stats_of_a_raw_file_in_the_terminal_as_json_and_as_a_page(here, capsys):
    write("a.jsonl", [*pairs(20), {"prompt": EVIL, "completion": EVIL, "label": EVIL}])
    assert call("data", "stats", "a.jsonl", "--no-tokens", "--html", "a.html") == 0
    shown = capsys.readouterr()
    assert "label (3 values)" in shown.out
    assert "a.html" in shown.err
    assert "\x1b" not in shown.out
    assert "\u202e" not in shown.out
    html = (here / "a.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "\x1b" not in html
    assert call("data", "stats", "a.jsonl", "--no-tokens", "--json") == 0
    text = capsys.readouterr().out
    assert "\u202e" not in text
    assert json.loads(text)["stats"]["rows"] == {"rows": 21}


def test_a_plain_text_has_no_question_to_measure(here, capsys):
    write("a.jsonl", [{"text": f"a text {i}"} for i in range(3)])
    assert call("data", "stats", "a.jsonl", "--no-tokens", "--html", "a.html") == 0
    shown = capsys.readouterr().out
    assert "answer, characters" in shown
    assert "question, characters" not in shown
    html = (here / "a.html").read_text(encoding="utf-8")
    assert "median answer" in html
    assert "median question" not in html


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.jsonl: empty file"),
        (b"\x89PNG\r\n\x1a\n\0\0", "a.jsonl: "),
        (b'{"ask": 1, "say": "x"}\n' * 3, "a.jsonl: no row of the file has messages"),
    ],
)
def test_stats_of_a_file_that_cannot_be_read_names_the_reason(here, capsys, content, said):
    (here / "a.jsonl").write_bytes(content)
    assert call("data", "stats", "a.jsonl", "--html", "a.html") == 3
    shown = capsys.readouterr()
    assert "error: 1 problem in the data" in shown.err
    assert said in shown.err
    assert shown.out == ""
    assert not (here / "a.html").exists()


def test_stats_of_a_file_with_wrong_rows_shows_the_others_and_names_these(here, capsys):
    write("a.jsonl", [*pairs(3), *({"prompt": "", "completion": "x"} for _ in range(7))])
    assert call("data", "stats", "a.jsonl") == 3
    shown = capsys.readouterr()
    assert "problem: a.jsonl:4: prompt: " in shown.err
    assert "... and 2 more" in shown.err
    assert "a.jsonl: prompt-completion (the rows have prompt and completion)" in shown.out
    assert call("data", "stats", "a.jsonl", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], len(found["problems"])) == ({"rows": 3}, 7)


def test_stats_reads_a_pipe(here, capsys, monkeypatch):
    import io
    import sys

    class Piped:
        buffer = io.BytesIO(b'{"prompt": "a", "completion": "b"}\n' * 3)

    monkeypatch.setattr(sys, "stdin", Piped())
    assert call("data", "stats", "-", "--no-tokens", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == {"rows": 3}


def test_diff_ends_with_one_only_where_rows_differ(here, capsys):
    write("a.jsonl", pairs(5))
    write("b.jsonl", [*pairs(4), {"prompt": EVIL, "completion": "yes"}])
    assert call("data", "diff", "a.jsonl", "a.jsonl") == 0
    assert call("data", "diff", "a.jsonl", "b.jsonl") == 1
    text = capsys.readouterr().out
    assert "1 removed, 1 added" in text
    assert "what\\x1b[31m is \\u202e this" in text
    assert call("data", "diff", "a.jsonl", "b.jsonl", "--json") == 1
    assert json.loads(capsys.readouterr().out)["rows"] == {"rows": {"old": 5, "new": 5}}
    assert call("data", "diff", "a.jsonl", "gone.jsonl") == 5


def test_the_card_of_a_built_dataset_is_printed_and_written(here, capsys):
    write("a.jsonl", pairs(40))
    (here / "r.yaml").write_text(
        "name: q\ndata:\n  source: {kind: files, train: a.jsonl}\n  card: {license: MIT, description: Short.}\n"
    )
    assert call("data", "card", "r.yaml") == 5
    assert call("data", "build", "r.yaml") == 0
    capsys.readouterr()
    assert call("data", "card", "r.yaml") == 0
    text = capsys.readouterr().out
    assert text.startswith("---\nlicense: mit\n")
    assert "Short." in text
    assert call("data", "card", "r.yaml", "--out", "README.md") == 0
    assert (here / "README.md").read_text(encoding="utf-8") == text


def test_a_wrong_licence_stops_the_build_before_anything_is_read(here, capsys):
    write("a.jsonl", pairs(40))
    (here / "r.yaml").write_text(
        "data:\n  source: {kind: files, train: a.jsonl}\n  card: {license: mine}\n"
    )
    assert call("data", "build", "r.yaml") == 2
    assert "no SPDX licence expression" in capsys.readouterr().err


def test_row_and_random_exclude_each_other(here):
    write("a.jsonl", pairs(3))
    assert call("data", "show", "a.jsonl", "--row", "1", "--random", "2") == 2
