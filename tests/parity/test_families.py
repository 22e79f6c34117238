"""Loss and gradients of the step equal Hugging Face's, row by row, for families of random shapes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tunesmith.train import fast
from tunesmith.train.fast import FastSwitches
from tunesmith.train.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
import families

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

NAMES = list(families.FAMILIES)
PACKED_NAMES = [n for n, f in families.FAMILIES.items() if "packed_attention" in f.parts]
ROOT = Path(__file__).parents[2]


def assert_equal(model, rows, batches, tolerance=3e-5):
    loss, grads = families.row_by_row(model, rows, 50.0)
    report = fast.apply(model)
    total = sum(fast.train_microbatch(model, batch, 50.0)[0] for batch in batches)
    assert total == pytest.approx(loss, rel=1e-5)
    families.assert_same_grads(grads, families.take_grads(model), tolerance)
    return report


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
@pytest.mark.parametrize("name", NAMES)
def test_adapters_get_the_loss_and_gradients_of_the_rows_one_by_one(name, seed):
    model = families.adapted(families.random_model(name, seed), seed)
    rows = families.random_rows(seed)
    report = assert_equal(model, rows, list(pack(rows, 512)))
    assert sorted(report.fast) == sorted(families.FAMILIES[name].parts)
    assert not [line for line in report.plain if not line.startswith("attention_block")]
    assert report.packed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 20))
@pytest.mark.parametrize("name", NAMES)
def test_many_shapes_and_any_split_into_micro_batches_are_equal(name, seed):
    model = families.adapted(families.random_model(name, seed), seed)
    rows = families.random_rows(seed, count=14, start=seed % 3 * 12)
    report = assert_equal(model, rows, list(pack(rows, (64, 128, 1024)[seed % 3])))
    assert report.packed


@pytest.mark.parametrize("name", NAMES)
def test_full_tuning_gets_the_loss_and_gradients_of_the_rows_one_by_one(name):
    model = families.random_model(name, 5).train().requires_grad_(True)
    rows = families.random_rows(5)
    loss, grads = families.row_by_row(model, rows, 50.0)
    (batch,) = pack(rows, 512)
    plain, _ = fast.train_microbatch(model, batch, 50.0)
    assert plain == pytest.approx(loss, rel=1e-5)
    families.assert_same_grads(grads, families.take_grads(model))
    report = fast.apply(model)
    assert list(report.fast) == ["packed_attention"]
    packed, _ = fast.train_microbatch(model, batch, 50.0)
    assert packed == pytest.approx(loss, rel=1e-5)
    families.assert_same_grads(grads, families.take_grads(model))


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_share_their_start_and_other_parts_switched_off_are_equal(name):
    model = families.adapted(families.random_model(name, 6))
    rows = families.random_rows(6, start=21)
    loss, grads = families.row_by_row(model, rows, 50.0)
    (batch,) = pack(rows, 512)
    assert (batch.segment_parents >= 0).any()
    off = {"attention_block": False, "mlp_block": False, "head_loss": False}
    report = fast.apply(model, FastSwitches(**off))
    assert sorted(report.fast) == ["lora_linear", "packed_attention"]
    total, _ = fast.train_microbatch(model, batch, 50.0)
    assert total == pytest.approx(loss, rel=1e-5)
    families.assert_same_grads(grads, families.take_grads(model))


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("Mistral", "Gemma 2") else pytest.param(n, marks=pytest.mark.slow)
        for n in PACKED_NAMES
    ],
)
def test_rows_too_long_to_be_done_at_once_are_equal(name):
    model = families.adapted(families.random_model(name, 7))
    rows = [*families.random_rows(7, count=4), *families.random_rows(8, count=1, longest=40)]
    start = [place % 97 + 3 for place in range(600)]
    rows += [(start + ids, [False] * 600 + flags) for ids, flags in families.random_rows(9, 2)]
    (batch,) = pack(rows, 1024)
    assert batch.segment_lengths.max() > 512
    assert_equal(model, rows, [batch], tolerance=6e-5)


@pytest.mark.parametrize("name", NAMES)
def test_outside_of_a_step_a_packed_model_runs_its_own_attention(name):
    model = families.adapted(families.random_model(name, 8)).eval()
    ids = torch.arange(3, 60)[None]
    before = model(input_ids=ids).logits
    written = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    kind = model.config._attn_implementation
    fast.apply(model)
    (batch,) = pack(families.random_rows(8), 512)
    fast.train_microbatch(model, batch, 1.0)
    assert model.config._attn_implementation == kind
    assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=4, do_sample=False), written)


def table() -> list[str]:
    """Which family gets which parts, as the documentation shows it."""
    parts = ["attention_block", "packed_attention", "mlp_block", "lora_linear", "head_loss"]
    lines = [f"| family | {' | '.join(f'`{part}`' for part in parts)} |", "|---" * 6 + "|"]
    for name, family in families.FAMILIES.items():
        cells = ["yes" if part in family.parts else "" for part in parts]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def test_the_documentation_has_the_table_of_families():
    text = (ROOT / "docs" / "train" / "how-it-works.md").read_text(encoding="utf-8")
    assert "\n".join(table()) in text, "paste this:\n" + "\n".join(table())
