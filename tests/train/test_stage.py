"""Whole training runs on a tiny model: sealed, interrupted, killed, resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest

from tunesmith.config import recipe_from
from tunesmith.errors import ConfigError, DataError, TrainingError
from tunesmith.store import Artifact, Run
from tunesmith.train import checkpoint, run

sys.path.insert(0, str(Path(__file__).parent))
from small_base import TRAIN_SCRIPT


def settings(base: Path, **train) -> dict:
    defaults = {
        "epochs": 2,
        "batch_tokens": 512,
        "micro_batch_tokens": 256,
        "precision": "fp32",
        "threads": 1,
        "sample_rows": 0,
        "checkpoint_every_steps": 3,
        "method": {"kind": "lora", "rank": 4},
    }
    return {"model": {"base": str(base)}, "train": {**defaults, **train}}


def train_here(place: Path, dataset: Artifact, values: dict):
    with Run.open(place, "train", inputs={}, parents=[dataset.as_parent()], resume=True) as at:
        return run(recipe_from(values), at, dataset)


def start(place: Path, dataset: Artifact, values: dict) -> subprocess.Popen:
    """In a process that has nothing imported, and a hash seed of its own."""
    with said(place).open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", TRAIN_SCRIPT, str(place), str(dataset.dir), json.dumps(values)],
            stderr=errors,
        )


def fork(place: Path, dataset: Artifact, values: dict) -> forked.Child:
    """The same, without the seconds that the imports take."""
    words = (str(place), str(dataset.dir), json.dumps(values))
    return forked.script(TRAIN_SCRIPT, *words, errors=said(place))


def said(place: Path) -> Path:
    return place.with_suffix(".err")


def wait_for_steps(place: Path, steps: int, process: forked.Child) -> None:
    log = place / "events.jsonl"
    while process.poll() is None:
        if log.is_file() and log.read_text().count('"event": "step"') >= steps:
            return
        time.sleep(0.005)
    pytest.fail(f"the run ended before step {steps}: {said(place).read_text()}")


def adapter_bytes(place: Path) -> bytes:
    return Artifact.open(place).path("adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_learns_and_seals_what_it_measured(tmp_path, tiny_base, dataset):
    values = settings(tiny_base, epochs=6, optimizer={"learning_rate": 0.02})
    result = train_here(tmp_path / "run", dataset, values)
    assert result.validation_loss < result.first_validation_loss - 0.1
    facts = Artifact.open(tmp_path / "run", "train").facts
    assert facts["steps"] == result.steps == facts["total_steps"]
    assert facts["epochs"] == 6
    assert {"adapter/adapter_config.json", "events.jsonl", "loss.png"} <= set(result.artifact.files)
    assert any(name.startswith("tensorboard/") for name in result.artifact.files)
    assert not (tmp_path / "run" / "scratch").exists()


@pytest.mark.slow
def test_full_training_seals_all_weights_and_learns(tmp_path, tiny_base, dataset):
    values = settings(
        tiny_base, method={"kind": "full"}, optimizer={"learning_rate": 0.01}, epochs=3
    )
    result = train_here(tmp_path / "run", dataset, values)
    assert result.validation_loss < result.first_validation_loss - 0.5
    assert "model/model.safetensors" in result.artifact.files


@pytest.mark.slow
def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path, tiny_base, dataset):
    values = settings(tiny_base, epochs=1)
    for name in ("a", "b"):
        train_here(tmp_path / name, dataset, values)
    train_here(tmp_path / "c", dataset, {**values, "seed": 1})
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b")
    assert adapter_bytes(tmp_path / "a") != adapter_bytes(tmp_path / "c")


LONG = {"epochs": 4, "threads": 2}


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_base, dataset) -> bytes:
    """The weights of a run that nothing stopped."""
    place = tmp_path_factory.mktemp("straight") / "run"
    process = start(place, dataset, settings(tiny_base, **LONG))
    assert process.wait() == 0, said(place).read_text()
    return adapter_bytes(place)


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [1, 4, 7])
def test_killed_and_resumed_run_is_bit_equal_to_a_straight_one(
    tmp_path, tiny_base, dataset, straight, kill_after
):
    values = settings(tiny_base, **LONG)
    killed = fork(tmp_path / "killed", dataset, values)
    wait_for_steps(tmp_path / "killed", kill_after, killed)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    resumed = fork(tmp_path / "killed", dataset, values)
    assert resumed.wait() == 0, said(tmp_path / "killed").read_text()
    assert adapter_bytes(tmp_path / "killed") == straight


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_names_the_way_on_and_resumes_bit_equal(
    tmp_path, tiny_base, dataset, straight, number
):
    values = settings(tiny_base, **LONG, checkpoint_every_steps=1000)
    stopped = fork(tmp_path / "stopped", dataset, values)
    wait_for_steps(tmp_path / "stopped", 2, stopped)
    stopped.send_signal(number)
    assert stopped.wait() == 130
    assert "--resume" in said(tmp_path / "stopped").read_text()
    assert checkpoint.latest(tmp_path / "stopped" / "scratch" / "checkpoints") is not None
    resumed = fork(tmp_path / "stopped", dataset, values)
    assert resumed.wait() == 0, said(tmp_path / "stopped").read_text()
    assert adapter_bytes(tmp_path / "stopped") == straight


def test_a_key_without_effect_is_refused_before_training(tmp_path, tiny_base, dataset):
    values = settings(tiny_base)
    values["model"]["revision"] = "main"
    with pytest.raises(ConfigError, match=r"model\.revision"):
        train_here(tmp_path / "run", dataset, values)


def test_sampling_steps_without_samples_are_refused(tmp_path, tiny_base, dataset):
    values = settings(tiny_base, sample_rows=0, sample_every_steps=5)
    with pytest.raises(ConfigError, match="sample_every_steps"):
        train_here(tmp_path / "run", dataset, values)


def test_uneven_batch_is_refused_with_the_nearest_that_works(tmp_path, tiny_base, dataset):
    values = settings(tiny_base, batch_tokens=100, micro_batch_tokens=64)
    with pytest.raises(ConfigError) as caught:
        train_here(tmp_path / "run", dataset, values)
    assert "train.batch_tokens=128" in caught.value.fix


def test_long_rows_are_refused_with_their_lines(tmp_path, tiny_base, dataset):
    values = settings(tiny_base, max_row_tokens=20)
    with pytest.raises(DataError, match=r"train\.jsonl:1: \d+ tokens"):
        train_here(tmp_path / "run", dataset, values)


def test_unknown_target_is_refused_with_the_near_one(tmp_path, tiny_base, dataset):
    values = settings(tiny_base, method={"kind": "lora", "targets": ["q_prj"]})
    with pytest.raises(ConfigError, match="did you mean 'q_proj'"):
        train_here(tmp_path / "run", dataset, values)


def test_a_loss_that_is_not_finite_stops_with_step_and_lines(tmp_path, tiny_base, dataset):
    rate = {"learning_rate": 1e30, "warmup_ratio": 0.0}
    values = settings(tiny_base, optimizer=rate, validate_every_steps=1000)
    with pytest.raises(TrainingError, match=r"at step \d+") as caught:
        train_here(tmp_path / "run", dataset, values)
    assert "lines of train.jsonl" in caught.value.why
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_max_steps_ends_early_and_says_so_in_the_facts(tmp_path, tiny_base, dataset):
    result = train_here(tmp_path / "run", dataset, settings(tiny_base, max_steps=2))
    assert result.steps == 2
    assert 0 < result.artifact.facts["epochs"] < 1
