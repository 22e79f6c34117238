"""Checkpoints are whole or not there, and a damaged one is passed over."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config import OptimizerConfig
from tunesmith.errors import ConfigError, StorageError
from tunesmith.store import failpoints
from tunesmith.train import checkpoint, randomness
from tunesmith.train.identity import refuse_another
from tunesmith.train.schedule import learning_rate

TENSORS = {"a": torch.arange(6.0), "random_state": torch.zeros(4, dtype=torch.uint8)}


def test_what_is_saved_comes_back_equal(tmp_path):
    checkpoint.save(tmp_path, 7, TENSORS, {"tokens": 3})
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert (found.step, found.facts) == (7, {"tokens": 3})
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("damage", ["cut", "flip", "seal", "gone"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path, capsys, damage):
    checkpoint.save(tmp_path, 1, TENSORS, {})
    place = checkpoint.save(tmp_path, 2, TENSORS, {})
    state = place / "state.safetensors"
    data = state.read_bytes()
    if damage == "cut":
        state.write_bytes(data[:-3])
    elif damage == "flip":
        state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "seal":
        (place / "checkpoint.json").write_text("{")
    else:
        state.unlink()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step-00000002 is" in capsys.readouterr().err.replace("\n", "")


def test_no_checkpoint_is_none_and_a_half_written_one_is_not_seen(tmp_path):
    (tmp_path / ".step-00000003.part").mkdir()
    assert checkpoint.latest(tmp_path) is None


def test_a_changed_fact_is_damage_too(tmp_path, capsys):
    checkpoint.save(tmp_path, 1, TENSORS, {"tokens": 3})
    seal = checkpoint.save(tmp_path, 2, TENSORS, {"tokens": 3}) / "checkpoint.json"
    seal.write_text(seal.read_text().replace('"tokens": 3', '"tokens": 4'))
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "checkpoint.json is not what was written" in capsys.readouterr().err.replace("\n", " ")


def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_half_written(tmp_path):
    checkpoint.save(tmp_path, 1, TENSORS, {})
    for name in ("checkpoint-begin", "checkpoint-state", "checkpoint-seal"):
        failpoints.arm(f"{name}=enospc")
        with pytest.raises(StorageError) as caught:
            checkpoint.save(tmp_path, 2, TENSORS, {})
        assert "the disk is full" in caught.value.why
        assert "step-00000002" in caught.value.what
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_a_full_small_disk_leaves_the_checkpoint_before(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    tensors = {"a": torch.arange(40_000, dtype=torch.float32)}
    try:
        checkpoint.save(disk, 1, tensors, {})
        with pytest.raises(StorageError, match="step-00000002") as caught:
            checkpoint.save(disk, 2, tensors, {})
        assert "the disk is full" in caught.value.why
        assert [p.name for p in disk.iterdir()] == ["step-00000001"]
        found = checkpoint.latest(disk)
        assert found is not None
        assert torch.equal(found.tensors["a"], tensors["a"])
        del found  # it maps the file
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("best", [1, 3, 10, None])
def test_prune_keeps_the_best_beside_the_newest(tmp_path, best):
    for step in (1, 2, 3, 10):
        checkpoint.save(tmp_path, step, TENSORS, {})
    checkpoint.prune(tmp_path, 10, 2, best)
    kept = sorted({3, 10} | ({best} if best else set()))
    assert [int(p.name[-8:]) for p in sorted(tmp_path.iterdir())] == kept
    one = checkpoint.at_step(tmp_path, 10)
    assert one is not None
    assert one.step == 10
    assert checkpoint.at_step(tmp_path, 2) is None


def test_random_state_comes_back_to_the_bit():
    random.seed(3)
    random.gauss(0, 1)  # leaves a second draw waiting
    numpy.random.seed(4)
    numpy.random.normal()
    torch.manual_seed(5)
    state = randomness.capture()

    def draw() -> list[float]:
        here = [random.gauss(0, 1), random.random(), *numpy.random.normal(size=3)]
        return [*here, *torch.rand(3).tolist()]

    first = draw()
    assert draw() != first
    randomness.restore(state)
    assert draw() == first


def test_another_runs_checkpoint_is_refused_with_all_that_differs():
    saved = {"rows": "a" * 64, "seed": 0, "train.optimizer.learning_rate": 0.1}
    now = {"rows": "b" * 64, "seed": 0, "train.optimizer.learning_rate": 0.2}
    refuse_another(saved, saved, "here")
    with pytest.raises(ConfigError) as caught:
        refuse_another(saved, now, "here")
    assert "rows: aaaaaaaaaaaa then, bbbbbbbbbbbb now" in caught.value.what
    assert "learning_rate: 0.1 then, 0.2 now" in caught.value.what
    assert "seed" not in caught.value.what


def test_prune_keeps_the_newest(tmp_path):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, TENSORS, {})
    checkpoint.prune(tmp_path, 10, 2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000010"]


def damage(place: Path) -> None:
    (place / "state.safetensors").write_bytes(b"x")


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_of_later_steps_never_cost_the_one_just_saved(tmp_path, capsys, keep):
    """A run that went on from step 50, since those after it were damaged, saves step 60."""
    for step in (50, 90, 100):
        place = checkpoint.save(tmp_path, step, TENSORS, {})
        if step > 50:
            damage(place)
    checkpoint.save(tmp_path, 60, TENSORS, {})
    checkpoint.prune(tmp_path, 60, keep)
    left = [int(p.name[-8:]) for p in sorted(tmp_path.iterdir())]
    assert left == [50, 60][-keep:]
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 60
    assert "damaged" not in capsys.readouterr().err


def test_a_whole_checkpoint_of_a_later_step_stays_and_is_not_counted(tmp_path):
    for step in (50, 100, 60, 70):
        checkpoint.save(tmp_path, step, TENSORS, {})
    checkpoint.prune(tmp_path, 70, 2)
    assert [int(p.name[-8:]) for p in sorted(tmp_path.iterdir())] == [60, 70, 100]


@pytest.mark.slow
def test_killed_while_a_step_is_saved_again_the_first_save_of_it_is_there(tmp_path):
    """As a stop right after a checkpoint does; `kill -9` comes when the old one has lost its name."""
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from tunesmith.train import checkpoint\n"
        "for again in (0, 1):\n"
        "    checkpoint.save(Path(sys.argv[1]), 40, {'a': torch.ones(2)}, {'again': again})\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, failpoints.VARIABLE: "folder-aside"},
        check=False,
    )
    assert killed.returncode == -9
    assert not list(tmp_path.glob("step-*"))
    assert checkpoint.is_any(tmp_path)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert (found.step, found.facts) == (40, {"again": 0})
    checkpoint.save(tmp_path, 40, TENSORS, {"again": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000040"]


@pytest.mark.parametrize(
    ("shape", "rates"),
    [
        # cos(0), cos(pi/4), cos(pi/2) and cos(3 pi/4), each halved and raised by a half.
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_each_schedule_has_its_shape(shape, rates):
    config = OptimizerConfig(learning_rate=1.0, warmup_ratio=1 / 3, schedule=shape)
    found = [learning_rate(config, step, 6) for step in range(6)]
    assert found == pytest.approx(rates, abs=1e-6)


@given(
    total=st.integers(1, 500),
    warmup=st.floats(0, 0.99),
    shape=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_learning_rate_stays_between_zero_and_its_peak_and_reaches_it(total, warmup, shape):
    config = OptimizerConfig(learning_rate=0.1, warmup_ratio=warmup, schedule=shape)
    rates = [learning_rate(config, step, total) for step in range(total)]
    assert all(0 <= rate <= 0.1 * (1 + 1e-12) for rate in rates)
    assert max(rates) == pytest.approx(0.1)
