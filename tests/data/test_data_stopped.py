"""Ctrl-C and SIGTERM while a result is being written: no part of a file stays, and no file is half there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

N_ROWS = 15_000
MAIN = "from tunesmith.cli.main import main; main()"
COMMANDS = {
    "convert": "convert rows.jsonl --to sharegpt --out out/rows.json.gz --form json",
    "clean": "clean rows.jsonl --out out/cleaned",
    "split": "split rows.jsonl --out out/split --no-near-duplicates --processes 1",
    "augment": "augment rows.jsonl --rule noise --out out/more.jsonl",
    "make": "make classify rows.csv --out out/made.jsonl",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("stopped")
    pairs = [(f"Is {n} a prime number, and why is it?", f"It is {n % 7}.") for n in range(N_ROWS)]
    lines = [json.dumps({"prompt": ask, "completion": say}) for ask, say in pairs]
    (found / "rows.jsonl").write_text("\n".join(lines))
    (found / "rows.csv").write_text(
        "text,label\n" + "".join(f'"{ask}","{say}"\n' for ask, say in pairs)
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_stopped_while_it_writes_leaves_nothing(folder, tmp_path, name, number):
    out = tmp_path / "out"
    out.mkdir()
    asked = [word.replace("out/", f"{out}/") for word in COMMANDS[name].split()]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "data", *asked],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not parts(out):
        time.sleep(0.0005)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert parts(out) == []
    # A run's folder stays for --resume, without a seal and without a row's file.
    left = [path.name for path in out.rglob("*") if path.suffix in (".jsonl", ".gz", ".json")]
    assert [one for one in left if one not in ("run.json",)] == []


def parts(folder):
    """Files and folders that have not got their name yet."""
    found = []
    for place, folders, files in os.walk(folder):
        found += [f"{place}/{one}" for one in (*folders, *files) if one.endswith(".part")]
    return found
