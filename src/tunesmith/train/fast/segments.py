"""Causal attention inside each segment of a packed batch, as batched products.

A packed batch is a flat run of positions; its segments are gathered into rectangles of similar
lengths (so that a short row does no long row's work), rotated, multiplied, and put back. With
grouped queries the query heads of one key head are stacked, so keys are never repeated. Rows that
only pad a rectangle are zero and lie after every real row: a causal mask hides them. A prefix that
all rows share is a segment of its own, and its keys stand before those of every other segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.train.packing import Ints, MicroBatch

__all__ = [
    "AttentionShape",
    "Rectangle",
    "SegmentPlan",
    "attend",
    "attend_backward",
    "plan_segments",
    "table_length",
]

LENGTH_MULTIPLE = 16
"""Rectangles have lengths of this multiple, so that shapes stay few."""

SAME_RECTANGLE_RATIO = 0.7
"""A segment joins a longer one's rectangle when it is at least this share of its length."""

LONGEST_EXPLICIT = 512
"""Longer segments use the streaming kernel, whose memory does not grow with the square."""


@dataclass(frozen=True)
class AttentionShape:
    """Heads of an attention layer. Query head h reads key head h // (heads // key_heads)."""

    heads: int
    key_heads: int
    head_dim: int
    scale: float

    @property
    def group(self) -> int:
        """Query heads a key head."""
        return self.heads // self.key_heads

    @property
    def slots(self) -> int:
        """Heads of q, k and v together: columns of the joint projection over head_dim."""
        return self.heads + 2 * self.key_heads


@dataclass(frozen=True)
class Rectangle:
    """`count` segments padded to one length; their q, k and v start at `row` of the joint buffer.

    Queries are the segments' own positions; keys are the shared prefix and then those. The streaming
    kernel only knows squares, so for it the queries have the prefix's rows too, as zeros.
    """

    count: int
    queries: int
    """Query rows of one segment and head."""
    keys: int
    """Key rows of one segment and head."""
    row: int
    out_row: int
    cos: Tensor
    """(keys, head_dim / 2)"""
    sin: Tensor
    mask: Tensor | None
    """(group * queries, keys): 0 where a query may look, else -inf; None for the streaming kernel."""


@dataclass(frozen=True)
class SegmentPlan:
    """Where each head vector of a packed batch goes and comes back; shared by all layers.

    Index tensors count vectors of head_dim. One past the last vector is a zero vector. When rows
    share a prefix, the first rectangle is the prefix alone.
    """

    shape: AttentionShape
    positions: int
    prefix: int
    rectangles: tuple[Rectangle, ...]
    to_buffer: Tensor
    """(buffer rows,) into (positions + 1) * slots: gathers the joint projection."""
    from_buffer: Tensor
    """(positions * slots,) into buffer rows + 1."""
    to_out: Tensor
    """(out rows,) into (positions + 1) * heads: gathers the gradient of the output."""
    from_out: Tensor
    """(positions * heads,) into out rows + 1."""


def plan_segments(
    batch: MicroBatch, shape: AttentionShape, tables: tuple[Tensor, Tensor]
) -> SegmentPlan:
    """Rectangles and indices for the segments of one batch.

    `tables` are cosines and sines of the rotary embedding, (at least `table_length(batch)`,
    head_dim / 2) each, in the precision of the model.
    """
    positions, prefix = batch.positions, batch.prefix_tokens
    rectangles: list[Rectangle] = []
    into, into_out = [], []
    row = out_row = 0
    for starts, lengths, before in _rectangles(batch):
        one = _rectangle((len(starts), int(lengths.max()), before), (row, out_row), shape, tables)
        rectangles.append(one)
        keys, queries = _positions_of(one, starts, lengths, before, positions)
        for (first, heads), place in zip(_head_blocks(shape), (queries, keys, keys), strict=True):
            slot = first + np.arange(heads)
            into.append((place[:, None, :] * shape.slots + slot[None, :, None]).ravel())
        head = np.arange(shape.heads)
        into_out.append((queries[:, None, :] * shape.heads + head[None, :, None]).ravel())
        row += sum(part.size for part in into[-3:])
        out_row += into_out[-1].size
    to_buffer, to_out = np.concatenate(into), np.concatenate(into_out)
    device = tables[0].device
    return SegmentPlan(
        shape=shape,
        positions=positions,
        prefix=prefix,
        rectangles=tuple(rectangles),
        to_buffer=torch.from_numpy(to_buffer).to(device),
        from_buffer=_inverse(to_buffer, positions * shape.slots).to(device),
        to_out=torch.from_numpy(to_out).to(device),
        from_out=_inverse(to_out, positions * shape.heads).to(device),
    )


def table_length(batch: MicroBatch) -> int:
    """Rows of the rotary tables that `plan_segments` needs."""
    return batch.prefix_tokens + _rounded(int(batch.segment_lengths.max()))


def _head_blocks(shape: AttentionShape) -> list[tuple[int, int]]:
    heads, keys = shape.heads, shape.key_heads
    return [(0, heads), (heads, keys), (heads + keys, keys)]


def _rounded(length: int) -> int:
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def _rectangles(batch: MicroBatch) -> list[tuple[Ints, Ints, int]]:
    """Starts and lengths of the segments of each rectangle, longest first, and the prefix before them."""
    found: list[tuple[Ints, Ints, int]] = []
    prefix, lengths = batch.prefix_tokens, batch.segment_lengths
    if prefix:
        found.append((np.zeros(1, dtype=np.int64), np.full(1, prefix), 0))
    groups: list[list[int]] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        if groups and lengths[index] >= SAME_RECTANGLE_RATIO * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return found + [(batch.segment_starts[g], lengths[g], prefix) for g in groups]


def _positions_of(
    one: Rectangle, starts: Ints, lengths: Ints, before: int, positions: int
) -> tuple[Ints, Ints]:
    """Batch positions of the key rows and of the query rows, (count, rows); `positions` for a zero."""
    place = np.arange(one.keys - before)
    inside = place[None, :] < lengths[:, None]
    own = np.where(inside, starts[:, None] + place[None, :], positions)
    prefix = np.broadcast_to(np.arange(before), (one.count, before))
    keys = np.concatenate([prefix, own], axis=1)
    if one.queries == one.keys:
        return keys, np.concatenate([np.full_like(prefix, positions), own], axis=1)
    return keys, own


def _rectangle(
    size: tuple[int, int, int],
    rows: tuple[int, int],
    shape: AttentionShape,
    tables: tuple[Tensor, Tensor],
) -> Rectangle:
    count, longest, before = size
    queries = _rounded(longest)
    keys = before + queries
    cos, sin = tables[0][:keys], tables[1][:keys]
    if keys > LONGEST_EXPLICIT and cos.device.type == "cpu":
        return Rectangle(count, keys, keys, rows[0], rows[1], cos, sin, None)
    square = torch.full((queries, keys), float("-inf"), dtype=cos.dtype, device=cos.device)
    mask = square.triu_(before + 1).repeat(shape.group, 1)
    return Rectangle(count, queries, keys, rows[0], rows[1], cos, sin, mask)


def _inverse(index: Ints, size: int) -> Tensor:
    """from[index[i]] = the first such i; vectors that nothing gathers read the zero at the end."""
    back = np.full(size, index.size, dtype=np.int64)
    real = np.flatnonzero(index < size)[::-1]
    back[index[real]] = real
    return torch.from_numpy(back)


def _views(buffer: Tensor, one: Rectangle, shape: AttentionShape) -> tuple[Tensor, Tensor, Tensor]:
    """q (count * key_heads, group * queries, dim), k and v (count * key_heads, keys, dim)."""
    batch, dim = one.count * shape.key_heads, shape.head_dim
    q_rows, k_rows = batch * shape.group * one.queries, batch * one.keys
    q_end = one.row + q_rows
    q = buffer[one.row : q_end].view(batch, shape.group * one.queries, dim)
    k = buffer[q_end : q_end + k_rows].view(batch, one.keys, dim)
    v = buffer[q_end + k_rows : q_end + 2 * k_rows].view(batch, one.keys, dim)
    return q, k, v


def _rotate(q: Tensor, k: Tensor, one: Rectangle, direction: float) -> None:
    """Rotary embedding of q and k in place; `direction` -1 is its transpose."""
    skipped = one.keys - one.queries
    for x, cos, sin in (
        (q.view(-1, one.queries, q.shape[-1]), one.cos[skipped:], one.sin[skipped:]),
        (k, one.cos, one.sin),
    ):
        half = x.shape[-1] // 2
        first, second = x[..., :half], x[..., half:]
        crossed = first * sin
        first.mul_(cos).addcmul_(second, sin, value=-direction)
        second.mul_(cos).add_(crossed, alpha=direction)


def attend(qkv: Tensor, plan: SegmentPlan) -> tuple[Tensor, list[Tensor]]:
    """Joint projection (positions + 1, slots * dim), last row zero -> output (positions, heads * dim).

    Also returns what `attend_backward` needs; it is the same again, to the bit, when made again.
    """
    shape = plan.shape
    buffer = qkv.view(-1, shape.head_dim).index_select(0, plan.to_buffer)
    out = qkv.new_empty(plan.to_out.numel() + 1, shape.head_dim)
    out[-1].zero_()
    saved = [buffer]
    for one in plan.rectangles:
        q, k, v = _views(buffer, one, shape)
        _rotate(q, k, one, 1.0)
        place = out[one.out_row :][: one.count * one.queries * shape.heads]
        if one.mask is None:
            saved += _stream((q, k, v), place, one, shape)
            continue
        scores = torch.baddbmm(one.mask, q, k.transpose(1, 2), alpha=shape.scale)
        weights = torch.softmax(scores, -1)
        torch.bmm(weights, v, out=place.view(q.shape))
        saved.append(weights)
    flat = out.index_select(0, plan.from_out)
    return flat.view(plan.positions, shape.heads * shape.head_dim), saved


def attend_backward(dout: Tensor, plan: SegmentPlan, saved: list[Tensor]) -> Tensor:
    """Gradient of the joint projection, (positions, slots * dim), from (positions + 1, heads * dim)."""
    shape = plan.shape
    buffer, rest = saved[0], list(saved[1:])
    dbuffer = buffer.new_empty(buffer.shape[0] + 1, shape.head_dim)
    dbuffer[-1].zero_()
    dplaces = dout.view(-1, shape.head_dim).index_select(0, plan.to_out)
    for one in plan.rectangles:
        q, k, v = _views(buffer, one, shape)
        dq, dk, dv = _views(dbuffer, one, shape)
        size = one.count * one.queries * shape.heads
        do = dplaces[one.out_row :][:size].view(q.shape)
        if one.mask is None:
            kept = (q, k, v, rest.pop(0), rest.pop(0))
            _stream_backward(do, kept, (dq, dk, dv), one, shape)
            continue
        weights = rest.pop(0)
        torch.bmm(weights.transpose(1, 2), do, out=dv)
        dweights = torch.bmm(do, v.transpose(1, 2))
        dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
        dq.baddbmm_(dscores, k, beta=0.0, alpha=shape.scale)
        dk.baddbmm_(dscores.transpose(1, 2), q, beta=0.0, alpha=shape.scale)
    if plan.prefix:
        _gather_prefix(dbuffer, plan)
    for one in plan.rectangles:
        dq, dk, _ = _views(dbuffer, one, shape)
        _rotate(dq, dk, one, -1.0)
    flat = dbuffer.index_select(0, plan.from_buffer)
    return flat.view(plan.positions, shape.slots * shape.head_dim)


def _gather_prefix(dbuffer: Tensor, plan: SegmentPlan) -> None:
    """Add what each segment's copy of the prefix's keys and values got to the prefix itself."""
    whole, *others = plan.rectangles
    _, *into = _views(dbuffer, whole, plan.shape)
    for one in others:
        _, *parts = _views(dbuffer, one, plan.shape)
        for total, part in zip(into, parts, strict=True):
            copies = part.view(one.count, plan.shape.key_heads, one.keys, plan.shape.head_dim)
            total[:, : plan.prefix] += copies[:, :, : plan.prefix].sum(0)


def _per_head(x: Tensor, one: Rectangle, shape: AttentionShape) -> Tensor:
    """(count, heads, keys, dim); keys and values repeated for their query heads."""
    dim = shape.head_dim
    if x.shape[1] != one.keys or shape.group == 1:
        return x.view(one.count, shape.heads, one.keys, dim)
    whole = x.view(one.count, shape.key_heads, one.keys, dim)
    return whole.repeat_interleave(shape.group, 1)


def _stream(
    parts: tuple[Tensor, ...], place: Tensor, one: Rectangle, shape: AttentionShape
) -> list[Tensor]:
    wide = [_per_head(x, one, shape) for x in parts]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, logsumexp = kernel(*wide, 0.0, True, scale=shape.scale)
    place.view(out.shape).copy_(out)
    return [out, logsumexp]


def _stream_backward(
    do: Tensor,
    saved: tuple[Tensor, ...],
    grads: tuple[Tensor, Tensor, Tensor],
    one: Rectangle,
    shape: AttentionShape,
) -> None:
    q, k, v, out, logsumexp = saved
    wide = [_per_head(x, one, shape) for x in (q, k, v)]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    dq, dk, dv = kernel(do.view(out.shape), *wide, out, logsumexp, 0.0, True, scale=shape.scale)
    grads[0].view(out.shape).copy_(dq)
    grouped = (one.count * shape.key_heads, shape.group, one.keys, shape.head_dim)
    grads[1].copy_(dk.reshape(grouped).sum(1))
    grads[2].copy_(dv.reshape(grouped).sum(1))
