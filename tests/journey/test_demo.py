"""`tunesmith demo` as a user types it, with a tiny model in place of the embedded one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tunesmith.config import load_recipe

pytestmark = pytest.mark.slow

PROGRAM = Path(sys.executable).with_name("tunesmith")
KEYS = {
    "seconds_total",
    "seconds_by_stage",
    "base_accuracy",
    "tuned_accuracy",
    "gain_points",
    "gain_ci95",
    "n_test",
    "train_tokens_per_second",
    "peak_rss_bytes",
    "parity",
    "answer_sql",
    "answer_rows",
    "first_token_seconds",
}


def left_running(folder: Path) -> list[str]:
    """Processes that were started in `folder`, or by one that was, and have not ended."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(folder) or process.environ().get("JOURNEY") == str(folder):
                found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture(scope="module")
def toured(tmp_path_factory, tunesmith_in, small_sets):
    """A finished demo: its folder, its command line, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    args = ["demo", *small_sets, "--set", "data.max_test_rows=8", "--set", "data.max_train_rows=40"]
    return folder, args, tunesmith_in(folder)(*args).stdout


def test_the_demo_ends_with_a_summary_and_leaves_nothing_running(toured):
    folder, _, printed = toured
    assert left_running(folder) == []
    summary = json.loads((folder / "runs/demo/summary.json").read_text())
    assert set(summary) == KEYS
    assert list(summary["seconds_by_stage"]) == [
        "doctor",
        "data",
        "train",
        "evaluate",
        "export",
        "serve",
    ]
    assert summary["n_test"] == 8
    assert set(summary["parity"]) >= {"merged", "gguf-f16", "gguf-q8_0"}
    for measured in summary["parity"].values():
        assert set(measured) == {"greedy_agreement", "mean_kl"}
    assert isinstance(summary["answer_sql"], str)
    assert 0 < summary["first_token_seconds"] < summary["seconds_by_stage"]["serve"]
    assert summary["seconds_total"] >= summary["seconds_by_stage"]["train"]
    low, high = summary["gain_ci95"]
    assert low <= summary["gain_points"] <= high
    for word in ("processor", "<|im_start|>", "question", "what was made", "next:", "summary.json"):
        assert word in printed


def test_a_second_demo_uses_every_stage_again(toured, tunesmith_in):
    folder, args, _ = toured
    place = folder / "runs/demo/summary.json"
    first = json.loads(place.read_text())
    second = tunesmith_in(folder)(*args, "--json")
    again = json.loads(second.stdout)
    assert again == json.loads(place.read_text())
    assert second.stderr.count("reused") == 4
    for stage in ("data", "train", "evaluate", "export"):
        assert again["seconds_by_stage"][stage] == first["seconds_by_stage"][stage]
    for key in ("base_accuracy", "tuned_accuracy", "parity", "train_tokens_per_second"):
        assert again[key] == first[key]
    assert len(list((folder / "runs/demo").glob("*-*"))) == 4


def test_keep_serving_answers_until_ctrl_c(toured):
    folder, args, _ = toured
    with subprocess.Popen(
        [PROGRAM, *args, "--keep-serving"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    ) as child:
        assert child.stdout is not None
        lines = [""]
        while not lines[-1].startswith("curl "):
            lines.append(child.stdout.readline())
            assert lines[-1], "it ended before it served"
        export, line = lines[-2:]
        assert export.startswith("export TUNESMITH_API_KEY=sk-")
        assert "sk-" not in line
        asked = subprocess.run(
            export + line, shell=True, capture_output=True, text=True, timeout=60, check=True
        )
        assert json.loads(asked.stdout)["choices"][0]["message"]["role"] == "assistant"
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=60) == 0
    assert left_running(folder) == []


def test_the_demo_needs_no_network_by_its_recipe():
    recipe = load_recipe(["demo"])
    assert recipe.model.base == "embedded"
    assert recipe.data.source.kind == "sample"
    assert recipe.serve.host == "127.0.0.1"


def test_a_demo_that_cannot_write_says_so_before_it_starts(tunesmith, tmp_path):
    (tmp_path / "file").write_text("x")
    found: subprocess.CompletedProcess[str] = tunesmith("demo", "--workspace", "file/x", code=14)
    assert "file/x" in found.stderr
    assert "fix:" in found.stderr
