"""Places that nothing can be written to: one error that names the place, in every command that writes."""

from __future__ import annotations

import json
import os
import shlex

import pytest

from tunesmith.cli.data import data
from tunesmith.cli.main import main
from tunesmith.errors import StorageError, UsedDirectoryError
from tunesmith.telemetry import point_nowhere

COMMANDS = [
    "convert rows.jsonl --to chat --form jsonl --out @",
    "convert rows.jsonl --to chat --out ok.jsonl --rest @",
    "clean rows.jsonl --out @",
    "clean rows.jsonl --out - --sides @",
    "split rows.jsonl --out @",
    "check rows.jsonl --no-model --out @",
    "stats rows.jsonl --no-tokens --html @",
    "sample arithmetic --out @",
    "augment rows.jsonl --rule noise --out @",
    "augment rows.jsonl --rule noise --out ok.jsonl --side @",
    "augment rows.jsonl --rule rename --database t=t.sql --out ok.jsonl --databases-out @",
    "synthesize instruct rows.jsonl --endpoint http://127.0.0.1:9 --model m --out @",
    "make sql t.sql --out @",
    "make sql t.sql --out ok.jsonl --keep-database @",
    "make code-docs m.py --out @",
    "make support faq.md --out @",
    "make extract rows.jsonl --template '{t} is {l}.' --out @",
    "make classify rows.jsonl --text t --label l --out @",
    "make classify rows.jsonl --text t --label l --out ok.jsonl --dropped @",
    "annotate export rows.jsonl --out @ --config ok.xml",
    "annotate export rows.jsonl --out ok.json --config @",
    "review rows.jsonl --out @",
]
PLACES = ["/proc/x", "/proc/x/y.jsonl", "rows.jsonl/x", "/dev/null/x.jsonl", "x" * 300]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    row = {"prompt": "Is 7 a prime?", "completion": "Yes.", "t": "text", "l": "a"}
    rows = [
        {**row, "prompt": f"Is {n} a prime?", "t": f"text {n}", "l": "ab"[n % 2]} for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (tmp_path / "faq.md").write_text("# How are you?\n\nFine, thank you very much.\n")
    (tmp_path / "m.py").write_text(
        'def f(a):\n    """Sum of all things."""\n    b = a\n    return b\n'
    )
    (tmp_path / "t.sql").write_text("create table town (name text, size int);")
    monkeypatch.chdir(tmp_path)
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield tmp_path


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="a system without /proc")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.partition(" --")[0])
def test_a_place_that_cannot_be_written_is_one_error(folder, capsys, command):
    for place in PLACES:
        words = [place if word == "@" else word for word in shlex.split(command)]
        with pytest.raises(SystemExit) as caught:
            main(["data", *words])
        said = capsys.readouterr().err
        assert caught.value.code in (StorageError.exit_code, UsedDirectoryError.exit_code), said
        assert "Traceback" not in said
        assert place.removesuffix(".jsonl")[:20] in said.replace("\n", "")
        assert [path.name for path in folder.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a system without /dev/full")
@pytest.mark.parametrize(
    "command",
    [
        "convert rows.jsonl --to chat",
        "clean rows.jsonl --sides sides",
        "augment rows.jsonl --rule noise",
        "make support faq.md",
    ],
)
def test_a_stdout_that_is_full_is_named(folder, monkeypatch, command):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(StorageError) as caught:
            data.main([*shlex.split(command), "--out", "-"], standalone_mode=False)
        monkeypatch.undo()
        # What stays in the buffer could not be written when it is closed either.
        point_nowhere(full)
    assert (caught.value.what, caught.value.why) == ("cannot write stdout", "the disk is full")
