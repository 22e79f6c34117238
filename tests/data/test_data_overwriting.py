"""No command of the data room writes over what it reads."""

from __future__ import annotations

import json

import pytest

from tunesmith.cli.main import main
from tunesmith.config import CleanConfig
from tunesmith.data.clean import clean_files
from tunesmith.errors import UsedDirectoryError

ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
OTHER = ["--out", "other.jsonl"]


@pytest.mark.parametrize(
    "command",
    [
        ["check", "FILE", "--no-model", "--out", "FILE"],
        ["augment", "FILE", "--rule", "noise", *OTHER, "--side", "FILE"],
        ["annotate", "export", "FILE", "--out", "t.json", "--config", "FILE"],
        ["annotate", "import", "FILE", "--results", "FILE", *OTHER, "--side", "FILE"],
        ["make", "classify", "FILE", "--text", "t", "--label", "l", "--out", "FILE"],
        ["make", "classify", "FILE", "--text", "t", "--label", "l", *OTHER, "--dropped", "FILE"],
    ],
    ids=lambda command: f"{command[0]}-{command[-2]}",
)
def test_a_file_that_is_read_is_not_written_over(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.jsonl"
    rows = [{**ROW, "t": f"text {n}", "l": "ab"[n % 2]} for n in range(6)]
    before = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(before)
    with pytest.raises(SystemExit) as caught:
        main(["data", *(str(path) if part == "FILE" else part for part in command)])
    assert caught.value.code == 2
    assert "is the file that is read" in capsys.readouterr().err
    assert path.read_text() == before


def test_what_an_earlier_cleaning_kept_is_not_cleaned_into_its_own_folder(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n" * 2)
    config, out = CleanConfig(exact="drop"), tmp_path / "out"
    clean_files([path], config, out=out)
    dropped = (out / "dropped.jsonl").read_text()
    for again in (out / "rows.jsonl", out):
        with pytest.raises(UsedDirectoryError, match="would be replaced"):
            clean_files([again], config, out=out)
    assert (out / "dropped.jsonl").read_text() == dropped != ""
    clean_files([path], config, out=out)


def test_what_was_cleaned_of_another_file_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(f"{json.dumps(ROW)}\n" * 2)
    config, out = CleanConfig(exact="drop"), tmp_path / "out"
    clean_files(["a.jsonl"], config, out=out)
    dropped = (out / "dropped.jsonl").read_text()
    with pytest.raises(UsedDirectoryError, match=r"out holds what was cleaned of a\.jsonl"):
        clean_files(["b.jsonl"], config, out=out)
    assert (out / "dropped.jsonl").read_text() == dropped != ""
    clean_files([tmp_path / "a.jsonl"], CleanConfig(), out=out)
    assert (out / "dropped.jsonl").read_text() == ""


def test_a_file_that_is_replaced_is_named(tmp_path, capsys):
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n")
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["data", "convert", str(path), "--to", "instruction", "--out", str(out)])
        said.append(capsys.readouterr().err)
    assert "is there already" not in said[0]
    assert f"{out} is there already, and is replaced" in said[1]
