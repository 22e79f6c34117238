"""Packed attention equals attention over one masked square, and is given back after every step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train import fast
from tunesmith.train.fast.attention import (
    INTERFACE,
    LONGEST_AT_ONCE,
    PackedLayout,
    Scoring,
    attend_packed,
)
from tunesmith.train.fast.step import in_step, packed_hidden, runs_packed
from tunesmith.train.fast.swap import fast_path_of
from tunesmith.train.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def masked_square(query, key, value, batch, scoring):
    """The same by definition: a mask over all pairs of positions, one softmax."""
    size, heads, key_heads = batch.positions, query.shape[1], key.shape[1]
    seen = torch.zeros(size, size, dtype=torch.bool)
    for segment, (start, length) in enumerate(
        zip(batch.segment_starts.tolist(), batch.segment_lengths.tolist(), strict=True)
    ):
        chain = [
            place
            for part in batch.chain(segment)
            for place in range(
                int(batch.segment_starts[part]),
                int(batch.segment_starts[part] + batch.segment_lengths[part]),
            )
        ]
        for place in range(start, start + length):
            visible = chain[: chain.index(place) + 1]
            seen[place, visible[-scoring.window :] if scoring.window else visible] = True
    key, value = (x.repeat_interleave(heads // key_heads, 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scoring.scale
    if scoring.cap is not None:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    scores = scores.masked_fill(~seen, float("-inf"))
    if scoring.sinks is not None:
        column = scoring.sinks.view(1, -1, 1, 1).expand(1, -1, size, 1)
        scores = torch.cat([scores, column], -1)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)[..., :size]
    return (weights @ value).transpose(1, 2)


def check(rows, scoring_of, seed):
    for batch in pack(rows, 192, least_shared_tokens=2):
        check_batch(batch, scoring_of, seed)


def check_batch(batch, scoring_of, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        found = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return found.requires_grad_()

    parts = [draw(1, heads, batch.positions, dim) for heads, dim in ((6, 8), (2, 8), (2, 5))]
    scoring, trained = scoring_of(draw)
    ours = attend_packed(*parts, PackedLayout(batch, torch.device("cpu")), scoring)
    used = torch.from_numpy(batch.segment_ids >= 0)
    expected = masked_square(*parts, batch, scoring)
    assert torch.allclose(ours[:, used], expected[:, used], rtol=0, atol=1e-12)
    assert not ours[:, ~used].any()
    weight = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    weight[:, ~used] = 0.0
    inputs = [*parts, *trained]
    one = torch.autograd.grad((ours * weight).sum(), inputs)
    two = torch.autograd.grad((expected[:, used] * weight[:, used]).sum(), inputs)
    for name, ours_grad, grad in zip("qkvs", one, two, strict=False):
        assert torch.allclose(ours_grad, grad, rtol=0, atol=1e-11), name


starts = st.lists(st.integers(2, 40), min_size=1, max_size=3)
lengths = st.lists(st.tuples(st.integers(0, 5), st.integers(2, 50)), min_size=1, max_size=8)


@given(
    starts=starts,
    lengths=lengths,
    window=st.one_of(st.none(), st.integers(1, 60)),
    cap=st.one_of(st.none(), st.floats(0.5, 3.0)),
    with_sinks=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_any_tree_window_cap_and_sinks_equal_a_masked_square(
    starts, lengths, window, cap, with_sinks, seed
):
    rows = []
    for depth, size in lengths:
        tokens = [
            3 + level for level, count in enumerate(starts[: min(depth, 3)]) for _ in range(count)
        ]
        own = [10 + (len(rows) + place) % 90 for place in range(size)]
        rows.append((tokens + own, [False] * (len(tokens) + size - 1) + [True]))

    def scoring_of(draw):
        sinks = draw(6) if with_sinks else None
        return Scoring(0.4, window, cap, sinks), [] if sinks is None else [sinks]

    check(rows, scoring_of, seed)


@pytest.mark.parametrize("window", [None, 100])
def test_a_row_that_is_cut_into_blocks_equals_a_masked_square(window):
    size = LONGEST_AT_ONCE + 150
    start = [place % 50 + 3 for place in range(30)]
    long = (start + [place % 80 + 3 for place in range(size)], [False] * (size + 29) + [True])
    rows = [long, ([*start, 5, 6, 7], [False] * 32 + [True]), ([8, 9], [False, True])]
    check(rows, lambda draw: (Scoring(0.4, window, 2.0), []), 1)


def test_sinks_of_a_real_family_are_held():
    shape = {"head_dim": 8, "sliding_window": 12, "num_local_experts": 4, "num_experts_per_tok": 2}
    shape["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    model = tiny.adapted(tiny.base_model("GptOss", **shape))
    for layer in model.get_base_model().model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    batch = tiny.one_batch(tiny.some_rows())
    loss, _ = fast.train_microbatch(model, batch, 100.0)
    grads = tiny.adapter_grads(model)
    assert fast.apply(model).fast["packed_attention"] == 2
    assert fast.train_microbatch(model, batch, 100.0)[0] == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, tiny.adapter_grads(model))


def chunked():
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    small = {"head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 40}
    shape = {**tiny.SHAPE, **small, "intermediate_size_mlp": 80}
    return Llama4ForCausalLM._from_config(Llama4TextConfig(**shape))


def windowless():
    """A model whose masks slide and whose attention layers ask for no window."""
    model = tiny.base_model("Phi3", sliding_window=40, resid_pdrop=0.0)
    for layer in model.model.layers:
        layer.self_attn.config = type(model.config)(
            **{**tiny.SHAPE, "sliding_window": None, "attn_implementation": "sdpa"}
        )
    return model


def shifted():
    """A model whose layers also mix each position with the one before it."""
    model = tiny.base_model("Qwen3", head_dim=8)
    for layer in model.model.layers:
        layer.register_forward_hook(
            lambda _, __, out: out + torch.nn.functional.pad(out, (0, 0, 1, 0))[:, :-1]
        )
    return model


REFUSED = {
    "positions mixed outside of attention": (shifted, "which is not rounding"),
    "Mamba: no attention at all": (
        lambda: tiny.base_model("Mamba", state_size=8),
        "layers of type linear_attention",
    ),
    "Bloom: places by distance, own attention": (
        lambda: tiny.base_model("Bloom", n_head=6, n_layer=2),
        "do not ask transformers' attention registry",
    ),
    "attention in chunks": (
        chunked,
        "chunked_attention",
    ),
    "both directions": (
        lambda: tiny.base_model("Gemma2", head_dim=8, use_bidirectional_attention=True),
        "not causal",
    ),
    "dropout of attention weights": (
        lambda: tiny.base_model("Phi", num_key_value_heads=6, attention_dropout=0.1),
        "dropout",
    ),
    "a window that only the mask knows": (windowless, "a window of 40 and asks for None"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_packed_runs_padded_and_the_report_says_why(case):
    make, word = REFUSED[case]
    model = make().train().requires_grad_(True)
    batch = tiny.one_batch(tiny.some_rows())
    torch.manual_seed(3)
    loss, _ = fast.train_microbatch(model, batch, 100.0)
    model.zero_grad()
    report = fast.apply(model)
    assert not report.packed
    (reason,) = [why for name, why in report.plain.items() if name.startswith("packed_attention")]
    assert word in reason
    torch.manual_seed(3)
    assert fast.train_microbatch(model, batch, 100.0)[0] == pytest.approx(loss, rel=1e-6)


def test_the_own_attention_is_back_after_an_error_inside_of_a_step():
    model = tiny.adapted(tiny.base_model("Qwen3", head_dim=8))
    fast.apply(model)
    batch, other = tiny.one_batch(tiny.some_rows()), tiny.one_batch(tiny.some_rows(2, seed=1), 128)
    kind = model.config._attn_implementation

    def interrupted():
        with in_step(model, batch):
            assert model.config._attn_implementation == INTERFACE
            with in_step(model, other) as path:
                assert path.layout.positions == other.positions
            assert path.layout.positions == batch.positions
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    path = fast_path_of(model)
    assert model.config._attn_implementation == kind
    assert not path.active
    assert path.layout is None


def test_a_batch_of_another_size_is_refused_instead_of_mixed_up():
    model = tiny.adapted(tiny.base_model("Qwen3", head_dim=8))
    fast.apply(model)
    batch = tiny.one_batch(tiny.some_rows())
    with in_step(model, batch), pytest.raises(ValueError, match="not those of the packed batch"):
        model(input_ids=torch.arange(3, 9)[None])


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_hidden_states_stand_at_the_same_positions_packed_and_padded(family):
    model = tiny.adapted(tiny.base_model(family))
    rows = [([7] * 20 + ids, [False] * 20 + flags) for ids, flags in tiny.some_rows()]
    batch = tiny.one_batch(rows)
    assert (batch.segment_parents >= 0).any()
    padded = packed_hidden(model, batch)
    assert padded.shape == (batch.positions, 48)
    fast.apply(model)
    packed = packed_hidden(model, batch)
    used = torch.from_numpy(batch.segment_ids >= 0)
    assert torch.allclose(packed[used], padded[used], atol=1e-5)
    assert packed.requires_grad


def test_weights_made_again_in_the_backward_pass_see_the_packed_rows():
    model = tiny.adapted(tiny.base_model("Qwen3", head_dim=8))
    batch = tiny.one_batch(tiny.some_rows())
    loss, _ = fast.train_microbatch(model, batch, 100.0)
    grads = tiny.adapter_grads(model)
    fast.apply(model)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    assert fast.train_microbatch(model, batch, 100.0)[0] == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, tiny.adapter_grads(model))


def test_rotary_tables_that_change_with_the_longest_row_are_packed_up_to_their_limit():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    changes = {"rope_parameters": rope, "max_position_embeddings": 32}
    for longest, packed in ((30, True), (60, False)):
        model = tiny.adapted(tiny.base_model("Llama", **changes))
        batch = tiny.one_batch(tiny.some_rows(longest=longest))
        loss, _ = fast.train_microbatch(model, batch, 100.0)
        grads = tiny.adapter_grads(model)
        assert fast.apply(model).packed
        with in_step(model, batch) as path:
            assert path.packed is packed
        assert runs_packed(model, batch) is packed
        assert fast.train_microbatch(model, batch, 100.0)[0] == pytest.approx(loss, rel=1e-5)
        tiny.assert_same_grads(grads, tiny.adapter_grads(model))


def test_bf16_models_are_packed_and_come_near_the_fp32_loss():
    model = tiny.adapted(tiny.base_model("Gemma2", head_dim=8))
    batch = tiny.one_batch(tiny.some_rows())
    loss, _ = fast.train_microbatch(model, batch, 100.0)
    half = tiny.adapted(tiny.base_model("Gemma2", head_dim=8).to(torch.bfloat16))
    assert fast.apply(half).packed
    assert fast.train_microbatch(half, batch, 100.0)[0] == pytest.approx(loss, rel=2e-2)
