"""A stop whose text nobody reads, one that comes into samples, and one right after a checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.errors import InterruptedRun
from tunesmith.store import failpoints
from tunesmith.telemetry import read_events
from tunesmith.train import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
import small_base
from small_base import train, write_sums

CHECKPOINTS = Path("scratch/checkpoints")
PROGRAM = Path(sys.executable).with_name("tunesmith")


def values(base: Path, **settings) -> dict:
    """Validations and checkpoints at the end alone."""
    seldom = {"validate_every_steps": 100_000, "checkpoint_every_steps": 100_000}
    return small_base.values(base, **{"micro_batch_tokens": 256, **seldom, **settings})


def test_a_signal_whose_text_nobody_reads_is_noted_all_the_same():
    """Raised in the handler, the error would come out of whatever line the program is at."""
    code = (
        "import os, signal\n"
        "from tunesmith.train.stopping import Stopped, stop_signal\n"
        "with stop_signal() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(1000): pass\n"
        "    try:\n"
        "        stop.check()\n"
        "    except Stopped as stopped:\n"
        "        print(stopped)\n"
    )
    reads, writes = os.pipe()
    os.close(reads)
    try:
        found = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writes, check=False
        )
    finally:
        os.close(writes)
    assert (found.returncode, found.stdout) == (0, b"SIGINT\n")


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_ctrl_c_when_stderr_lost_its_reader_saves_every_step_and_exits_with_130(
    tmp_path, base, options
):
    """As with `tunesmith train |& tee log`: the same Ctrl-C ends `tee`, which read stdout and stderr."""
    recipe = {
        **values(base, epochs=300),
        "name": "sums",
        "workspace": str(tmp_path / "runs"),
        "data": {"source": {"kind": "files", "train": [str(write_sums(tmp_path / "rows.jsonl"))]}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    process = subprocess.Popen(
        [PROGRAM, "run", str(tmp_path / "recipe.yaml"), "--until", "train", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith("train: ") and line.rstrip().endswith("steps"):
                break
        else:
            pytest.fail("".join(said))
        (log,) = (tmp_path / "runs").glob("*/train-*/events.jsonl")
        while log.read_text().count('"event": "step"') < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
    done = [event["step"] for event in read_events(log) if event["event"] == "step"]
    kept = checkpoint.latest(log.parent / CHECKPOINTS)
    assert kept is not None
    assert kept.step == done[-1] >= 3


@pytest.mark.slow
@pytest.mark.usefixtures("_survives_sigterm")
@pytest.mark.parametrize("nth", [1, 2])
def test_samples_that_a_stop_came_into_are_made_up_for_once(tmp_path, base, rows, nth):
    recipe = values(base, max_steps=3, sample_rows=2, sample_every_steps=2)
    failpoints.arm(f"samples-before:{nth}=term")
    with pytest.raises(InterruptedRun, match=f"after step {nth + 1} of 3"):
        train(tmp_path / "run", rows, recipe)
    found = train(tmp_path / "run", rows, recipe)
    sampled = [e["step"] for e in read_events(found.path("events.jsonl")) if e["event"] == "sample"]
    assert sampled == [2, 2, 3, 3]


@pytest.mark.slow
@pytest.mark.usefixtures("_survives_sigterm")
def test_samples_that_were_shown_before_a_stop_are_not_shown_again(tmp_path, base, rows):
    recipe = values(base, max_steps=3, sample_rows=1, sample_every_steps=2)
    failpoints.arm("samples-after=term")
    with pytest.raises(InterruptedRun, match="after step 2 of 3"):
        train(tmp_path / "run", rows, recipe)
    found = train(tmp_path / "run", rows, recipe)
    sampled = [e["step"] for e in read_events(found.path("events.jsonl")) if e["event"] == "sample"]
    assert sampled == [2, 3]
