"""Edges of the C++ attention kernels: blocks of queries and keys, shared segments, wide and narrow heads."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train.fast import kernels
from tunesmith.train.fast.kernels import why_not
from tunesmith.train.fast.layout import QUERIES_A_UNIT, AttentionShape, plan_layout
from tunesmith.train.fast.segments import plan_segments

sys.path.insert(0, str(Path(__file__).parent))
from test_kernels import TOLERANCE, a_tree, close, forward_and_backward, tables

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no kernels here: {why_not()}")


def by_mask(qkv, batch, shape, table):
    """Attention as one product of all positions under a mask, in float64, differentiable."""
    layout, dim = plan_layout(batch), shape.head_dim
    seen = torch.zeros(batch.positions, batch.positions, dtype=torch.bool)
    for segment, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        own = slice(int(start), int(start + length))
        seen[own, own] = torch.ones(int(length), int(length)).tril().bool()
        for a in layout.ancestors(segment):
            seen[own, int(layout.starts[a]) : int(layout.starts[a] + layout.lengths[a])] = True
    heads = qkv[: batch.positions].view(batch.positions, shape.slots, dim)
    cos, sin = (part.double()[torch.from_numpy(batch.position_ids)][:, None] for part in table)
    first, second = heads[..., : dim // 2], heads[..., dim // 2 :]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    q, k, v = (
        part.transpose(0, 1)
        for part in (
            turned[:, : shape.heads],
            turned[:, shape.heads : -shape.key_heads],
            heads[:, -shape.key_heads :],
        )
    )
    k, v = (part.repeat_interleave(shape.group, 0) for part in (k, v))
    scores = (q @ k.transpose(1, 2) * shape.scale).masked_fill(~seen, float("-inf"))
    weights = scores.softmax(-1).nan_to_num()
    return (weights @ v).transpose(0, 1).reshape(batch.positions, -1)


def run(batch, shape, dtype, qkv, dout):
    table = tables(int(batch.position_ids.max()) + 40, shape.head_dim, dtype)
    plan = plan_segments(batch, shape, table)
    assert plan.kernels is not None
    used = qkv.to(dtype, copy=True)
    out, kept = plan.attend(used)
    again, dqkv = plan.attend_backward(used, dout.to(dtype), kept)
    return out, again, dqkv, table


def rows_of(batch, width, seed=0):
    rows = torch.randn(batch.positions + 1, width, generator=torch.Generator().manual_seed(seed))
    rows[-1] = 0
    return rows


def equals_its_definition(batch, shape, dtype=torch.float32):
    qkv = rows_of(batch, shape.slots * shape.head_dim).to(dtype)
    dout = rows_of(batch, shape.heads * shape.head_dim, 1).to(dtype)
    out, again, dqkv, table = run(batch, shape, dtype, qkv, dout)
    wide = qkv.double().requires_grad_()
    wanted = by_mask(wide, batch, shape, table)
    wanted.backward(dout[:-1].double())
    close(out, wanted.detach(), dtype)
    assert torch.allclose(out, again, atol=TOLERANCE[dtype])
    close(dqkv, wide.grad[:-1], dtype)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("dim", [8, 12, 16, 24, 64, 80, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 8])
def test_any_width_of_heads_and_any_group_equals_the_definition(dtype, dim, group):
    shape = AttentionShape(2 * group, 2, dim, dim**-0.5)
    equals_its_definition(a_tree([-1, 0, 0, 1], [37, 6, 21, 1], 2), shape, dtype)


@pytest.mark.parametrize("length", [1, 5, 6, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 257])
@pytest.mark.parametrize("group", [1, 3])
def test_segments_at_the_edges_of_blocks_equal_the_definition(length, group):
    shape = AttentionShape(group, 1, 64, 0.125)
    equals_its_definition(a_tree([-1, 0, -1], [length, 3, length], 0), shape)


def test_a_chain_of_many_ancestors_equals_the_definition():
    lengths = [130, 1, 40, 129, 6, 77, 2]
    equals_its_definition(a_tree([-1, 0, 1, 2, 3, 3, 4], lengths), AttentionShape(4, 2, 32, 0.2))


@DTYPES
def test_many_leaves_of_one_long_segment_equal_the_definition(dtype):
    batch = a_tree([-1] + [0] * 9, [260, 1, 2, 30, 31, 7, 64, 22, 21, 43])
    equals_its_definition(batch, AttentionShape(9, 3, 64, 0.125), dtype)


@DTYPES
def test_shared_segments_in_several_units_are_the_same_with_any_number_of_threads(dtype):
    batch = a_tree([-1, 0, 0, 1, 1, -1, 0], [300, 90, 40, 33, 270, 128, 5])
    shape = AttentionShape(6, 2, 16, 0.25)
    qkv, dout = rows_of(batch, shape.slots * 16), rows_of(batch, 96, 1)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 5, 2, 1):
            torch.set_num_threads(number)
            results.append(run(batch, shape, dtype, qkv, dout)[:3])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_a_key_far_below_the_peak_has_no_weight_at_all():
    batch = a_tree([-1], [40], 0)
    shape = AttentionShape(1, 1, 64, 1.0)
    qkv = torch.zeros(41, 192)
    qkv[:40, 31] = qkv[:40, 64 + 31] = 10.0  # a component that hardly turns from place to place
    qkv[3, 64:128] *= -10
    qkv[3, 128:] = 1e30
    out, again, dqkv, _ = run(batch, shape, torch.float32, qkv, torch.ones(41, 64))
    assert (out == 0).all()
    assert (again == 0).all()
    assert dqkv.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_every_heir_and_no_other_tree(bad):
    batch = a_tree([-1, 0, 0, -1], [70, 20, 20, 30], 0)
    shape = AttentionShape(4, 2, 16, 0.25)
    qkv = rows_of(batch, shape.slots * 16)
    qkv[10] = bad
    out, _, dqkv, _ = run(batch, shape, torch.float32, qkv, rows_of(batch, 64, 1))
    assert not out[10:110].isfinite().any(-1).any()
    assert out[110:].isfinite().all()
    assert not dqkv[10].isfinite().any()
    assert dqkv[110:].isfinite().all()


@st.composite
def forests(draw):
    count = draw(st.integers(1, 8))
    parents = [draw(st.integers(-1, segment - 1)) for segment in range(count)]
    return a_tree(parents, [draw(st.integers(1, 3 * QUERIES_A_UNIT)) for _ in range(count)])


@given(batch=forests())
def test_units_cover_each_query_once_and_shared_segments_are_those_with_several_readers(batch):
    layout = plan_layout(batch)
    covered = np.zeros(layout.used, dtype=int)
    readers = np.zeros(layout.starts.size, dtype=int)
    for segment, first, end in layout.units.tolist():
        assert 0 < end - first <= QUERIES_A_UNIT
        covered[layout.starts[segment] + first : layout.starts[segment] + end] += 1
        readers[[segment, *layout.ancestors(segment)]] += 1
    assert (covered == 1).all()
    assert ((readers > 1) == (layout.shared_at >= 0)).all()
    places = [
        np.arange(at, at + length)
        for at, length in zip(layout.shared_at, layout.lengths, strict=True)
        if at >= 0
    ]
    flat = np.concatenate([[], *places])
    assert sorted(flat.tolist()) == list(range(layout.shared_rows))


def test_a_change_of_any_file_makes_other_kernels(monkeypatch, tmp_path):
    before = kernels._text()
    for source in kernels.SOURCES:
        copy = tmp_path / source.name
        copy.write_bytes(source.read_bytes() + b"// changed\n")
        others = tuple(copy if path == source else path for path in kernels.SOURCES)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "SOURCES", others)
            assert kernels._text() != before
    folder = Path(kernels.__file__).with_name("cpp")
    assert set(kernels.SOURCES) == set(folder.glob("*.cpp")) | set(folder.glob("*.h"))


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of another processor")
@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v3"])
def test_vectors_of_older_processors_give_the_same_attention(machine, monkeypatch, tmp_path):
    flags = tuple(
        f"-march={machine}" if flag == "-march=native" else flag for flag in kernels.FLAGS
    )
    monkeypatch.setattr(kernels, "FLAGS", flags)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    kernels._load.cache_clear()
    try:
        assert why_not() == ""
        for dtype in (torch.float32, torch.bfloat16):
            for dim in (8, 20, 64):
                shape = AttentionShape(6, 2, dim, dim**-0.5)
                equals_its_definition(a_tree([-1, 0, 0, 1], [137, 66, 21, 1], 2), shape, dtype)
        for found, wanted in forward_and_backward(a_tree([-1, 0], [9, 9]), shape, torch.float32):
            close(found, wanted, torch.float32)
    finally:
        monkeypatch.undo()
        kernels._load.cache_clear()
