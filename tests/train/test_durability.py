"""A run that is stopped, runs out of disk, or is resumed with something else."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch

from tunesmith import pipeline
from tunesmith.config import recipe_from
from tunesmith.errors import ConfigError, InterruptedRun, StorageError
from tunesmith.store import Artifact, Run, failpoints
from tunesmith.train import checkpoint, run
from tunesmith.train.curve import read_curve
from tunesmith.train.plan import plan_training
from tunesmith.train.session import Session, build
from tunesmith.train.stopping import Stopped, StopSignal

sys.path.insert(0, str(Path(__file__).parent))
from small_base import TRAIN_SCRIPT, sealed_pairs, sealed_sums, train, values, write_sums

CHECKPOINTS = Path("scratch/checkpoints")


def session_of(base: Path, rows: Artifact, **changes) -> Session:
    return build(plan_training(recipe_from(values(base, **changes)), rows))


def adapter(artifact: Artifact) -> bytes:
    return artifact.path("adapter/adapter_model.safetensors").read_bytes()


def steps_kept(place: Path) -> list[int]:
    return [int(p.name[-8:]) for p in sorted((place / CHECKPOINTS).glob("step-*"))]


class StopsAfter(StopSignal):
    """The stop signal, raised by a count of checks instead of by the system."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.left = checks

    def check(self) -> None:
        torch.rand(1)  # As a step with dropout would: the draw must be taken back.
        self.left -= 1
        if self.left < 0:
            self.wanted = "SIGTERM"
        super().check()


def test_a_stop_between_micro_batches_leaves_the_state_after_the_last_whole_step(base, rows):
    big = {"batch_tokens": 1024, "micro_batch_tokens": 64}
    session, straight = session_of(base, rows, **big), session_of(base, rows, **big)
    assert len(session.plan.step_at(1).micro_batches) > 8
    session.train_step()
    straight.train_step()
    before, facts = session.state()
    before = {name: tensor.clone() for name, tensor in before.items()}
    stop = StopsAfter(3)
    with pytest.raises(Stopped):
        session.train_step(stop.check)
    assert stop.left == -1  # it stopped at the first chance
    after, later_facts = session.state()
    assert facts == later_facts
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert session.train_step() == straight.train_step()
    for name, weight in session.parameters.items():
        assert torch.equal(weight, straight.parameters[name])


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"fast": False},
        {"activation_checkpointing": 2},
        {"method": {"kind": "qlora", "rank": 2, "block_size": 32}},
        {"method": {"kind": "full"}},
        {"method": {"kind": "full"}, "optimizer": {"max_grad_norm": None, "in_backward": "on"}},
    ],
    ids=str,
)
def test_a_stop_inside_of_a_micro_batch_leaves_the_state_after_the_last_whole_step(
    base, rows, train
):
    """At every layer, forward and backward, one after the other; then the step is done as if never begun."""
    settings = {"batch_tokens": 256, "micro_batch_tokens": 256, **train}
    session, straight = session_of(base, rows, **settings), session_of(base, rows, **settings)
    session.train_step()
    straight.train_step()
    before = {name: tensor.clone() for name, tensor in session.state()[0].items()}
    stops = 0
    for checks in range(100):
        try:
            session.train_step(StopsAfter(checks).check)
        except Stopped:
            stops += 1
        else:
            break
        after = session.state()[0]
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(p.grad is None or not p.grad.any() for p in session.parameters.values())
    is_in_backward = "optimizer" in train
    assert stops >= (3 if is_in_backward else 4)  # the micro batch, two layers, and their way back
    straight.train_step()
    for name, weight in session.parameters.items():
        assert torch.equal(weight, straight.parameters[name])


@pytest.mark.slow
def test_a_stop_in_a_validation_saves_and_the_validation_is_made_up_for(
    tmp_path, base, rows, monkeypatch
):
    recipe = values(base)
    straight = train(tmp_path / "straight", rows, recipe)
    # Checks: three before the training, one of the validation before the first step, two micro
    # batches and one more a step.
    for checks in (4, 7, 10):
        place = tmp_path / f"stopped-{checks}"
        with monkeypatch.context() as patch:
            patch.setattr("tunesmith.train.stopping.StopSignal", lambda n=checks: StopsAfter(n))
            with pytest.raises(InterruptedRun, match="everything so far is saved"):
                train(place, rows, recipe)
        assert steps_kept(place)
        found = train(place, rows, recipe)
        assert adapter(found) == adapter(straight)
        assert read_curve(found.path("events.jsonl")) == read_curve(straight.path("events.jsonl"))


PREPARED = {
    "objective": {"kind": "dpo"},
    "method": {"kind": "lora", "rank": 2, "layers": 1},
    "trunk_cache": "disk",
    "max_steps": 2,
}
"""Reference log-probabilities and the frozen layers' states are computed before the first step."""


@pytest.mark.slow
@pytest.mark.usefixtures("_survives_sigterm")
@pytest.mark.parametrize("where", ["references-batch:2", "references-written", "trunk-batch:2"])
def test_sigterm_before_the_first_step_stops_there_and_says_that_nothing_was_trained(
    tmp_path, base, where
):
    pairs = sealed_pairs(tmp_path / "pairs")
    failpoints.arm(f"{where}=term")
    with pytest.raises(InterruptedRun, match="nothing was trained yet") as caught:
        train(tmp_path / "run", pairs, values(base, **PREPARED))
    assert "SIGTERM" in caught.value.what
    assert "run the same command again" in caught.value.fix
    assert caught.value.exit_code == 130
    assert steps_kept(tmp_path / "run") == []
    kept = (tmp_path / "run/scratch/references.safetensors").exists()
    assert kept == (where != "references-batch:2")
    assert not (tmp_path / "run/scratch/trunk/states.json").exists()
    assert train(tmp_path / "run", pairs, values(base, **PREPARED)).facts["steps"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("_survives_sigterm")
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("samples-before", "step 2 of 2"),
        ("checkpoint-named", "step 2 is saved"),
        ("seal-end", "is sealed"),
    ],
)
def test_sigterm_at_the_end_stops_and_says_what_is_kept(tmp_path, base, rows, where, said):
    recipe = values(base, max_steps=2, sample_rows=1, sample_every_steps=2)
    recipe["train"]["checkpoint_every_steps"] = 100
    recipe["train"]["validate_every_steps"] = 100
    failpoints.arm(f"{where}=term")
    with pytest.raises(InterruptedRun, match=said):
        train(tmp_path / "run", rows, recipe)
    assert (tmp_path / "run" / "manifest.json").exists() == (where == "seal-end")
    if where != "seal-end":
        assert train(tmp_path / "run", rows, recipe).facts["steps"] == 2


@pytest.mark.slow
def test_a_full_disk_at_a_checkpoint_stops_with_the_one_before_intact(tmp_path, base, rows):
    recipe = values(base, max_steps=5)
    failpoints.arm("checkpoint-state:3=enospc")
    with pytest.raises(StorageError, match="step-00000003") as caught:
        train(tmp_path / "run", rows, recipe)
    assert "the disk is full" in caught.value.why
    assert "free some space" in caught.value.fix
    assert steps_kept(tmp_path / "run") == [1, 2]
    assert train(tmp_path / "run", rows, recipe).facts["steps"] > 3


@pytest.mark.slow
def test_a_real_full_disk_stops_training_and_with_more_room_it_goes_on(tmp_path, base, rows):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = ["-t", "tmpfs", "-o", "size=140k", "tmpfs", str(disk)]
    if subprocess.run(["mount", *size], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    recipe = values(base, keep_checkpoints=5)
    try:
        with pytest.raises(StorageError) as caught:
            train(disk / "run", rows, recipe)
        assert "the disk is full" in caught.value.why
        kept = steps_kept(disk / "run")
        assert kept
        assert checkpoint.at_step(disk / "run" / CHECKPOINTS, kept[-1]) is not None
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        found = train(disk / "run", rows, recipe)
        assert adapter(found) == adapter(train(tmp_path / "straight", rows, recipe))
        del found
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def rising(folder: Path, base: Path, rows: Artifact) -> tuple[dict, Artifact]:
    """Settings, and the run that they make, of so high a rate that the last validation is not the best."""
    for rate in (5.0, 20.0, 2.0, 50.0):
        optimizer = {"learning_rate": rate, "schedule": "constant", "warmup_ratio": 0.0}
        settings = {"optimizer": optimizer, "max_steps": 3, "validate_every_steps": 1}
        made = train(folder / str(rate), rows, values(base, **settings))
        if made.facts["best_step"] < made.facts["steps"]:
            return settings, made
    raise AssertionError("every rate went down to the end")


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_the_best_checkpoint_is_kept_and_sealed_when_asked(tmp_path, base, rows, capsys, damaged):
    settings, last = rising(tmp_path / "last", base, rows)
    facts = last.facts
    assert facts["sealed"] == "last"
    assert facts["sealed_step"] == facts["steps"]
    assert facts["validation_loss"] == facts["last_validation_loss"]
    assert facts["best_step"] < facts["steps"]
    _, validation = read_curve(last.path("events.jsonl"))
    losses = {step: loss for step, loss in validation if step > 0}
    assert facts["best_validation_loss"] == min(losses.values()) == losses[facts["best_step"]]

    place, recipe = tmp_path / "best", values(base, **settings, keep="best")
    failpoints.arm("trained-begin=enospc")  # stops after the last step, before the seal
    with pytest.raises(StorageError):
        train(place, rows, recipe)
    assert facts["best_step"] in steps_kept(place)
    if damaged:
        (place / CHECKPOINTS / f"step-{facts['best_step']:08d}" / "checkpoint.json").unlink()
    best = train(place, rows, recipe)
    if damaged:
        assert "is damaged" in capsys.readouterr().err
        assert best.facts["sealed_step"] != facts["best_step"]
        return
    assert best.facts["sealed"] == "best"
    assert best.facts["sealed_step"] == facts["best_step"]
    assert best.facts["validation_loss"] == min(losses.values())
    assert adapter(best) != adapter(last)
    shorter = session_of(base, rows, **settings)
    for _ in range(facts["best_step"]):
        shorter.train_step()
    from safetensors.torch import load_file

    sealed = load_file(best.path("adapter/adapter_model.safetensors"))
    for name, weight in shorter.parameters.items():
        assert weight.equal(sealed[name.replace(".default", "")])


@pytest.mark.slow
def test_the_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path, base, rows):
    recipe = values(base, max_steps=2)
    failpoints.arm("trained-begin=enospc")
    with pytest.raises(StorageError):
        train(tmp_path / "run", rows, recipe)
    other = values(base, max_steps=2, optimizer={"learning_rate": 0.5})
    with pytest.raises(ConfigError, match="another run") as caught:
        train(tmp_path / "run", rows, other)
    assert "train.optimizer.learning_rate: 0.001 then, 0.5 now" in caught.value.what
    more = sealed_sums(tmp_path / "more", train=40)
    with (
        pytest.raises(ConfigError, match="another run") as caught,
        Run.open(
            tmp_path / "run", "train", inputs={}, parents=[rows.as_parent()], resume=True
        ) as at,
    ):
        run(recipe_from(recipe), at, more)
    assert "rows:" in caught.value.what


@pytest.mark.slow
def test_resume_with_changed_settings_is_refused_with_what_differs(tmp_path, base):
    recipe = {
        **values(base),
        "name": "sums",
        "workspace": str(tmp_path / "runs"),
        "data": {"source": {"kind": "files", "train": [str(write_sums(tmp_path / "rows.jsonl"))]}},
    }
    pipeline.run(recipe_from(recipe), until="data")
    failpoints.arm("checkpoint-state:2=enospc")
    with pytest.raises(StorageError, match="step-00000002"):
        pipeline.run_stage(recipe_from(recipe), "train")
    changed = {**recipe, "train": {**recipe["train"], "epochs": 1}}
    with pytest.raises(ConfigError) as caught:
        pipeline.run_stage(recipe_from(changed), "train", resume=True)
    assert "train.epochs was 2.0, is 1.0" in caught.value.what
    assert "--resume" in caught.value.fix
    done = pipeline.run_stage(recipe_from(recipe), "train", resume=True)
    assert done.artifact.facts["steps"] > 2


@pytest.mark.slow
def test_sigterm_in_a_step_of_many_micro_batches_saves_without_finishing_it(tmp_path, base):
    """One step of hundreds of micro batches: the save must not wait for it."""
    rows = sealed_sums(tmp_path / "data", train=1000)
    recipe = values(base, batch_tokens=65_536, micro_batch_tokens=64)
    words = (str(tmp_path / "run"), str(rows.dir), json.dumps(recipe))
    process = forked.script(TRAIN_SCRIPT, *words)
    log = tmp_path / "run" / "events.jsonl"
    while '"event": "validation"' not in (log.read_text() if log.is_file() else ""):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "after step 0 of" in said
    assert steps_kept(tmp_path / "run") == [0]
    assert '"event": "step"' not in log.read_text()
