"""The fast step equals the plain one: loss and every adapter gradient."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch

from tunesmith.train import fast
from tunesmith.train.fast import FastSwitches
from tunesmith.train.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

FAMILIES = ["Llama", "Mistral", "Qwen2"]


def plain_step(model, batch, normaliser=100.0):
    loss, tokens = fast.train_microbatch(model, batch, normaliser)
    return loss, tokens, tiny.adapter_grads(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "switches",
    [FastSwitches(*values) for values in itertools.product([False, True], repeat=4) if any(values)],
    ids=str,
)
def test_each_part_alone_and_together_equals_the_plain_path(family, switches):
    model = tiny.adapted(tiny.base_model(family))
    batch = tiny.one_batch(tiny.some_rows())
    loss, tokens, grads = plain_step(model, batch)
    report = fast.apply(model, switches)
    assert not report.plain
    fast_loss, fast_tokens, fast_grads = plain_step(model, batch)
    assert fast_tokens == tokens == batch.trained_tokens
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads)


def test_every_switch_takes_effect_on_a_llama():
    model = tiny.adapted(tiny.base_model("Llama"))
    report = fast.apply(model)
    assert report.fast == {"attention_block": 2, "mlp_block": 2, "head_loss": 1}
    fast.remove(model)
    report = fast.apply(model, FastSwitches(attention_block=False, mlp_block=False))
    assert report.fast == {"packed_attention": 2, "lora_linear": 14, "head_loss": 1}
    fast.remove(model)
    report = fast.apply(model, FastSwitches(attention_block=False, packed_attention=False))
    assert report.fast == {"mlp_block": 2, "lora_linear": 8, "head_loss": 1}
    assert not report.packed


@pytest.mark.parametrize(
    "changes", [{"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}]
)
def test_adapter_settings_that_only_scale_or_leave_layers_out_are_held(changes):
    model = tiny.adapted(tiny.base_model("Llama"), **changes)
    batch = tiny.one_batch(tiny.some_rows())
    loss, _, grads = plain_step(model, batch)
    report = fast.apply(model)
    assert not report.plain
    fast_loss, _, fast_grads = plain_step(model, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads)


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"use_dora": True}, "DoRA"), ({"lora_dropout": 0.1}, "dropout")],
)
def test_a_variant_of_lora_runs_plain_and_the_report_says_why(changes, word):
    model = tiny.adapted(tiny.base_model("Llama"), **changes)
    batch = tiny.one_batch(tiny.some_rows())
    torch.manual_seed(7)
    loss, _, grads = plain_step(model, batch)
    # Packed rows would draw other dropout masks than padded ones.
    report = fast.apply(model, FastSwitches(packed_attention=False))
    assert report.fast == {"head_loss": 1}
    assert all(word in reason for reason in report.plain.values())
    torch.manual_seed(7)
    fast_loss, _, fast_grads = plain_step(model, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2", "Phi"])
def test_other_families_get_the_linear_layers_and_equal_the_plain_path(family):
    changes = {"head_dim": 8} if family in ("Qwen3", "Gemma2") else {}
    if family == "Phi":
        changes = {"num_key_value_heads": 6, "attention_dropout": 0.0, "resid_pdrop": 0.0}
    model = tiny.adapted(tiny.base_model(family, **changes))
    batch = tiny.one_batch(tiny.some_rows())
    loss, _, grads = plain_step(model, batch)
    report = fast.apply(model)
    assert report.fast["lora_linear"] >= 2 * 4
    fast_loss, _, fast_grads = plain_step(model, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads)


def test_a_factor_on_logits_keeps_the_plain_loss():
    model = tiny.adapted(tiny.base_model("Granite", logits_scaling=4.0))
    batch = tiny.one_batch(tiny.some_rows())
    loss, _, grads = plain_step(model, batch)
    report = fast.apply(model)
    assert "logits_scaling" in report.plain["head_loss: GraniteForCausalLM"]
    assert report.packed
    fast_loss, _, fast_grads = plain_step(model, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_give_the_plain_loss(tied):
    model = tiny.adapted(tiny.base_model("Llama", tie_word_embeddings=tied))
    batch = tiny.one_batch(tiny.some_rows())
    loss, _, grads = plain_step(model, batch)
    fast.apply(model)
    fast_loss, _, fast_grads = plain_step(model, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads)


def test_a_packed_batch_equals_its_rows_one_by_one():
    model = tiny.adapted(tiny.base_model("Qwen2"))
    fast.apply(model)
    rows = tiny.some_rows()
    loss, _, grads = plain_step(model, tiny.one_batch(rows))
    total = 0.0
    for row in rows:
        total += fast.train_microbatch(model, tiny.one_batch([row], 64), 100.0)[0]
    assert total == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, tiny.adapter_grads(model))


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
@pytest.mark.parametrize("prefix", [3, 16, 37])
def test_a_prefix_that_rows_share_is_computed_once_with_the_same_gradients(family, prefix):
    model = tiny.adapted(tiny.base_model(family))
    start = list(range(3, 3 + prefix + 1))
    rows = [(start + ids, [False] * len(start) + flags) for ids, flags in tiny.some_rows()]
    whole = list(pack(rows, 1024, least_shared_tokens=0))
    shared = list(pack(rows, 1024, prefix_tokens=prefix))
    assert (len(whole), len(shared)) == (1, 1)
    assert (shared[0].segment_ids >= 0).sum() < (whole[0].segment_ids >= 0).sum()
    loss, _, grads = plain_step(model, whole[0])
    assert plain_step(model, shared[0])[0] == pytest.approx(loss, rel=1e-6)
    fast.apply(model)
    fast_loss, _, fast_grads = plain_step(model, shared[0])
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads)


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_a_tree_of_shared_segments_has_the_gradients_of_whole_rows(family):
    model = tiny.adapted(tiny.base_model(family))
    starts = [[5] * 6, [5] * 6 + [6] * 30, [5] * 6 + [6] * 30 + [9] * 20, [5] * 6 + [7] * 25]
    rows = [
        (starts[place % 4] + [99] + ids, [False] * (len(starts[place % 4]) + 1) + flags)
        for place, (ids, flags) in enumerate(tiny.some_rows(16))
    ]
    (whole,) = pack(rows, 2048, least_shared_tokens=0)
    (shared,) = pack(rows, 2048, prefix_tokens=6)
    assert len(shared.chain(int(shared.leaves[-1]))) >= 2
    assert max(len(shared.chain(leaf)) for leaf in shared.leaves.tolist()) == 4
    loss, _, grads = plain_step(model, whole)
    assert plain_step(model, shared)[0] == pytest.approx(loss, rel=1e-6)
    fast.apply(model)
    fast_loss, _, fast_grads = plain_step(model, shared)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads)


def test_a_shared_prefix_before_a_long_row_equals_the_plain_path():
    model = tiny.adapted(tiny.base_model("Llama"))
    rows = [([5] * 21 + ids, [False] * 21 + flags) for ids, flags in tiny.some_rows(4)]
    rows.append(([5] * 21 + [9, 7, 8] * 200, [False] * 21 + [False, True, True] * 200))
    (batch,) = pack(rows, 1024, prefix_tokens=20)
    loss, _, grads = plain_step(model, batch)
    fast.apply(model)
    fast_loss, _, fast_grads = plain_step(model, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads, 5e-5)


@pytest.mark.parametrize("micro_batch_tokens", [64, 96, 128, 1024])
def test_any_split_into_micro_batches_gives_the_same_gradients(micro_batch_tokens):
    model = tiny.adapted(tiny.base_model("Llama"))
    fast.apply(model)
    rows = tiny.some_rows(20)
    loss, _, grads = plain_step(model, tiny.one_batch(rows, 2048))
    results = [
        fast.train_microbatch(model, batch, 100.0) for batch in pack(rows, micro_batch_tokens)
    ]
    assert sum(loss for loss, _ in results) == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, tiny.adapter_grads(model))


def test_long_segments_take_the_streaming_kernel_and_equal_the_plain_path():
    model = tiny.adapted(tiny.base_model("Llama"))
    rows = [*tiny.some_rows(3), ([5, 9, 7] * 200, [False, True, True] * 200)]
    batch = tiny.one_batch(rows, 1024)
    loss, _, grads = plain_step(model, batch)
    fast.apply(model)
    fast_loss, _, fast_grads = plain_step(model, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads, 5e-5)


def test_rows_beyond_a_sliding_window_use_the_models_own_attention():
    model = tiny.adapted(tiny.base_model("Mistral", sliding_window=16))
    batch = tiny.one_batch(tiny.some_rows())
    loss, _, grads = plain_step(model, batch)
    fast.apply(model)
    fast_loss, _, fast_grads = plain_step(model, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads)


def test_two_runs_give_the_same_bits():
    results = []
    for _ in range(2):
        model = tiny.adapted(tiny.base_model("Llama"))
        fast.apply(model)
        results.append(plain_step(model, tiny.one_batch(tiny.some_rows())))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][2][name], results[1][2][name]) for name in results[0][2])


def test_bf16_weights_keep_fp32_adapters_and_come_near_the_fp32_gradients():
    model = tiny.adapted(tiny.base_model("Llama"))
    batch = tiny.one_batch(tiny.some_rows())
    loss, _, grads = plain_step(model, batch)
    half = tiny.adapted(tiny.base_model("Llama").to(torch.bfloat16))
    fast.apply(half)
    half_loss, _, half_grads = plain_step(half, batch)
    assert half_loss == pytest.approx(loss, rel=2e-2)
    for name, grad in half_grads.items():
        assert grad.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(grad.flatten(), grads[name].flatten(), 0)
        assert cosine > 0.99, name


def test_a_loss_without_gradients_is_the_same_loss():
    model = tiny.adapted(tiny.base_model("Llama"))
    batch = tiny.one_batch(tiny.some_rows())
    fast.apply(model)
    loss, tokens, _ = plain_step(model, batch)
    assert fast.evaluate_microbatch(model, batch) == (pytest.approx(loss, rel=1e-6), tokens)


def test_a_batch_without_labels_has_loss_zero_and_gradients_zero():
    model = tiny.adapted(tiny.base_model("Llama"))
    fast.apply(model)
    batch = tiny.one_batch([([4, 5, 6], [False] * 3)], 32)
    assert fast.train_microbatch(model, batch, 1.0) == (0.0, 0)
    assert all(not grad.any() for grad in tiny.adapter_grads(model).values())


def test_a_normaliser_that_is_not_positive_is_refused():
    model = tiny.adapted(tiny.base_model("Llama"))
    with pytest.raises(ValueError, match="normaliser=0"):
        fast.train_microbatch(model, tiny.one_batch(tiny.some_rows()), 0.0)
