"""Loss curves that were kept: the same run gives them again, and so do settings that change nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from curves import GOLDEN, curve, read, session_for, split, versions

from tunesmith.pipeline.stages import FORMATS

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

OTHER_MACHINE = 5e-3
"""Largest relative difference on other versions or another CPU, whose sums are in another order."""
ROUNDING = 1e-3
"""The same, between settings that only change the order of sums."""

SMALL = [name for name, (base, _) in GOLDEN.items() if base == "tiny"]


def assert_near(found: list[list[float]], golden: list[list[float]], tolerance: float) -> None:
    assert len(found) == len(golden)
    for step, (one, two) in enumerate(zip(found, golden, strict=True)):
        assert one == pytest.approx(two, rel=tolerance), f"step {step + 1}"


def assert_golden(name: str, found: list[list[float]]) -> None:
    golden = read(name)
    if golden["versions"] == versions():
        assert found == golden["curve"]
    assert_near(found, golden["curve"], OTHER_MACHINE)


def test_every_golden_run_is_recorded_with_its_command_reason_and_settings():
    for name, (_, settings) in GOLDEN.items():
        golden = read(name)
        assert golden["train"] == settings
        assert golden["command"].startswith("python tests/golden/record.py")
        assert golden["why"]
        # A curve that changed makes runs from before stale: the number is part of their key.
        assert golden["format"] == FORMATS["train"]


@pytest.mark.parametrize("name", SMALL)
def test_the_plain_path_gives_the_kept_curve(tmp_path, name):
    found = curve(session_for(name, tmp_path))
    assert found[-1][0] < found[0][0]  # it learned
    assert_golden(name, found)


def test_the_fast_path_gives_the_kept_curve_within_rounding(tmp_path):
    found = curve(session_for("tiny-lora", tmp_path, fast=True))
    assert_near(found, read("tiny-lora")["curve"], ROUNDING)


@pytest.mark.parametrize("tokens", [64, 128, 1024])
def test_another_split_into_micro_batches_gives_the_kept_curve_within_rounding(tmp_path, tokens):
    session = split(session_for("tiny-lora", tmp_path), tokens)
    batches = session.plan.step_at(0).micro_batches
    assert len(batches) != len(session_for("tiny-lora", tmp_path).plan.step_at(0).micro_batches)
    assert_near(curve(session), read("tiny-lora")["curve"], ROUNDING)


def test_one_seed_gives_equal_weights_to_the_bit_and_another_does_not(tmp_path):
    import torch

    runs = []
    for seed in (0, 0, 1):
        session = session_for("tiny-lora", tmp_path, seed=seed, max_steps=4)
        curve(session)
        runs.append({name: weight.detach().clone() for name, weight in session.parameters.items()})
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


@pytest.mark.slow
@pytest.mark.usefixtures("embedded_base")
def test_the_embedded_model_gives_the_kept_curve(tmp_path):
    assert_golden("smollm2-lora", curve(session_for("smollm2-lora", tmp_path)))
