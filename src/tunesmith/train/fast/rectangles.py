"""Causal attention of a packed batch as batched products: the plain torch form.

Segments are gathered into rectangles of similar lengths (so that a short row does no long row's
work), rotated, multiplied, and put back. The keys of a segment's ancestors stand before its own.
With grouped queries the query heads of one key head are stacked, so keys are not repeated; for a
long segment's streaming kernel they are, and its queries are padded to a square. Rows that only pad
a rectangle's end are zero and lie after every real row: a causal mask hides them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunesmith.train.fast.layout import AttentionShape, Layout
from tunesmith.train.packing import Ints

__all__ = [
    "LENGTH_MULTIPLE",
    "Rectangle",
    "Rectangles",
    "attend",
    "attend_backward",
    "plan_rectangles",
]

LENGTH_MULTIPLE = 16
"""Rectangles have lengths of this multiple, so that shapes stay few."""

SAME_RECTANGLE_RATIO = 0.7
"""A segment joins a longer one's rectangle when it is at least this share of its length."""

LONGEST_EXPLICIT = 512
"""Longer segments use the streaming kernel, whose memory does not grow with the square."""


@dataclass(frozen=True)
class Rectangle:
    """`count` segments of the same ancestors; their q, k and v start at `row` of the joint buffer.

    Queries are the segments' own positions; keys are the ancestors' and then those. The streaming
    kernel only knows squares, so for it the queries have the ancestors' rows too, as zeros.
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
    before: Tensor
    """(key_heads, ancestors' positions): rows of the joint buffer where the ancestors' own keys are."""


@dataclass(frozen=True)
class Rectangles:
    """Where each head vector of a packed batch goes and comes back; shared by all layers.

    Index tensors count vectors of head_dim. One past the last vector is a zero vector. The
    rectangle of a segment comes after those of its ancestors.
    """

    shape: AttentionShape
    positions: int
    rectangles: tuple[Rectangle, ...]
    to_buffer: Tensor
    """(buffer rows,) into (positions + 1) * slots: gathers the joint projection."""
    from_buffer: Tensor
    """(positions * slots,) into buffer rows + 1."""
    to_out: Tensor
    """(out rows,) into (positions + 1) * heads: gathers the gradient of the output."""
    from_out: Tensor
    """(positions * heads,) into out rows + 1."""


def plan_rectangles(
    layout: Layout, shape: AttentionShape, tables: tuple[Tensor, Tensor]
) -> Rectangles:
    """Rectangles and indices for the segments of one batch.

    `tables` are cosines and sines of the rotary embedding, (at least `longest_row` rounded up to
    LENGTH_MULTIPLE, head_dim / 2) each, in the precision of the model.
    """
    rectangles: list[Rectangle] = []
    into: list[Ints] = []
    into_out: list[Ints] = []
    key_rows: dict[int, Ints] = {}
    row = out_row = 0
    for segments in _alike(layout):
        before = [key_rows[ancestor] for ancestor in layout.ancestors(segments[0])]
        one = _rectangle(layout, segments, (row, out_row), shape, tables, before)
        rectangles.append(one)
        keys, queries = _positions_of(one, layout, segments)
        for (first, heads), place in zip(_head_blocks(shape), (queries, keys, keys), strict=True):
            slot = first + np.arange(heads)
            into.append((place[:, None, :] * shape.slots + slot[None, :, None]).ravel())
        head = np.arange(shape.heads)
        into_out.append((queries[:, None, :] * shape.heads + head[None, :, None]).ravel())
        _note_key_rows(key_rows, one, layout, segments, shape)
        row += sum(part.size for part in into[-3:])
        out_row += into_out[-1].size
    to_buffer, to_out = np.concatenate(into), np.concatenate(into_out)
    device = tables[0].device
    return Rectangles(
        shape=shape,
        positions=layout.positions,
        rectangles=tuple(rectangles),
        to_buffer=torch.from_numpy(to_buffer).to(device),
        from_buffer=_inverse(to_buffer, layout.positions * shape.slots).to(device),
        to_out=torch.from_numpy(to_out).to(device),
        from_out=_inverse(to_out, layout.positions * shape.heads).to(device),
    )


def _head_blocks(shape: AttentionShape) -> list[tuple[int, int]]:
    heads, keys = shape.heads, shape.key_heads
    return [(0, heads), (heads, keys), (heads + keys, keys)]


def _rounded(length: int) -> int:
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def _alike(layout: Layout) -> list[list[int]]:
    """Segments of the same ancestors and of similar lengths; ancestors before their heirs."""
    families: dict[tuple[int, ...], list[int]] = {}
    for segment in range(layout.starts.size):
        families.setdefault(layout.ancestors(segment), []).append(segment)
    found: list[list[int]] = []
    for chain in sorted(families, key=lambda chain: (len(chain), chain)):
        groups: list[list[int]] = []
        for segment in sorted(families[chain], key=lambda s: (-int(layout.lengths[s]), s)):
            length = layout.lengths[segment]
            if groups and length >= SAME_RECTANGLE_RATIO * layout.lengths[groups[-1][0]]:
                groups[-1].append(segment)
            else:
                groups.append([segment])
        found += groups
    return found


def _positions_of(one: Rectangle, layout: Layout, segments: list[int]) -> tuple[Ints, Ints]:
    """Batch positions of the key rows and of the query rows, (count, rows); `positions` for a zero."""
    chain = layout.ancestors(segments[0])
    ancestors = [np.arange(layout.lengths[a]) + layout.starts[a] for a in chain]
    before = np.concatenate(ancestors) if ancestors else np.zeros(0, dtype=np.int64)
    starts, lengths = layout.starts[segments], layout.lengths[segments]
    place = np.arange(one.keys - before.size)
    inside = place[None, :] < lengths[:, None]
    own = np.where(inside, starts[:, None] + place[None, :], layout.positions)
    head = np.broadcast_to(before, (one.count, before.size))
    keys = np.concatenate([head, own], axis=1)
    if one.queries == one.keys:
        return keys, np.concatenate([np.full_like(head, layout.positions), own], axis=1)
    return keys, own


def _rectangle(
    layout: Layout,
    segments: list[int],
    rows: tuple[int, int],
    shape: AttentionShape,
    tables: tuple[Tensor, Tensor],
    key_rows: list[Ints],
) -> Rectangle:
    count, queries = len(segments), _rounded(int(layout.lengths[segments].max()))
    seen = int(layout.depths[segments[0]])
    keys = seen + queries
    cos, sin = tables[0][:keys], tables[1][:keys]
    joined = np.concatenate(key_rows, axis=1) if key_rows else np.zeros((0, 0), dtype=np.int64)
    before = torch.from_numpy(joined).to(cos.device)
    if keys > LONGEST_EXPLICIT and cos.device.type == "cpu":
        return Rectangle(count, keys, keys, *rows, cos, sin, None, before)
    square = torch.full((queries, keys), float("-inf"), dtype=cos.dtype, device=cos.device)
    mask = square.triu_(seen + 1).repeat(shape.group, 1)
    return Rectangle(count, queries, keys, *rows, cos, sin, mask, before)


def _note_key_rows(
    key_rows: dict[int, Ints],
    one: Rectangle,
    layout: Layout,
    segments: list[int],
    shape: AttentionShape,
) -> None:
    """Remember where the own keys of these segments are, (key_heads, length) rows of the buffer."""
    first_key = one.row + one.count * shape.heads * one.queries
    skipped = int(layout.depths[segments[0]])
    for index, segment in enumerate(segments):
        head = first_key + (index * shape.key_heads + np.arange(shape.key_heads)) * one.keys
        own = skipped + np.arange(layout.lengths[segment])
        key_rows[segment] = head[:, None] + own[None, :]


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


def attend(qkv: Tensor, plan: Rectangles) -> tuple[Tensor, list[Tensor]]:
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


def attend_backward(dout: Tensor, plan: Rectangles, saved: list[Tensor]) -> Tensor:
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
    for one in plan.rectangles:
        if one.before.numel():
            _give_to_ancestors(dbuffer, one, plan)
    for one in plan.rectangles:
        dq, dk, _ = _views(dbuffer, one, shape)
        _rotate(dq, dk, one, -1.0)
    flat = dbuffer.index_select(0, plan.from_buffer)
    return flat.view(plan.positions, shape.slots * shape.head_dim)


def _give_to_ancestors(dbuffer: Tensor, one: Rectangle, plan: Rectangles) -> None:
    """Add what the copies of the ancestors' keys and values got to the ancestors themselves.

    An ancestor's values lie as far behind its keys as the keys of its rectangle take.
    """
    shape = plan.shape
    _, dk, dv = _views(dbuffer, one, shape)
    seen = one.before.shape[1]
    whole = (one.count, shape.key_heads, one.keys, shape.head_dim)
    for part, rows in ((dk, one.before), (dv, _value_rows(one.before, plan))):
        copies = part.view(whole)[:, :, :seen].sum(0)
        dbuffer.index_add_(0, rows.reshape(-1), copies.reshape(-1, shape.head_dim))


def _value_rows(key_rows: Tensor, plan: Rectangles) -> Tensor:
    rows = key_rows.clone()
    for one in plan.rectangles:
        keys = one.count * plan.shape.key_heads * one.keys
        first = one.row + one.count * plan.shape.heads * one.queries
        rows += ((key_rows >= first) & (key_rows < first + keys)) * keys
    return rows


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
