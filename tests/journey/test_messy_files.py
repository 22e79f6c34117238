"""The example of messy files runs as its page says, and every planted fault is accounted for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "02-messy-files-to-a-dataset"


def run(folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [EXAMPLE / "run.sh", folder],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What `run.sh` writes, and what it prints."""
    folder = tmp_path_factory.mktemp("messy") / "made"
    found = run(folder)
    assert found.returncode == 0, found.stderr
    return folder, found.stdout + found.stderr


def test_it_runs_a_second_time(made):
    before = (made[0] / "dataset" / "train.jsonl").read_bytes()
    again = run(made[0])
    assert again.returncode == 0, again.stderr
    assert (made[0] / "dataset" / "train.jsonl").read_bytes() == before


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_planted_fault_is_dropped_or_mended_by_its_rule(made):
    folder, _ = made
    dropped = [row["rule"] for row in rows(folder / "clean" / "dropped.jsonl")]
    changed = [row["rule"] for row in rows(folder / "clean" / "changed.jsonl")]
    assert sorted(dropped) == ["exact", "near", "refusal"]
    assert sorted(changed) == ["normalize", "private", "private"]


def test_no_private_text_reaches_the_dataset(made):
    folder, _ = made
    texts = [p.read_text(encoding="utf-8") for p in (folder / "dataset").rglob("*.jsonl")]
    assert texts
    assert not any("nina.hill" in text or "sk_live_" in text for text in texts)


def test_every_row_of_the_three_files_is_in_a_split_or_in_a_side_file(made):
    folder, _ = made
    n_in = sum(len(rows(folder / name)) for name in ("tickets.jsonl", "faq.jsonl"))
    n_in += len(rows(EXAMPLE / "chats.jsonl"))
    splits = {
        name: len(rows(folder / "dataset" / f"{name}.jsonl"))
        for name in ("train", "validation", "test")
    }
    assert (splits["validation"], splits["test"]) == (6, 10)
    assert sum(splits.values()) + len(rows(folder / "clean" / "dropped.jsonl")) == n_in


def test_the_page_with_plots_needs_no_network(made):
    folder, _ = made
    page = (folder / "stats.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")
    assert "<script" not in page
