"""SIGTERM in the middle of a long step of the real embedded model: how long until everything is saved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.telemetry.events import read_events
from tunesmith.train import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from small_base import TRAIN_SCRIPT, sealed_sums

HANGS_AFTER_SECONDS = 60
"""A guard against waiting for ever, no requirement: the machine may be busy."""


@pytest.mark.slow
def test_sigterm_in_a_long_step_of_the_real_model_abandons_it_and_saves(tmp_path, record_property):
    """A step of 16 micro batches of 1,024 positions; the signal comes as the third one starts."""
    rows = sealed_sums(tmp_path / "data", train=1600, validation=2)
    recipe = {
        "train": {
            "batch_tokens": 16_384,
            "micro_batch_tokens": 1024,
            "precision": "fp32",
            "threads": 1,
            "sample_rows": 0,
        }
    }
    command = [sys.executable, "-c", TRAIN_SCRIPT, str(tmp_path / "run"), str(rows.dir)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TUNESMITH_FAILPOINT": "step-forward:3=term",
    }
    process = subprocess.Popen(
        [*command, json.dumps(recipe)], stderr=subprocess.PIPE, text=True, env=environment
    )
    said, signalled = [], None
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            said.append(line)
            if line.startswith("stopping;"):
                signalled = time.monotonic()
    seconds = time.monotonic() - (signalled or 0)
    text = " ".join("".join(said).split())
    assert signalled is not None, text
    assert process.returncode == 130, text
    record_property("seconds_from_sigterm_to_exit", round(seconds, 2))
    print(f"seconds from SIGTERM to exit: {seconds:.2f}")
    assert "stopped by SIGTERM after step 0 of" in text
    assert "everything so far is saved" in text
    events = [event["event"] for event in read_events(tmp_path / "run/events.jsonl")]
    assert events[-1] == "checkpoint"
    assert "step" not in events
    kept = checkpoint.latest(tmp_path / "run/scratch/checkpoints")
    assert kept is not None
    assert kept.step == 0
    assert seconds < HANGS_AFTER_SECONDS
