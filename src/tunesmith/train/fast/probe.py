"""What cannot be read off a model's settings is tried on a few tokens, on the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.models.half import HalfLinear
from tunesmith.train.fast.attention import PackedInterface, PackedLayout, packed_inputs
from tunesmith.train.fast.head import LogitForm
from tunesmith.train.packing import MicroBatch, Row, pack

__all__ = ["causal_model", "head_obstacle", "logit_form", "packed_obstacle", "rope_limit"]

LOGIT_SETTINGS = ("logits_scaling", "logit_scale", "logits_scale")
"""Config keys by which families change logits after the head; small logits would not show it."""

KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest distance of two hidden states over their length; coarser types may differ by COARSE."""

COARSE = 0.06

FOREIGN = (
    ValueError,
    TypeError,
    RuntimeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
)
"""What a family's code may raise when it is called in a way that it does not know."""


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; each module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def causal_model(model: nn.Module) -> Any:
    """The causal model inside of a PEFT wrapper, or the model itself."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def packed_obstacle(causal: Any, trunk: nn.Module, interface: PackedInterface) -> str | None:
    """Why packed attention cannot hold for a model, None when it does.

    Three short rows, two of which begin alike, must have the hidden states that each has alone.
    """
    config = causal.config.get_text_config()
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS)
    if unknown:
        return f"layers of type {', '.join(unknown)}"
    batch = _probe_batch(int(config.vocab_size))
    try:
        gap = _gap(trunk, interface, batch)
        _try_training(trunk, interface, batch)
    except FOREIGN as error:
        return f"{type(error).__name__}: {error}"
    if not interface.windows:
        return "its layers do not ask transformers' attention registry"
    limit = ROUNDING.get(next(trunk.parameters()).dtype, COARSE)
    if not gap <= limit:
        return f"packed rows differ from rows alone by {gap:.1e}, which is not rounding"
    return _window_obstacle(config, interface)


def _probe_batch(vocabulary: int) -> MicroBatch:
    random = np.random.default_rng(0)
    first, second, third, start = (
        random.integers(0, vocabulary, size=size).tolist() for size in (4, 7, 8, 6)
    )
    answers = [start + first, start + second, third]
    rows: list[Row] = [(ids, [False] * (len(ids) - 1) + [True]) for ids in answers]
    (batch,) = pack(rows, 32, least_shared_tokens=2)
    return batch


def _gap(trunk: Any, interface: PackedInterface, batch: MicroBatch) -> float:
    """Largest distance of a position's hidden states, packed and alone, over their length."""
    device = next(iter(trunk.parameters())).device
    worst = 0.0
    with _evaluating(trunk):
        with interface.active(PackedLayout(batch, device)):
            packed = trunk(**packed_inputs(batch, device)).last_hidden_state[0].double()
        for leaf, (ids, _) in zip(batch.leaves.tolist(), batch.rows(), strict=True):
            row = torch.from_numpy(ids).to(device)[None]
            alone = trunk(input_ids=row, use_cache=False).last_hidden_state[0].double()
            chain = batch.chain(leaf)
            parts = zip(batch.segment_starts[chain], batch.segment_lengths[chain], strict=True)
            same = torch.cat([packed[start : start + size] for start, size in parts])
            distance = (same - alone).norm(dim=-1) / alone.norm(dim=-1)
            worst = max(worst, _largest(distance))
    return worst


def _largest(values: Tensor) -> float:
    return float(values.max()) if bool(values.isfinite().all()) else float("inf")


def _try_training(trunk: Any, interface: PackedInterface, batch: MicroBatch) -> None:
    """In training a layer may ask for more (dropout); the random state is as before afterwards."""
    device = next(iter(trunk.parameters())).device
    with torch.random.fork_rng(), torch.no_grad(), interface.active(PackedLayout(batch, device)):
        trunk(**packed_inputs(batch, device))


def _window_obstacle(config: Any, interface: PackedInterface) -> str | None:
    """Short rows cannot show that a window is left out: it must reach the attention function."""
    declared, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if getattr(config, "attention_chunk_size", None) is not None and not types:
        return "attention in chunks"
    for module, window in interface.windows.items():
        place = getattr(module, "layer_idx", None)
        slides = types is None or place is None or types[place] == "sliding_attention"
        expected = declared if slides else None
        if window != expected:
            return f"{type(module).__name__} has a window of {expected} and asks for {window}"
    return None


def rope_limit(config: Any) -> int | None:
    """Longest row whose rotary embedding does not depend on the rows beside it, None for any."""
    limits = []
    for found in _rope_settings(config):
        if found.get("rope_type") in ("dynamic", "longrope"):
            original = found.get("original_max_position_embeddings")
            limits.append(int(original or config.max_position_embeddings))
    return min(limits, default=None)


def _rope_settings(config: Any) -> list[dict[str, Any]]:
    """One table of settings, or one a layer type."""
    found = getattr(config, "rope_parameters", None) or {}
    tables = [value for value in found.values() if isinstance(value, dict) and "rope_type" in value]
    return tables or [found]


def logit_form(causal: Any) -> LogitForm:
    """What the model does to its head's product, as its settings say."""
    head = causal.get_output_embeddings()
    bias = None if head.bias is None else head.bias.detach()
    return LogitForm(bias, getattr(causal.config, "final_logit_softcapping", None))


def head_obstacle(causal: Any, trunk: Any) -> str | None:
    """The fast loss holds when logits are the head's product of the trunk's output: tried on four tokens."""
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear and not isinstance(head, HalfLinear):
        return f"the head is a {type(head).__name__}"
    if any(parameter.requires_grad for parameter in head.parameters()):
        return "the head is trained"
    for name in LOGIT_SETTINGS:
        if getattr(causal.config, name, None) not in (None, 1, 1.0):
            return f"logits are changed after the head ({name})"
    ids = torch.arange(1, 5, device=head.weight.device)[None]
    with _evaluating(causal):
        hidden = trunk(input_ids=ids, use_cache=False).last_hidden_state
        logits = causal(input_ids=ids, use_cache=False).logits
        ours, _ = LogitForm(cap=logit_form(causal).cap).of(head(hidden))
    limit = ROUNDING.get(logits.dtype, COARSE)
    same = float((ours - logits.float()).norm()) <= limit * float(logits.float().norm())
    return None if same else "logits are not the head's product of the trunk's output"
