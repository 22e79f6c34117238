"""The preference loss and its gradients, against a plain padded implementation."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tunesmith.config import DpoObjective
from tunesmith.train import fast
from tunesmith.train.dpo import Dpo, dpo_loss
from tunesmith.train.fast import FastSwitches
from tunesmith.train.fast.preference import row_logps
from tunesmith.train.objectives import total
from tunesmith.train.packing import MicroBatch, Row, pack, plan_epoch, refer

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

BETA = 0.3


def pair_rows(count: int = 5) -> tuple[list[Row], list[tuple[int, int]]]:
    """Two answers to each prompt; all prompts begin with the same 20 tokens."""
    random = np.random.default_rng(4)
    rows: list[Row] = []
    for _ in range(count):
        prompt = [7] * 20 + random.integers(3, 200, size=int(random.integers(1, 40))).tolist()
        for size in random.integers(1, 30, size=2).tolist():
            answer = random.integers(3, 200, size=size).tolist()
            rows.append((prompt + answer, [False] * len(prompt) + [True] * size))
    return rows, [(2 * pair, 2 * pair + 1) for pair in range(count)]


def plain_logps(model, rows: list[Row]) -> torch.Tensor:
    """Written down once more: each row alone, all logits, in float64 after the head."""
    sums = []
    for tokens, trained in rows:
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, :-1].double()
        picked = logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        sums.append((picked * torch.tensor(trained[1:])).sum())
    return torch.stack(sums)


def start_logps(model, rows: list[Row]) -> np.ndarray:
    with torch.no_grad(), model.disable_adapter():
        return plain_logps(model, rows).numpy()


def plain_loss(model, rows: list[Row], smoothing: float = 0.0) -> torch.Tensor:
    gains = plain_logps(model, rows) - torch.from_numpy(start_logps(model, rows))
    margin = BETA * (gains[::2] - gains[1::2])
    right, wrong = torch.sigmoid(margin).log(), torch.sigmoid(-margin).log()
    return -((1 - smoothing) * right + smoothing * wrong).mean()


def objective(smoothing: float = 0.0) -> Dpo:
    return Dpo(DpoObjective(kind="dpo", beta=BETA, label_smoothing=smoothing))


def batches(rows, groups, references, size=1024, **sharing) -> list[MicroBatch]:
    found = pack(rows, size, groups=groups, **sharing)
    return [refer(batch, references) for batch in found]


def step(model, found: list[MicroBatch], smoothing: float = 0.0):
    one = objective(smoothing)
    normaliser = sum(one.count(batch) for batch in found)
    measured = total(one(model, batch, normaliser) for batch in found)
    return measured, tiny.adapter_grads(model)


SWITCHES = [
    None,
    FastSwitches(),
    FastSwitches(head_loss=False),
    FastSwitches(attention_block=False),
]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("switches", SWITCHES, ids=["plain", "fast", "no head", "no attention"])
def test_loss_and_gradients_equal_a_plain_padded_implementation(switches, smoothing):
    model = tiny.adapted(tiny.base_model("Llama"))
    rows, groups = pair_rows()
    references = start_logps(model, rows)
    expected = plain_loss(model, rows, smoothing)
    expected.backward()
    grads = tiny.adapter_grads(model)
    if switches is not None:
        fast.apply(model, switches)
    (batch,) = batches(rows, groups, references)
    measured, ours = step(model, [batch], smoothing)
    assert measured.loss / measured.counted == pytest.approx(float(expected.detach()), rel=1e-5)
    tiny.assert_same_grads(grads, ours, 5e-5)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_any_split_of_a_step_gives_the_same_gradients_and_never_splits_a_pair(size):
    model = tiny.adapted(tiny.base_model("Qwen2"))
    fast.apply(model)
    rows, groups = pair_rows(8)
    references = start_logps_of_fast(model, rows, groups)
    (whole,) = batches(rows, groups, references, 2048)
    measured, grads = step(model, [whole])
    steps = plan_epoch(
        rows, batch_tokens=8192, micro_batch_tokens=size, seed=1, epoch=0, groups=groups
    )
    (one,) = [found.referring_to(references) for found in steps]
    assert len(one.micro_batches) > 1
    split, ours = step(model, list(one.micro_batches))
    assert split.counted == measured.counted == 8
    assert split.loss == pytest.approx(measured.loss, rel=1e-5)
    tiny.assert_same_grads(grads, ours, 5e-5)


def start_logps_of_fast(model, rows, groups) -> np.ndarray:
    """Any numbers do as references where two ways of computing are compared."""
    (batch,) = pack(rows, 2048, groups=groups)
    found = np.zeros(len(rows))
    found[batch.members] = row_logps(model, batch).numpy() + np.arange(len(rows)) % 3
    return found


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_the_tree_changes_nothing_but_the_work(family):
    model = tiny.adapted(tiny.base_model(family))
    fast.apply(model)
    rows, groups = pair_rows()
    references = start_logps_of_fast(model, rows, groups)
    (tree,) = batches(rows, groups, references, prefix_tokens=19)
    (flat,) = batches(rows, groups, references, least_shared_tokens=0)
    assert (tree.segment_ids >= 0).sum() < 0.7 * (flat.segment_ids >= 0).sum()
    one, grads = step(model, [tree])
    two, ours = step(model, [flat])
    assert one.loss == pytest.approx(two.loss, rel=1e-5)
    for name, value in one.sums.items():
        assert value == pytest.approx(two.sums[name], rel=1e-5, abs=1e-4)
    tiny.assert_same_grads(grads, ours, 5e-5)


def test_a_fresh_adapter_has_the_log_probabilities_of_the_base_model():
    from peft import LoraConfig, get_peft_model

    base = tiny.base_model("Llama")
    rows, groups = pair_rows()
    with torch.no_grad():
        expected = plain_logps(base, rows)
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    fast.apply(model)
    (batch,) = pack(rows, 1024, groups=groups)
    found = torch.zeros(len(rows), dtype=torch.float64)
    found[torch.from_numpy(batch.members)] = row_logps(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_figures_and_validation_are_those_of_the_formula():
    model = tiny.adapted(tiny.base_model("Llama"))
    rows, groups = pair_rows()
    references = start_logps(model, rows)
    with torch.no_grad():
        logps = plain_logps(model, rows)
        expected = plain_loss(model, rows)
    gains = (logps - torch.from_numpy(references)).view(-1, 2)
    fast.apply(model)
    (batch,) = batches(rows, groups, references)
    found = objective().evaluate(model, batch)
    assert found.loss / found.counted == pytest.approx(float(expected.detach()), rel=1e-5)
    means = found.means()
    margins = BETA * (gains[:, 0] - gains[:, 1])
    assert means["reward_margin_nats"] == pytest.approx(float(margins.mean()), abs=1e-4)
    assert means["pair_accuracy_ratio"] == float((margins > 0).double().mean())
    assert means["chosen_logp_nats"] == pytest.approx(float(logps[::2].mean()), rel=1e-5)
    assert means["rejected_logp_nats"] == pytest.approx(float(logps[1::2].mean()), rel=1e-5)
    trained = objective()(model, batch, 5.0)
    assert trained.loss == pytest.approx(found.loss, rel=1e-5)
    assert trained.means() == pytest.approx(means, rel=1e-4, abs=1e-4)


def test_at_the_start_a_pair_costs_the_logarithm_of_two_whatever_the_smoothing():
    logps = torch.tensor([[-3.0, -4.0]], dtype=torch.float64)
    for smoothing in (0.0, 0.3):
        assert dpo_loss(logps, logps, 0.1, smoothing).tolist() == [pytest.approx(np.log(2))]
    better = logps + torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    assert dpo_loss(better, logps, 0.1).item() == pytest.approx(-np.log(1 / (1 + np.exp(-0.2))))
    with pytest.raises(ValueError, match="beta=0"):
        dpo_loss(logps, logps, 0.0)


def test_a_split_pair_or_a_batch_without_references_is_refused():
    model = tiny.adapted(tiny.base_model("Llama"))
    rows, groups = pair_rows(2)
    (batch,) = pack(rows, 1024, groups=groups)
    with pytest.raises(ValueError, match="prepare"):
        objective()(model, batch, 2.0)
    (half,) = pack(rows[:3], 1024)
    with pytest.raises(ValueError, match="no whole pairs"):
        objective()(model, replace(half, references=np.zeros(3)), 1.0)
