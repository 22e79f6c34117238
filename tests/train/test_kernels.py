"""The C++ kernels equal the plain torch operations, on any tree of segments, head shape and type."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train import fast
from tunesmith.train.fast import FastSwitches, gated, head, norm
from tunesmith.train.fast.kernels import find_kernels, why_not, without_kernels
from tunesmith.train.fast.layout import AttentionShape, plan_layout
from tunesmith.train.fast.segments import plan_segments
from tunesmith.train.packing import MicroBatch

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

needs_kernels = pytest.mark.skipif(bool(why_not()), reason=f"no kernels here: {why_not()}")
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 3e-2}


def a_tree(parents: list[int], lengths: list[int], padding: int = 5) -> MicroBatch:
    """A micro batch of which only the segments matter."""
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + lengths[parent])
    places = [depth + np.arange(length) for depth, length in zip(depths, lengths, strict=True)]
    size = sum(lengths) + padding
    flat = np.zeros(size, dtype=np.int64)
    flat[: sum(lengths)] = np.concatenate(places)
    nothing = np.zeros(size, dtype=np.int64)
    return MicroBatch(
        input_ids=nothing,
        labels=nothing,
        position_ids=flat,
        segment_ids=nothing,
        segment_starts=starts,
        segment_lengths=np.asarray(lengths, dtype=np.int64),
        segment_parents=np.asarray(parents, dtype=np.int64),
        row_indices=np.full(len(lengths), -1, dtype=np.int64),
        head_positions=nothing,
        head_labels=nothing,
        row_tokens=0,
        trained_tokens=0,
    )


def tables(length: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.outer(torch.arange(length).float(), 0.7 ** torch.arange(dim // 2).float())
    return angles.cos().to(dtype), angles.sin().to(dtype)


def by_definition(qkv, batch, shape, table):
    """Attention position by position in float64, differentiable."""
    layout = plan_layout(batch)
    heads = qkv[: batch.positions].view(batch.positions, shape.slots, shape.head_dim)
    places = torch.from_numpy(batch.position_ids)
    cos, sin = (part.double()[places][:, None] for part in table)
    half = shape.head_dim // 2
    first, second = heads[..., :half], heads[..., half:]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    q, k = turned[:, : shape.heads], turned[:, shape.heads : shape.heads + shape.key_heads]
    v = heads[:, shape.heads + shape.key_heads :]
    out = [torch.zeros(shape.heads, shape.head_dim, dtype=qkv.dtype)] * batch.positions
    for segment, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        before = [
            np.arange(layout.starts[a], layout.starts[a] + layout.lengths[a])
            for a in layout.ancestors(segment)
        ]
        for position in range(int(start), int(start + length)):
            seen = np.concatenate([*before, np.arange(start, position + 1)])
            keys = k[seen].repeat_interleave(shape.group, 1)
            values = v[seen].repeat_interleave(shape.group, 1)
            weights = (torch.einsum("hd,khd->hk", q[position], keys) * shape.scale).softmax(-1)
            out[position] = torch.einsum("hk,khd->hd", weights, values)
    return torch.stack(out).reshape(batch.positions, -1)


def forward_and_backward(batch, shape, dtype, seed=0):
    torch.manual_seed(seed)
    width = shape.slots * shape.head_dim
    qkv = torch.randn(batch.positions + 1, width).to(dtype)
    qkv[-1] = 0
    dout = torch.randn(batch.positions + 1, shape.heads * shape.head_dim).to(dtype)
    dout[-1] = 0
    table = tables(int(batch.position_ids.max()) + 40, shape.head_dim, dtype)
    plan = plan_segments(batch, shape, table)
    used = qkv.clone()
    out, kept = plan.attend(used)
    again, dqkv = plan.attend_backward(used, dout, kept)
    assert torch.allclose(
        out, again, atol=TOLERANCE[dtype]
    )  # padding too: garbage there would spoil dA
    wide = qkv.double().requires_grad_()
    wanted = by_definition(wide, batch, shape, table)
    wanted.backward(dout[:-1].double())
    return (out, wanted.detach()), (dqkv, wide.grad[:-1])


@st.composite
def trees(draw):
    count = draw(st.integers(1, 6))
    parents = [draw(st.integers(-1, segment - 1)) for segment in range(count)]
    lengths = [draw(st.integers(1, 20)) for _ in range(count)]
    return a_tree(parents, lengths, draw(st.integers(0, 4)))


SHAPES = [(4, 2, 16), (3, 3, 8), (6, 1, 20), (2, 2, 64)]


def close(found, wanted, dtype):
    scale = wanted.abs().max().clamp_min(1e-3)
    assert ((found.double() - wanted).abs().max() / scale) < TOLERANCE[dtype]


@pytest.mark.parametrize("plain", [False, True], ids=["kernels", "torch"])
@given(batch=trees(), shape=st.sampled_from(SHAPES), data=st.data())
def test_attention_on_any_tree_equals_its_definition(plain, batch, shape, data):
    if not plain and why_not():
        pytest.skip(why_not())
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    heads, key_heads, dim = shape
    one = AttentionShape(heads, key_heads, dim, dim**-0.5)
    if plain:
        with without_kernels():
            results = forward_and_backward(batch, one, dtype)
    else:
        results = forward_and_backward(batch, one, dtype)
    for found, wanted in results:
        close(found, wanted, dtype)


@needs_kernels
@pytest.mark.parametrize("lengths", [[300, 70, 600, 33], [33, 64, 65, 256, 257]])
def test_segments_longer_than_a_unit_of_work_equal_the_plain_path(lengths):
    batch = a_tree([-1, 0, 0, 1, 2][: len(lengths)], lengths)
    shape = AttentionShape(6, 2, 32, 32**-0.5)
    torch.manual_seed(0)
    qkv = torch.randn(batch.positions + 1, shape.slots * shape.head_dim)
    dout = torch.randn(batch.positions + 1, shape.heads * shape.head_dim)
    qkv[-1], dout[-1] = 0, 0
    table = tables(2000, 32, torch.float32)
    results = []
    for plain in (False, True):
        used = qkv.clone()
        if plain:
            with without_kernels():
                plan = plan_segments(batch, shape, table)
                out, kept = plan.attend(used)
                _, dqkv = plan.attend_backward(used, dout, kept)
        else:
            plan = plan_segments(batch, shape, table)
            out, kept = plan.attend(used)
            _, dqkv = plan.attend_backward(used, dout, kept)
        results.append((out[: plan.layout.used], dqkv[: plan.layout.used]))
    for found, wanted in zip(*results, strict=True):
        close(found, wanted.double(), torch.float32)


@pytest.mark.slow
@needs_kernels
def test_the_number_of_threads_changes_no_bit():
    batch = a_tree([-1, 0, 0, 1, 1, -1], [24, 90, 40, 33, 70, 128])
    shape = AttentionShape(6, 2, 16, 0.25)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            (out, _), (dqkv, _) = forward_and_backward(batch, shape, torch.float32)
            results.append((out, dqkv))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (7, 48), (33, 576), (5, 37)])
def test_norm_equals_torch_forward_and_backward(dtype, rows, width):
    torch.manual_seed(rows)
    x, dy, residual = (torch.randn(rows, width).to(dtype) for _ in range(3))
    weight = (torch.rand(width) + 0.5).to(dtype)
    wide = x.double().requires_grad_()
    y = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    y.backward(dy.double())
    normed, inverse = norm.rms_forward(x, weight, 1e-5)
    close(normed, y.detach(), dtype)
    dx = norm.rms_backward(dy.clone(), x, inverse, weight, residual)
    close(dx, wide.grad + residual.double(), dtype)


@pytest.mark.parametrize("plain", [False, True], ids=["kernels", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (7, 48), (33, 200), (5, 37)])
def test_gated_unit_equals_torch_forward_and_backward(plain, dtype, rows, width):
    torch.manual_seed(rows)
    gate_up = (torch.randn(rows, 2 * width) * 5).to(dtype)
    dhidden = torch.randn(rows, width).to(dtype)
    wide = gate_up.double().requires_grad_()
    gate, up = wide.chunk(2, -1)
    hidden = torch.nn.functional.silu(gate) * up
    hidden.backward(dhidden.double())

    def run():
        close(gated.gated_forward(gate_up), hidden.detach(), dtype)
        used = gate_up.clone()
        close(gated.gated_backward(dhidden.clone(), used), hidden.detach(), dtype)
        close(used, wide.grad, dtype)

    if plain:
        with without_kernels():
            run()
    else:
        run()


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(bad):
    x = torch.randn(3, 64)
    x[1, 5] = bad
    normed, _ = norm.rms_forward(x, torch.ones(64), 1e-5)
    assert not normed[1].isfinite().all()
    assert normed[0].isfinite().all()
    gate_up = torch.randn(3, 64)
    gate_up[2, 40] = bad
    assert not gated.gated_forward(gate_up)[2].isfinite().all()
    batch = a_tree([-1, -1], [20, 20], 0)
    shape = AttentionShape(2, 1, 16, 0.25)
    qkv = torch.randn(41, shape.slots * 16)
    qkv[30] = bad
    out, _ = plan_segments(batch, shape, tables(40, 16, torch.float32)).attend(qkv)
    assert out[:20].isfinite().all()
    assert not out[30:].isfinite().all()


@pytest.mark.parametrize("plain", [False, True], ids=["kernels", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "vocabulary"), [(3, 50), (200, 211), (40, 1024)])
def test_head_loss_equals_torch_with_shares_of_either_sign(plain, dtype, rows, vocabulary):
    torch.manual_seed(rows)
    hidden = torch.randn(rows + 5, 24).to(dtype)
    weight = torch.randn(vocabulary, 24).to(dtype)
    positions = torch.randperm(rows + 5)[:rows]
    labels = torch.randint(-2, vocabulary, (rows,)).clamp_min(-100)
    labels[labels < 0] = -100
    shares = torch.randn(rows)
    wide = hidden.double().requires_grad_()
    losses = torch.nn.functional.cross_entropy(
        wide[positions] @ weight.double().t(), labels, ignore_index=-100, reduction="none"
    )
    (losses * shares).sum().backward()

    def run():
        used = hidden.clone().requires_grad_()
        head.weighted_head_loss(used, weight, (positions, labels, shares)).backward()
        close(used.grad, wide.grad, dtype)
        logps = head.head_logps(hidden, weight, positions, labels)
        close(logps, -losses.detach(), dtype)

    if plain:
        with without_kernels():
            run()
    else:
        run()


@needs_kernels
def test_exponential_is_exact_to_a_few_units_in_the_last_place():
    gate = torch.linspace(-80, 80, 4096)
    hidden = gated.gated_forward(torch.cat([gate, torch.ones(4096)])[None])[0]
    wanted = torch.nn.functional.silu(gate.double())
    relative = (hidden.double() - wanted).abs() / wanted.abs().clamp_min(1e-30)
    assert relative.max() < 4 * torch.finfo(torch.float32).eps


def test_a_machine_without_compiler_runs_plain_and_says_why(monkeypatch, tmp_path):
    from tunesmith.train.fast import kernels

    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    kernels._load.cache_clear()
    try:
        assert kernels.why_not() == "no C++ compiler was found"
        assert find_kernels(torch.zeros(2)) is None
    finally:
        monkeypatch.undo()
        kernels._load.cache_clear()


def test_a_compiler_that_fails_leaves_nothing_behind_and_says_why(monkeypatch, tmp_path):
    from tunesmith.train.fast import kernels

    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    cache = tmp_path / "cache"
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("TUNESMITH_CACHE", str(cache))
    kernels._load.cache_clear()
    try:
        assert "did not compile" in kernels.why_not()
        assert not list((cache / "kernels").glob("*/*.so"))
    finally:
        monkeypatch.undo()
        kernels._load.cache_clear()


@needs_kernels
def test_the_number_of_threads_is_no_name_that_other_libraries_see():
    from tunesmith.train.fast import kernels

    library = kernels._load()
    assert hasattr(library, "set_threads")
    assert not hasattr(library, "threads")


@needs_kernels
def test_a_cache_folder_that_lost_its_library_is_filled_again(monkeypatch, tmp_path):
    """Something tidied the cache. The library is a small one, so that it compiles at once."""
    from tunesmith.train.fast import kernels

    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(kernels, "SOURCES", (source,))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    try:
        for _ in range(2):
            kernels._load.cache_clear()
            assert kernels.why_not() == ""
            assert kernels._load().answer() == 42
            (library,) = (tmp_path / "cache/kernels").glob("*/*.so")
            library.unlink()
    finally:
        monkeypatch.undo()
        kernels._load.cache_clear()


def test_a_layout_lists_ancestors_root_first():
    layout = plan_layout(a_tree([-1, 0, 1, 0], [3, 4, 5, 6]))
    assert [layout.ancestors(segment) for segment in range(4)] == [(), (0,), (0, 1), (0,)]


@needs_kernels
def test_the_switch_turns_the_kernels_off_for_the_step_alone():
    model = tiny.adapted(tiny.base_model("Llama"))
    seen: list[bool] = []
    layer = model.get_base_model().model.norm
    layer.register_forward_hook(lambda *_: seen.append(find_kernels(torch.zeros(1)) is not None))
    losses = []
    for wanted in (True, False):
        report = fast.apply(model, FastSwitches(kernels=wanted))
        assert report.lines()[-1] == ("kernels: on" if wanted else "kernels: off, switched off")
        seen.clear()
        losses.append(fast.evaluate_microbatch(model, tiny.one_batch(tiny.some_rows()))[0])
        assert seen == [wanted]
        assert find_kernels(torch.zeros(1)) is not None
        fast.remove(model)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
