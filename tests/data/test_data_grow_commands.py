"""`tunesmith data augment` and `synthesize` as a user calls them."""

from __future__ import annotations

import io
import json

import pytest
from command_line import call

ROW = {
    "messages": [
        {"role": "user", "content": "Which stations opened late?"},
        {"role": "assistant", "content": "None."},
    ]
}


def test_rows_go_through_a_pipe_and_notes_to_stderr(monkeypatch, capsys):
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(ROW).encode() + b"\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    assert call("data", "augment", "-", "--rule", "paraphrase", "--rule", "shuffle") == 0
    out, err = capsys.readouterr()
    own, new = (json.loads(line) for line in out.splitlines())
    assert own["messages"] == ROW["messages"]
    assert new["messages"][1] == ROW["messages"][1]
    assert "1 row, 1 new" in err
    assert "not made by shuffle: 1 times" in err


def test_counts_of_rows_new_ones_and_side_lines_add_up(lines, tmp_path, capsys):
    path = lines("a.jsonl", [ROW, {**ROW, "id": 2}])
    out = tmp_path / "out.jsonl"
    args = ["--rule", "paraphrase", "--rule", "noise", "--times", 3, "--out", out, "--json"]
    assert call("data", "augment", path, *args, "--only-new") == 0
    report = json.loads(capsys.readouterr().out)
    side = (tmp_path / "out-side.jsonl").read_text().splitlines()
    assert report["made"] == len(out.read_text().splitlines())
    assert report["left_out"] == len(side)
    assert report["made"] + report["left_out"] == report["rows"] * 2 * 3
    assert all(json.loads(line)["row"] for line in side)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["augment", "FILE", "--rule", "rename"], "--databases-out"),
        (["augment", "FILE", "--rule", "rename", "--out", "o.jsonl"], "has no database"),
        (["augment", "FILE", "--rule", "noise", "--out", "FILE"], "is the file that is read"),
        (["augment", "FILE", "--rule", "noise", "--json"], "both go to stdout"),
        (["augment", "FILE", "--rule", "noise", "--field", "x"], "is not USE=NAME"),
        (["augment", "FILE", "--rule", "noise", "--times", "0"], "at least 1"),
        (["augment", "FILE", "FILE", "--rule", "noise"], "means a file twice"),
        (["synthesize", "instruct", "FILE", "--out", "o.jsonl"], "say who answers"),
        (
            ["synthesize", "instruct", "FILE", "--out", "o.jsonl", "--endpoint", "http://h/v1"],
            "needs --model",
        ),
        (
            ["synthesize", "questions", "none.md", "--out", "o.jsonl", "--local", "embedded"],
            "no document at",
        ),
        (
            ["synthesize", "best", "FILE", "--verify", "sql", "--out", "o", "--local", "embedded"],
            "has no database",
        ),
        (
            ["synthesize", "instruct", "FILE", "--out", "o", "--local", "x", "--temperature", "-1"],
            "temperature is -1",
        ),
        (["review", "-"], "save them to a file"),
        (["review", "FILE", "--by", "loss"], "no row has such a field"),
        (["review", "FILE", "--out", "FILE"], "is the file that is read"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(
    lines, tmp_path, capsys, monkeypatch, args, said
):
    path = lines("a.jsonl", [ROW])
    monkeypatch.chdir(tmp_path)
    before = path.read_bytes()
    assert call("data", *(str(path) if arg == "FILE" else arg for arg in args)) > 0
    out, err = capsys.readouterr()
    assert said in " ".join((out + err).replace("│", " ").split())
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["a.jsonl"]


def test_another_json_schema_does_not_go_on_with_the_answers_that_were_judged_by_the_first(
    lines, tmp_path, capsys
):
    path, schema = lines("a.jsonl", [ROW]), tmp_path / "schema.json"
    words = ["data", "synthesize", "best", path, "--verify", "json", "--json-schema", schema]
    words += ["--out", tmp_path / "o.jsonl", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"]
    codes = []
    for text in ('{"type": "object"}', '{"type": "object"}', '{"type": "array"}'):
        schema.write_text(text)
        codes.append(call(*words, "--max-requests", 1))
    assert codes == [0, 0, 7]
    assert "o.journal.jsonl" in capsys.readouterr().err


def test_the_last_decision_of_a_review_can_be_undone(lines, tmp_path, capsys, monkeypatch):
    path = lines("rows.jsonl", [ROW])
    for keys, counts in (("r", (0, 1)), ("ua", (1, 0)), ("xyz", (1, 0)), ("us", (0, 0))):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(keys.encode())))
        assert call("data", "review", path, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["accept"], report["reject"]) == counts
    assert len((tmp_path / "rows.reviewed.jsonl").read_text().splitlines()) == 1
