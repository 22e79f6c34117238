"""A real disk that is full, wherever training writes: one clear error, nothing half-written, and it goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tunesmith.config import recipe_from
from tunesmith.errors import StorageError
from tunesmith.store import Artifact, failpoints
from tunesmith.train import checkpoint, references, trunk_cache
from tunesmith.train.nonfinite import NotFinite
from tunesmith.train.plan import plan_training
from tunesmith.train.session import load

sys.path.insert(0, str(Path(__file__).parent))
import small_base
from small_base import sealed_pairs, sealed_sums, train

pytestmark = pytest.mark.slow

PREPARED = {
    "objective": {"kind": "dpo"},
    "method": {"kind": "lora", "rank": 2, "layers": 1},
    "trunk_cache": "disk",
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("rows")
    return {"sft": sealed_sums(folder / "sums"), "dpo": sealed_pairs(folder / "pairs")}


@dataclass
class SmallDisk:
    """A mounted memory disk."""

    dir: Path

    def fill(self, leave_bytes: int) -> None:
        """A file that takes all but so much, in whole pages."""
        free = shutil.disk_usage(self.dir).free
        with (self.dir / "other-program").open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(1, free - leave_bytes))

    def grow(self) -> None:
        (self.dir / "other-program").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", "remount,size=50m", str(self.dir)], check=True)

    def halves(self) -> list[str]:
        return [str(path) for path in self.dir.rglob("*") if "part" in path.name]


@pytest.fixture
def disk(tmp_path) -> Iterator[SmallDisk]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    yield SmallDisk(place)
    failpoints.arm("")
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def values(base: Path, **settings) -> dict:
    """With all that writes: samples, and a best checkpoint beside the last ones."""
    writing = {"sample_rows": 1, "sample_every_steps": 2, "keep": "best"}
    return small_base.values(base, **{**writing, **settings})


def adapter(artifact: Artifact) -> bytes:
    return artifact.path("adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_however_little_room_there_is_a_run_stops_clearly_and_goes_on_to_the_same_end(
    tmp_path, base, datasets, disk, kind
):
    """From room for nothing to room for all but the seal; checkpoints, the best one among them, lie between."""
    recipe = values(base, max_steps=3, **(PREPARED if kind == "dpo" else {}))
    straight = adapter(train(tmp_path / "straight", datasets[kind], recipe))
    refused = set()
    for leave in range(0, 2**19, 40 * 1024):
        place = disk.dir / str(leave)
        disk.fill(leave)
        error = refusal(place, datasets[kind], recipe)
        if error is None:
            break
        assert error.why == "the disk is full"
        assert "free some space" in error.fix
        refused.add(Path(error.what.split()[-1]).name)
        assert disk.halves() == []
        checkpoints = place / "scratch/checkpoints"
        for kept in checkpoints.glob("step-*"):
            assert checkpoint.at_step(checkpoints, int(kept.name[-8:])) is not None
        disk.grow()
        assert adapter(train(place, datasets[kind], recipe)) == straight
        shutil.rmtree(place)
    else:
        pytest.fail("it never fitted")
    assert {name.startswith("step-") for name in refused} == {True, False}


def refusal(place: Path, rows: Artifact, recipe: dict) -> StorageError | None:
    try:
        train(place, rows, recipe)
    except StorageError as error:
        return error
    return None


def test_a_seal_that_finds_no_room_leaves_every_checkpoint_and_is_made_up_for(
    tmp_path, base, datasets, disk
):
    recipe = values(base, max_steps=2, method={"kind": "lora", "rank": 64})
    failpoints.arm("trained-begin=enospc")
    with pytest.raises(StorageError):
        train(disk.dir / "run", datasets["sft"], recipe)
    disk.fill(64 * 1024)
    with pytest.raises(StorageError, match="adapter") as caught:
        train(disk.dir / "run", datasets["sft"], recipe)
    assert caught.value.why == "the disk is full"
    assert not (disk.dir / "run/manifest.json").exists()
    newest = checkpoint.latest(disk.dir / "run/scratch/checkpoints")
    assert newest is not None
    assert newest.step == 2
    del newest
    disk.grow()
    found = train(disk.dir / "run", datasets["sft"], recipe)
    found.verify()
    assert adapter(found) == adapter(train(tmp_path / "straight", datasets["sft"], recipe))


def test_reference_log_probabilities_that_find_no_room_are_no_half_file(base, datasets, disk):
    plan = plan_training(recipe_from(values(base, **PREPARED)), datasets["dpo"])
    disk.fill(0)
    with pytest.raises(StorageError, match=references.FILE) as caught:
        load(plan).prepare(disk.dir)
    assert caught.value.why == "the disk is full"
    assert [path.name for path in disk.dir.iterdir()] == ["other-program"]
    disk.grow()
    load(plan).prepare(disk.dir)
    assert (disk.dir / references.FILE).is_file()


def test_frozen_layers_states_that_find_no_room_are_left_out_and_training_goes_on(
    base, datasets, disk
):
    """Room enough when it was looked at, taken by another program while the states are written."""
    session = load(plan_training(recipe_from(values(base, **PREPARED)), datasets["dpo"]))
    place = disk.dir / "states"
    place.mkdir()
    request = trunk_cache.request_of(session, place)
    states = sum(map(len, (*request.rows, *request.validation))) * 32 * 4
    disk.fill(states // 4)
    found, line = trunk_cache.prepare(session.model, replace(request), place)
    assert found is None
    assert "the disk is full" in line
    assert [path.name for path in place.iterdir()] == [trunk_cache.CHOICE]
    session.prepare()
    session.train_step()


def test_a_failure_record_that_finds_no_room_is_told_and_hides_nothing(base, datasets, disk):
    absurd = {"learning_rate": 1e30, "warmup_ratio": 0.0}
    recipe = values(
        base,
        optimizer=absurd,
        validate_every_steps=1000,
        sample_rows=0,
        method={"kind": "lora", "rank": 64},
    )
    del recipe["train"]["sample_every_steps"]
    failpoints.arm("event-before:1=enospc")
    with pytest.raises(StorageError):
        train(disk.dir / "run", datasets["sft"], recipe)
    recipe["train"]["checkpoint_every_steps"] = 1000
    shutil.rmtree(disk.dir / "run")
    disk.fill(128 * 1024)
    with pytest.raises(NotFinite, match="at step 2") as caught:
        train(disk.dir / "run", datasets["sft"], recipe)
    assert "no failure record could be written (the disk is full)" in caught.value.fix
    assert "first not finite" in caught.value.why
    assert disk.halves() == []
    assert list((disk.dir / "run/scratch").glob("nonfinite-*")) == []
