"""`tunesmith demo` as a user types it, with a tiny model in place of the embedded one."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tunesmith.config import load_recipe

pytestmark = pytest.mark.slow

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


def test_the_demo_ends_with_a_summary_and_a_second_one_uses_everything_again(
    tunesmith, small_sets, tmp_path
):
    args = ["demo", *small_sets, "--set", "data.max_test_rows=8", "--set", "data.max_train_rows=40"]
    first = tunesmith(*args)
    assert left_running(tmp_path) == []
    summary = json.loads((tmp_path / "runs/demo/summary.json").read_text())
    assert set(summary) == KEYS
    assert set(summary["seconds_by_stage"]) == {
        "doctor",
        "data",
        "train",
        "evaluate",
        "export",
        "serve",
    }
    assert summary["n_test"] == 8
    assert set(summary["parity"]) == {"merged", "gguf-f16", "gguf-q8_0"} | set(summary["parity"])
    for measured in summary["parity"].values():
        assert set(measured) == {"greedy_agreement", "mean_kl"}
    assert isinstance(summary["answer_sql"], str)
    assert 0 < summary["first_token_seconds"] < summary["seconds_by_stage"]["serve"]
    assert summary["seconds_total"] >= summary["seconds_by_stage"]["train"]
    low, high = summary["gain_ci95"]
    assert low <= summary["gain_points"] <= high
    for word in ("processor", "<|im_start|>", "question", "what was made", "next:", "summary.json"):
        assert word in first.stdout

    second = tunesmith(*args, "--json")
    again = json.loads(second.stdout)
    assert again == json.loads((tmp_path / "runs/demo/summary.json").read_text())
    assert second.stderr.count("reused") == 4
    for stage in ("data", "train", "evaluate", "export"):
        assert again["seconds_by_stage"][stage] == summary["seconds_by_stage"][stage]
    for key in ("base_accuracy", "tuned_accuracy", "parity", "train_tokens_per_second"):
        assert again[key] == summary[key]
    assert len(list((tmp_path / "runs/demo").glob("*-*"))) == 4


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
