"""Checkpoints are whole or not there, and a damaged one is passed over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config import OptimizerConfig
from tunesmith.train import checkpoint
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


def test_prune_keeps_the_newest(tmp_path):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, TENSORS, {})
    checkpoint.prune(tmp_path, 2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000010"]


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
