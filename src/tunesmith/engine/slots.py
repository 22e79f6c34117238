"""A preallocated key/value cache with one slot a row, and prompts grouped by what they share.

Rows in a batch start and end at different times. A row keeps its own length, so that a finished
row's place is taken by the next prompt, and nothing is padded on the left. Keys and values are
written in place; the library's own dynamic cache copies all of them at each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["SlotCache", "common_length", "fits_slots", "take_group"]

BLOCK_TOKENS = 64
"""Attention looks at a multiple of this many positions: few shapes, so few kernels to build."""


def fits_slots(config: Any) -> bool:
    """Whether all layers attend to all earlier tokens, by a mask that we can give.

    Sliding windows, linear attention and ALiBi need a cache or mask of their own.
    """
    text = config.get_text_config()
    layers = DynamicCache(config=text).layers
    plain = all(type(layer) is DynamicLayer for layer in layers)
    return plain and config._attn_implementation == "sdpa" and not getattr(text, "alibi", False)


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of `slots` rows, up to `capacity` tokens each.

    Call `decode` or `prefill` before each forward pass: it says where the pass writes, and gives
    the mask that it needs.

    Args:
        slots: rows.
        capacity: tokens a row.
    """

    def __init__(self, slots: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.slots = slots
        self.capacity = -(-capacity // BLOCK_TOKENS) * BLOCK_TOKENS
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._rows = slice(0, 0)
        self._positions: Tensor | None = None
        self._start = self._seen = 0

    def decode(self, positions: Tensor) -> Tensor:
        """The next pass brings one token for each of the slots 0..n-1.

        Args:
            positions: (n,) where each token goes.

        Returns:
            (n, 1, 1, seen) bool mask; True may be seen.
        """
        self._rows = slice(0, len(positions))
        self._positions = positions
        self._seen = -(-(int(positions.max()) + 1) // BLOCK_TOKENS) * BLOCK_TOKENS
        columns = torch.arange(self._seen, device=positions.device)
        return (columns[None, :] <= positions[:, None])[:, None, None, :]

    def adopt(self, first: int, rows: int, prefix: DynamicCache) -> None:
        """Copy the keys and values of one row, `prefix`, to the start of `rows` slots."""
        tokens = prefix.get_seq_length()
        for layer_idx, layer in enumerate(prefix.layers if tokens else ()):
            self._make_room(layer_idx, layer.keys, layer.values)
            for store, states in ((self._keys, layer.keys), (self._values, layer.values)):
                store[layer_idx][first : first + rows, :, :tokens] = states

    def prefill(self, first: int, rows: int, start: int, tokens: int) -> Tensor:
        """The next pass brings `tokens` tokens for each of `rows` slots from `first` on.

        Args:
            start: tokens that these slots hold already.

        Returns:
            (1, 1, tokens, start + tokens) bool mask.
        """
        self._rows = slice(first, first + rows)
        self._positions = None
        self._start, self._seen = start, start + tokens
        mask = torch.ones(tokens, self._seen, dtype=torch.bool)
        return mask.tril(start)[None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Store a layer's new (rows, heads, tokens, size) keys and values; return all to be seen."""
        self._make_room(layer_idx, key_states, value_states)
        store = (self._keys[layer_idx][self._rows], self._values[layer_idx][self._rows])
        if self._positions is None:
            store[0][:, :, self._start : self._seen] = key_states
            store[1][:, :, self._start : self._seen] = value_states
        else:
            rows = torch.arange(len(self._positions), device=key_states.device)
            store[0][rows, :, self._positions] = key_states[:, :, 0]
            store[1][rows, :, self._positions] = value_states[:, :, 0]
        return store[0][:, :, : self._seen], store[1][:, :, : self._seen]

    @torch.inference_mode()
    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one slot into another."""
        for store in (*self._keys, *self._values):
            store[target, :, :tokens] = store[source, :, :tokens]

    def _make_room(self, layer_idx: int, keys: Tensor, values: Tensor) -> None:
        if layer_idx < len(self._keys):
            return
        # Zeros, not empty: a masked NaN would still spoil the products. On a CPU the pages of
        # zeros take no memory until they are written.
        for store, states in ((self._keys, keys), (self._values, values)):
            shape = (self.slots, states.shape[1], self.capacity, states.shape[3])
            store.append(torch.zeros(shape, dtype=states.dtype, device=states.device))


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both rows start with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def take_group(rows: Sequence[Sequence[int]], most: int) -> tuple[int, int]:
    """How many of the first rows to read together, and the length of the prefix they share.

    A further row joins as long as that costs fewer tokens than reading it alone.

    Args:
        rows: sorted, so that rows with a long common start are neighbours.
        most: rows to take at most, at least 1.
    """
    count, shared, tokens = 1, len(rows[0]), 0
    while count < min(most, len(rows)):
        row = rows[count]
        together = min(shared, common_length(rows[0], row))
        grown = tokens + count * (shared - together) + len(row) - together
        if together + grown > shared + tokens + len(row):
            break
        count, shared, tokens = count + 1, together, grown
    return count, shared
