"""Attention of a packed batch and its gradient: by the C++ kernels where they run, else by torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.train.fast import rectangles
from tunesmith.train.fast.kernels import Kernels, TreeStruct, find_kernels
from tunesmith.train.fast.layout import AttentionShape, Layout, plan_layout
from tunesmith.train.fast.rectangles import LENGTH_MULTIPLE, Rectangles
from tunesmith.train.packing import MicroBatch

__all__ = ["AttentionShape", "SegmentPlan", "plan_segments", "table_length"]


@dataclass(frozen=True)
class SegmentPlan:
    """How attention runs over the segments of one batch; shared by all layers."""

    layout: Layout
    shape: AttentionShape
    kernels: Kernels | None
    tree: TreeStruct | None
    places: Tensor
    tables: tuple[Tensor, Tensor]
    """Cosines and sines of the rotary embedding, (longest row or more, head_dim / 2)."""
    plain: Rectangles | None
    held: list[Any] = field(default_factory=list, repr=False)
    """Arrays that the kernels' structure points into."""

    def attend(self, qkv: Tensor) -> tuple[Tensor, Tensor | None]:
        """Joint projection (positions + 1, slots * head_dim), last row zero -> the heads' output.

        Returns (positions, heads * head_dim) and what `attend_backward` wants to have kept beside
        `qkv`, which is rotated in place when the kernels run.
        """
        if self.kernels is None or self.tree is None:
            assert self.plain is not None
            return rectangles.attend(qkv, self.plain)[0], None
        shape, positions = self.shape, self.layout.positions
        self._rotate(qkv, 1.0)
        out = qkv.new_empty(positions, shape.heads * shape.head_dim)
        logs = torch.empty(shape.heads, positions)
        self.kernels("attend", self.tree, qkv, out, logs)
        return out, logs

    def attend_backward(
        self, qkv: Tensor, dout: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The heads' output again, and the gradient of the joint projection (positions, ...).

        `dout` is (positions + 1, heads * head_dim) with a zero row at its end.
        """
        if self.kernels is None or self.tree is None or kept is None:
            assert self.plain is not None
            heads, saved = rectangles.attend(qkv, self.plain)
            return heads, rectangles.attend_backward(dout, self.plain, saved)
        positions = self.layout.positions
        heads, dqkv = torch.empty_like(dout[:positions]), torch.empty_like(qkv[:positions])
        self.kernels("attend_backward", self.tree, qkv, dout, kept, heads, dqkv)
        self._rotate(dqkv, -1.0)
        return heads, dqkv

    def _rotate(self, qkv: Tensor, direction: float) -> None:
        assert self.kernels is not None
        shape = self.shape
        self.kernels(
            "rotate",
            qkv,
            self.layout.positions,
            shape.slots * shape.head_dim,
            shape.heads + shape.key_heads,
            shape.head_dim,
            self.places,
            *self.tables,
            direction,
        )


def plan_segments(
    batch: MicroBatch, shape: AttentionShape, tables: tuple[Tensor, Tensor]
) -> SegmentPlan:
    """Everything about the segments of one batch that does not change from layer to layer.

    `tables` are cosines and sines of the rotary embedding, (at least `table_length(batch)`,
    head_dim / 2) each, in the precision of the model.
    """
    layout = plan_layout(batch)
    kernels = find_kernels(tables[0])
    places = torch.from_numpy(layout.places)
    if kernels is None:
        plain = rectangles.plan_rectangles(layout, shape, tables)
        return SegmentPlan(layout, shape, None, None, places, tables, plain)
    tree, held = _tree_struct(layout, shape)
    wide = (tables[0].float().contiguous(), tables[1].float().contiguous())
    return SegmentPlan(layout, shape, kernels, tree, places, wide, None, held)


def table_length(batch: MicroBatch) -> int:
    """Rows of the rotary tables that `plan_segments` needs."""
    return int(batch.position_ids.max()) + 1 + LENGTH_MULTIPLE


def _tree_struct(layout: Layout, shape: AttentionShape) -> tuple[TreeStruct, list[Any]]:
    names = ("starts", "lengths", "chain_at", "chain", "shared_at", "units")
    arrays = [np.ascontiguousarray(getattr(layout, name)) for name in names]
    tree = TreeStruct(
        layout.positions,
        shape.heads,
        shape.key_heads,
        shape.head_dim,
        layout.used,
        layout.starts.size,
        *(array.ctypes.data for array in arrays),
        layout.units.shape[0],
        layout.longest_row,
        layout.shared_rows,
        shape.scale,
    )
    return tree, arrays
