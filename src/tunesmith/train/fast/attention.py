"""Attention of a packed batch for any model that asks transformers' attention registry for it.

While a packed step runs, the model's configuration names the function below, so its attention
layers hand over queries, keys and values (rotated by the model itself, from `position_ids`) and no
mask is built. A position sees its own segment up to itself and every segment above it; a sliding
window counts places along that chain. Segments are gathered into rectangles of similar size; long
ones are cut into blocks of queries whose weights are made again in the backward pass, so memory
grows with the positions and not with their square. The gradient is autograd's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith.train.packing import Ints, MicroBatch

__all__ = [
    "INTERFACE",
    "PackedInterface",
    "PackedLayout",
    "Scoring",
    "attend_packed",
    "packed_inputs",
]

INTERFACE = "tunesmith_packed"
"""Name under which transformers' registry knows `packed_attention`."""

HOLDER = "tunesmith_packed_interface"

LONGEST_AT_ONCE = 512
"""Queries that see more keys are cut into blocks."""

BLOCK_QUERIES = 128
"""Queries of one such block."""

LENGTH_MULTIPLE = 16
LADDER = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Rectangles hold segments between two rungs, and their sides are multiples of 16: few shapes."""

NEUTRAL = frozenset({"position_ids", "cache_position", "use_cache", "output_attentions"})
"""Arguments that come with a layer's call and change nothing here: there is no cache in training."""


@dataclass(frozen=True)
class Scoring:
    """How scores become weights."""

    scale: float
    window: int | None = None
    """A query sees this many places, itself included."""
    cap: float | None = None
    """Scores become cap * tanh(score / cap)."""
    sinks: Tensor | None = None
    """(heads,) a score a head that takes weight and gives no value."""


@dataclass(frozen=True)
class Block:
    """Queries and the keys that they may see: `count` segments, or a part of one long segment."""

    count: int
    queries: int
    keys: int
    query_places: Tensor
    """(count, queries) places along the chain; a row's last query stands for its padding."""
    key_places: Tensor
    """(count, keys), -1 for padding."""
    at_once: bool
    """False: weights are made again in the backward pass instead of kept."""

    def hidden(self, window: int | None) -> Tensor:
        """(count, 1, queries, keys) true where a query must not look; it sees one key at least."""
        query, key = self.query_places[:, None, :, None], self.key_places[:, None, None, :]
        unseen = (key < 0) | (key > query)
        return unseen if window is None else unseen | (key <= query - window)


@dataclass(frozen=True)
class Rectangles:
    """All blocks of a batch for one window; index tensors count positions."""

    blocks: tuple[Block, ...]
    query_index: Tensor
    key_index: Tensor
    from_out: Tensor
    """(positions,) into the blocks' queries laid end to end, then a zero row for the padded end."""
    masks: dict[int, Tensor]
    """Block number -> its `hidden`, for blocks that are done at once."""


class PackedLayout:
    """The segments of one batch, as rectangles that all layers of one window share."""

    def __init__(self, batch: MicroBatch, device: torch.device) -> None:
        self.positions = batch.positions
        self.longest = int(batch.row_lengths.max())
        self._batch, self._device = batch, device
        self._rectangles: dict[int | None, Rectangles] = {}

    def rectangles(self, window: int | None) -> tuple[Rectangles, int | None]:
        """Blocks for a window, and the window itself, or None when no row is longer than it."""
        window = None if window is None or window >= self.longest else window
        if window not in self._rectangles:
            self._rectangles[window] = self._plan(window)
        return self._rectangles[window], window

    def _plan(self, window: int | None) -> Rectangles:
        groups: dict[tuple[int, ...], list[tuple[Ints, Ints]]] = {}
        for number, (queries, keys) in enumerate(_cuts(self._batch, window)):
            together = keys.size <= LONGEST_AT_ONCE
            rung = (_rung(queries.size), _rung(keys.size)) if together else (-1, number)
            groups.setdefault(rung, []).append((queries, keys))
        blocks, query_index, key_index = [], [], []
        for members in groups.values():
            queries, _ = _padded([one for one, _ in members])
            keys, real = _padded([one for _, one in members])
            places = self._batch.position_ids
            blocks.append(
                Block(
                    count=len(members),
                    queries=queries.shape[1],
                    keys=keys.shape[1],
                    query_places=self._tensor(places[queries]),
                    key_places=self._tensor(np.where(real, places[keys], -1)),
                    at_once=members[0][1].size <= LONGEST_AT_ONCE,
                )
            )
            query_index.append(queries.ravel())
            key_index.append(keys.ravel())
        gathered = np.concatenate(query_index)
        from_out = np.full(self.positions, gathered.size, dtype=np.int64)
        # Backwards, so that a row's last query wins over the copies that pad it.
        from_out[gathered[::-1]] = np.arange(gathered.size)[::-1]
        return Rectangles(
            blocks=tuple(blocks),
            query_index=self._tensor(gathered),
            key_index=self._tensor(np.concatenate(key_index)),
            from_out=self._tensor(from_out),
            masks={n: one.hidden(window) for n, one in enumerate(blocks) if one.at_once},
        )

    def _tensor(self, array: Ints) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _cuts(batch: MicroBatch, window: int | None) -> Iterator[tuple[Ints, Ints]]:
    """Batch positions of queries and of the keys they may see, for each segment or part of one."""
    chains: list[Ints] = []
    parents = batch.segment_parents.tolist()
    spans = zip(batch.segment_starts.tolist(), batch.segment_lengths.tolist(), strict=True)
    for parent, (start, length) in zip(parents, spans, strict=True):
        own = np.arange(start, start + length)
        chain = own if parent < 0 else np.concatenate([chains[parent], own])
        chains.append(chain)
        before = chain.size - length
        step = length if chain.size <= LONGEST_AT_ONCE else BLOCK_QUERIES
        for first in range(0, length, step):
            end = min(first + step, length)
            oldest = 0 if window is None else max(0, before + first - window + 1)
            yield own[first:end], chain[oldest : before + end]


def _rung(length: int) -> int:
    return next(rung for rung in LADDER if length <= rung)


def _padded(lists: list[Ints]) -> tuple[Ints, np.ndarray[Any, np.dtype[np.bool_]]]:
    """(lists, longest rounded up), each padded with its last entry; and which entries are real."""
    longest = max(one.size for one in lists)
    place = np.arange(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
    out = np.stack([one[np.minimum(place, one.size - 1)] for one in lists])
    return out, np.stack([place < one.size for one in lists])


def packed_inputs(batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    """Arguments of a forward pass over the batch's positions; the attention knows the segments."""
    return {
        "input_ids": torch.from_numpy(batch.input_ids).to(device)[None],
        "position_ids": torch.from_numpy(batch.position_ids).to(device)[None],
        "attention_mask": None,
        "use_cache": False,
    }


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scoring: Scoring
) -> Tensor:
    """(1, heads, positions, dim) -> (1, positions, heads, value dim); zeros on the padded end.

    key and value may have fewer heads: query head h reads key head h // (heads // key heads).
    """
    plan, window = layout.rectangles(scoring.window)
    queries = _rows(query, plan.query_index)
    keys, values = _rows(key, plan.key_index), _rows(value, plan.key_index)
    outs, at, key_at = [], 0, 0
    for number, block in enumerate(plan.blocks):
        end, key_end = at + block.count * block.queries, key_at + block.count * block.keys
        parts = (queries[at:end], keys[key_at:key_end], values[key_at:key_end])
        if block.at_once or not torch.is_grad_enabled():
            mask = plan.masks.get(number)
            mask = block.hidden(window) if mask is None else mask
            outs.append(_attend(*parts, block, scoring, mask))
        else:
            outs.append(
                checkpoint(
                    _attend_again,
                    *parts,
                    block,
                    (scoring, window),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            )
        at, key_at = end, key_end
    outs.append(outs[0].new_zeros(1, *outs[0].shape[1:]))
    return torch.cat(outs).index_select(0, plan.from_out)[None]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """(1, heads, positions, dim) -> (index, heads, dim). An embedding's gradient adds rows up fastest."""
    heads, positions, dim = x.shape[1:]
    flat = x[0].transpose(0, 1).reshape(positions, heads * dim)
    return nn.functional.embedding(index, flat).view(-1, heads, dim)


def _attend_again(
    query: Tensor, key: Tensor, value: Tensor, block: Block, how: tuple[Scoring, int | None]
) -> Tensor:
    scoring, window = how
    return _attend(query, key, value, block, scoring, block.hidden(window))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, block: Block, scoring: Scoring, mask: Tensor
) -> Tensor:
    """One rectangle: (count * queries, heads, dim), keys and values alike -> (.., heads, value dim)."""
    count, heads, key_heads = block.count, query.shape[1], key.shape[1]
    group = heads // key_heads
    q = query.view(count, block.queries, key_heads, group, -1).permute(0, 2, 3, 1, 4)
    q = (q * scoring.scale).reshape(count, key_heads, group * block.queries, -1)
    k = key.view(count, block.keys, key_heads, -1).permute(0, 2, 3, 1)
    v = value.view(count, block.keys, key_heads, -1).transpose(1, 2)
    scores = (q @ k).view(count, heads, block.queries, block.keys)
    if scoring.cap is not None:
        scores = torch.tanh(scores / scoring.cap) * scoring.cap
    weights = _softmax(scores.masked_fill(mask, float("-inf")), scoring.sinks)
    out = weights.view(count, key_heads, group * block.queries, block.keys) @ v
    out = out.view(count, key_heads, group, block.queries, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(count * block.queries, heads, -1)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Over the last dimension, in fp32 at least; a sink is one more score whose weight is dropped."""
    exact = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        return torch.softmax(scores, -1, dtype=exact).to(scores.dtype)
    column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    weights = torch.softmax(torch.cat([scores, column], -1), -1, dtype=exact)
    return weights[..., :-1].to(scores.dtype)


class PackedInterface:
    """Makes a model's attention layers run `attend_packed` while a layout is active."""

    def __init__(self, trunk: nn.Module) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(INTERFACE, packed_attention)
        self.modules = list(trunk.modules())
        self.layout: PackedLayout | None = None
        self.windows: dict[nn.Module, int | None] = {}
        """Every layer that asked for attention, and its sliding window."""
        found = {id(module.config): module.config for module in self.modules if _is_set(module)}
        self._configs: list[Any] = list(found.values())
        for module in self.modules:
            object.__setattr__(module, HOLDER, self)

    @contextmanager
    def active(self, layout: PackedLayout) -> Iterator[None]:
        """The model's own implementation is back at the end, whatever happened."""
        before = [config._attn_implementation_internal for config in self._configs]
        outer, self.layout = self.layout, layout
        for config in self._configs:
            config._attn_implementation_internal = INTERFACE
        try:
            yield
        finally:
            self.layout = outer
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = name

    def release(self) -> None:
        """Forget the model's modules."""
        for module in self.modules:
            object.__delattr__(module, HOLDER)


def _is_set(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation_internal")


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """What transformers' registry calls: (1, heads, positions, dim) -> (1, positions, heads, dim).

    Raises:
        ValueError: the layer asks for something that this function does not know.
    """
    interface: PackedInterface = getattr(module, HOLDER)
    layout = interface.layout
    asked = dict(settings)
    scale = asked.pop("scaling", None)
    window, cap = asked.pop("sliding_window", None), asked.pop("softcap", None)
    sinks = asked.pop("s_aux", None)
    causal = asked.pop("is_causal", None)
    unknown = sorted(name for name in asked.keys() - NEUTRAL if _says_something(asked[name]))
    obstacles = {
        "no packed batch is active": layout is None,
        "it makes a mask of its own": attention_mask is not None,
        "it is not causal": (vars(module).get("is_causal", True) if causal is None else causal)
        is False,
        "queries are not those of the packed batch": layout is not None
        and query.shape[::2] != (1, layout.positions),
        f"it asks for {', '.join(unknown)}": bool(unknown),
    }
    reason = next((reason for reason, holds in obstacles.items() if holds), None)
    if reason is not None or layout is None:
        raise ValueError(f"packed attention does not hold for {type(module).__name__}: {reason}")
    interface.windows[module] = window
    scoring = Scoring(query.shape[-1] ** -0.5 if scale is None else scale, window, cap, sinks)
    return attend_packed(query, key, value, layout, scoring), None


def _says_something(value: Any) -> bool:
    """A tensor, or anything but None, False and 0 (no dropout)."""
    return isinstance(value, Tensor) or bool(value)
