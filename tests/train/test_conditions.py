"""A run that goes on under other conditions (kernels, threads, versions) says so and records it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import forked
import pytest

from tunesmith.config import recipe_from
from tunesmith.errors import StorageError
from tunesmith.store import Artifact, failpoints
from tunesmith.train import checkpoint
from tunesmith.train.fast.kernels import why_not
from tunesmith.train.identity import changes_of
from tunesmith.train.plan import plan_training
from tunesmith.train.session import Session, build

sys.path.insert(0, str(Path(__file__).parent))
from small_base import TRAIN_SCRIPT, train, values


def session_of(base: Path, rows: Artifact) -> Session:
    return build(plan_training(recipe_from(values(base)), rows))


def test_conditions_that_changed_are_named_and_unknown_ones_are_not():
    then = {"threads": 2, "C++ kernels": "on", "torch": "2.13.0"}
    now = {**then, "C++ kernels": "off (no C++ compiler was found)", "processor": "x86_64"}
    assert changes_of(then, now, 7) == [
        "after step 7: C++ kernels: on then, off (no C++ compiler was found) now"
    ]
    assert changes_of({}, now, 7) == []


@pytest.mark.slow
def test_a_resumed_run_keeps_what_changed_in_every_attempt(tmp_path, base, rows):
    one = session_of(base, rows)
    one.conditions = {**one.conditions, "threads": 7}
    one.train_step()
    checkpoint.save(tmp_path, 1, *one.state())
    two = session_of(base, rows)
    two.restore(checkpoint.latest(tmp_path))
    assert two.changes == ["after step 1: threads: 7 then, 1 now"]
    two.train_step()
    checkpoint.save(tmp_path, 2, *two.state())
    three = session_of(base, rows)
    three.restore(checkpoint.latest(tmp_path))
    assert three.changes == two.changes


@pytest.mark.slow
def test_kernels_that_are_gone_when_a_run_goes_on_are_told_and_recorded(tmp_path, base, rows):
    """As when the compiler was removed in between; the run goes on, with torch operations."""
    if why_not():
        pytest.skip(f"no kernels here: {why_not()}")
    recipe = values(base, max_steps=4)
    failpoints.arm("checkpoint-state:3=enospc")
    with pytest.raises(StorageError):
        train(tmp_path / "run", rows, recipe)
    words = (str(tmp_path / "run"), str(rows.dir), json.dumps(recipe))
    done = forked.script(
        TRAIN_SCRIPT, *words, environment={**os.environ, "TUNESMITH_KERNELS": "off"}
    )
    _, said = done.communicate()
    assert done.returncode == 0, said
    change = "after step 2: C++ kernels: on then, off (TUNESMITH_KERNELS is off) now"
    assert "not to the last bit" in " ".join(said.split())
    assert change in said
    facts = Artifact.open(tmp_path / "run").facts
    assert facts["changed_on_resume"] == [change]
    assert facts["conditions"]["C++ kernels"].startswith("off")
    straight = train(tmp_path / "straight", rows, recipe).facts
    assert straight["changed_on_resume"] == []
    assert straight["conditions"]["C++ kernels"] == "on"
    assert facts["validation_loss"] == pytest.approx(straight["validation_loss"], rel=1e-4)
