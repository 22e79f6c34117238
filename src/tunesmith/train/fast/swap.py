"""Finds what the fast path holds for in a model and swaps those modules' forward passes.

A swap sets `forward` on the module itself: names, parameters, state dicts and hooks stay as they
are, and outside of a training step every module runs its own forward pass (so generation works).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tunesmith.train.fast.attention import PackedInterface, PackedLayout
from tunesmith.train.fast.blocks import AttentionBlock, MlpBlock, attention_block, mlp_block
from tunesmith.train.fast.head import LogitForm
from tunesmith.train.fast.kernels import why_not
from tunesmith.train.fast.lora import LoraGroup, Projection, linear_with_lora, read_projection
from tunesmith.train.fast.parts import FastPathReport, FastSwitches
from tunesmith.train.fast.probe import (
    causal_model,
    head_obstacle,
    logit_form,
    packed_obstacle,
    rope_limit,
)
from tunesmith.train.fast.recompute import recomputed
from tunesmith.train.fast.segments import AttentionShape, SegmentPlan
from tunesmith.train.packing import MicroBatch

__all__ = ["FastPath", "apply", "fast_path_of", "give_back_freed", "remove"]

LLAMA_SHAPED = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)
"""Decoder layers whose forward pass is the two blocks of `blocks.py`, read in their source; where
attention has more inside (norms of queries and keys), only the second one holds."""

ATTRIBUTE = "tunesmith_fast_path"

Forward = Callable[..., Any]


@dataclass
class FastPath:
    """What `apply` attached to a model."""

    trunk: nn.Module
    """The model without its head."""
    head: nn.Linear | None
    """Frozen head of the fast loss; None for the plain loss."""
    form: LogitForm
    """What the model does to the head's product."""
    report: FastPathReport
    rotary: nn.Module | None = None
    shape: AttentionShape | None = None
    """Heads of attention blocks; None when there are none."""
    blocks_window: int | None = None
    """Longest row that every attention block holds for; None for any."""
    blocks_only: bool = False
    """True when every layer has an attention block."""
    interface: PackedInterface | None = None
    """Packed attention of the layers (or rows) that no attention block holds for."""
    limit: int | None = None
    """Longest row that may be packed; None for any."""
    groups: list[LoraGroup] = field(default_factory=list)
    swapped: list[nn.Module] = field(default_factory=list)
    active: bool = False
    """True inside of a training step."""
    batch: MicroBatch | None = None
    """The batch in flight."""
    longest: int = 0
    """Its longest row in positions."""
    plan: SegmentPlan | None = None
    """Its segments for attention blocks."""
    layout: PackedLayout | None = None
    """Its segments for the model's own layers."""

    @property
    def packed(self) -> bool:
        """True when the rows in flight are laid end to end."""
        return self.plan is not None or self.layout is not None

    def attention(self) -> AbstractContextManager[None]:
        """While it is open, the model's own layers attend to the segments of `layout`, if there is one."""
        if self.interface is None or self.layout is None:
            return nullcontext()
        return self.interface.active(self.layout)


def fast_path_of(model: nn.Module) -> FastPath | None:
    """What `apply` attached, or None."""
    found: FastPath | None = getattr(model, ATTRIBUTE, None)
    return found


def apply(model: nn.Module, switches: FastSwitches) -> FastPathReport:
    """Put a PEFT-wrapped (or plain) Hugging Face causal model on the fast path, in place.

    Parts that do not hold for a module run plain there, and the report names them. Moving, casting
    or merging the model's weights afterwards needs `remove` first.

    Raises:
        ValueError: the model is on the fast path already.
    """
    if fast_path_of(model) is not None:
        raise ValueError("the model is on the fast path already; call remove() first")
    causal = causal_model(model)
    trunk = causal.base_model
    report = FastPathReport()
    report.kernels = _kernels_obstacle(causal, switches)
    path = FastPath(trunk, None, LogitForm(), report)
    layers = [
        (name, module)
        for name, module in trunk.named_modules()
        if type(module).__name__ in LLAMA_SHAPED
    ]
    blocked = _plan_attention(path, layers) if switches.attention_block else {}
    _plan_packing(path, causal, layers, blocked, switches.packed_attention)
    lent: set[int] = set()
    if blocked or (layers and switches.mlp_block):
        lent = _swap_layers(path, layers, blocked, switches.mlp_block)
    if switches.lora_linear:
        _swap_linears(path, causal, lent)
    if switches.head_loss:
        reason = head_obstacle(causal, trunk)
        report.add("head_loss", type(causal).__name__, reason)
        if reason is None:
            path.head, path.form = causal.get_output_embeddings(), logit_form(causal)
    give_back_freed()
    object.__setattr__(model, ATTRIBUTE, path)
    return report


def _kernels_obstacle(causal: nn.Module, switches: FastSwitches) -> str:
    if not switches.kernels:
        return "switched off"
    device = next(causal.parameters()).device.type
    return why_not() if device == "cpu" else f"the model is on {device}"


def remove(model: nn.Module) -> None:
    """Undo `apply`; does nothing to a model that is not on the fast path."""
    path = fast_path_of(model)
    if path is None:
        return
    for module in path.swapped:
        del module.forward
    for group in path.groups:
        group.release()
    if path.interface is not None:
        path.interface.release()
    object.__delattr__(model, ATTRIBUTE)


def give_back_freed() -> None:
    """Return freed memory to the system: weights that were joined or quantised leave holes of their size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc alone has it
        trim(0)


def _plan_attention(path: FastPath, layers: list[tuple[str, nn.Module]]) -> dict[str, int | None]:
    """The layers that get an attention block, and the longest row that it holds for (None: any)."""
    blocked: dict[str, int | None] = {}
    for name, layer in layers:
        reason = _attention_obstacle(layer, path.trunk)
        path.report.add("attention_block", name, reason)
        if reason is None:
            blocked[name] = _window(layer)
            path.shape = _shape_of(layer.self_attn)
            path.rotary = path.trunk.rotary_emb  # type: ignore[assignment]
    path.blocks_window = min((one for one in blocked.values() if one is not None), default=None)
    return blocked


def _window(layer: Any) -> int | None:
    """Sliding window of a layer: its own where layers differ, else the model's."""
    attention = layer.self_attn
    found: int | None = getattr(
        attention, "sliding_window", getattr(attention.config, "sliding_window", None)
    )
    return found


def _plan_packing(
    path: FastPath,
    causal: Any,
    layers: list[tuple[str, nn.Module]],
    blocked: dict[str, int | None],
    wanted: bool,
) -> None:
    """Find out whether rows may be packed where no attention block holds."""
    path.blocks_only = bool(blocked) and len(blocked) == len(layers)
    if wanted and not (path.blocks_only and path.blocks_window is None):
        interface = PackedInterface(path.trunk)
        reason = packed_obstacle(causal, path.trunk, interface)
        if reason is None:
            free = [name for name, window in blocked.items() if window is None]
            path.interface, path.limit = interface, rope_limit(causal.config.get_text_config())
            path.report.fast["packed_attention"] = len(interface.windows) - len(free)
        else:
            interface.release()
            path.report.add("packed_attention", type(causal).__name__, reason)
    path.report.packed = path.blocks_only or path.interface is not None
    if not path.report.packed and blocked:
        _withdraw(path, blocked)


def _withdraw(path: FastPath, blocked: dict[str, int | None]) -> None:
    """Attention blocks need packed rows: a layer that cannot have them keeps all others from it."""
    path.report.fast.pop("attention_block")
    for name in blocked:
        path.report.add("attention_block", name, "another layer's attention cannot be packed")
    blocked.clear()


def _swap_layers(
    path: FastPath,
    layers: list[tuple[str, nn.Module]],
    blocked: dict[str, int | None],
    mlp_block: bool,
) -> set[int]:
    """Returns the ids of weights whose layers also run without their block, for rows beyond its window."""
    blocks: list[tuple[Any, AttentionBlock | None, MlpBlock | None]] = []
    for name, layer in layers:
        one = _attention_weights(layer, path) if name in blocked else None
        two = _mlp_weights(layer, path, name) if mlp_block else None
        blocks.append((layer, one, two))
    for layer, one, two in blocks:
        layer.forward = _layer_forward(path, layer, one, two)
        path.swapped.append(layer)
    sliding = [one for layer, one, _ in blocks if one is not None and _window(layer) is not None]
    groups = [group for one in sliding for group in (one.qkv, one.out)]
    return {id(p.base) for group in groups for p in group.projections}


def _shape_of(attention: Any) -> AttentionShape:
    config = attention.config
    return AttentionShape(
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        scale=float(attention.scaling),
    )


def _attention_obstacle(layer: Any, trunk: Any) -> str | None:
    attention, config = layer.self_attn, layer.self_attn.config
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        found = read_projection(getattr(attention, name))
        if isinstance(found, str):
            return f"{name}: {found}"
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    checks = {
        f"rotary embedding of type {kind}": kind in ("dynamic", "longrope"),
        "queries and keys are normed": hasattr(attention, "q_norm"),
        "no rotary embedding": not hasattr(trunk, "rotary_emb"),
        "attention dropout": float(getattr(config, "attention_dropout", 0.0) or 0.0) > 0.0,
        "the norm is trained": layer.input_layernorm.weight.requires_grad,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _attention_weights(layer: Any, path: FastPath) -> AttentionBlock:
    attention, norm = layer.self_attn, layer.input_layernorm
    qkv = _group(path, [attention.q_proj, attention.k_proj, attention.v_proj])
    out = _group(path, [attention.o_proj])
    weight, eps = norm.weight.detach(), float(norm.variance_epsilon)
    return AttentionBlock(weight, eps, qkv, out)


def _mlp_weights(layer: Any, path: FastPath, name: str) -> MlpBlock | None:
    reason = _mlp_obstacle(layer)
    path.report.add("mlp_block", name, reason)
    if reason is not None:
        return None
    mlp, norm = layer.mlp, layer.post_attention_layernorm
    gate_up = _group(path, [mlp.gate_proj, mlp.up_proj])
    down = _group(path, [mlp.down_proj])
    return MlpBlock(norm.weight.detach(), float(norm.variance_epsilon), gate_up, down)


def _mlp_obstacle(layer: Any) -> str | None:
    for name in ("gate_proj", "up_proj", "down_proj"):
        found = read_projection(getattr(layer.mlp, name))
        if isinstance(found, str):
            return f"{name}: {found}"
    if layer.mlp.config.hidden_act not in ("silu", "swish"):
        return f"activation {layer.mlp.config.hidden_act}"
    if layer.post_attention_layernorm.weight.requires_grad:
        return "the norm is trained"
    return None


def _group(path: FastPath, modules: list[nn.Module]) -> LoraGroup:
    projections = [read_projection(module) for module in modules]
    group = LoraGroup([found for found in projections if isinstance(found, Projection)])
    path.groups.append(group)
    return group


def _layer_forward(
    path: FastPath, layer: Any, attention: AttentionBlock | None, mlp: MlpBlock | None
) -> Forward:
    original, window = layer.forward, _window(layer)

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not path.active:
            return original(hidden_states, *args, **kwargs)
        shape, width = hidden_states.shape, hidden_states.shape[-1]
        fits = window is None or path.longest <= window
        if attention is not None and path.plan is not None and fits:
            hidden = attention_block(hidden_states.view(-1, width), attention, path.plan)
        else:
            normed = layer.input_layernorm(hidden_states)
            mixed = layer.self_attn(normed, *args, **kwargs)[0]
            hidden = (hidden_states + mixed).view(-1, width)
        if mlp is not None:
            return recomputed(layer, mlp_block, hidden, mlp).view(shape)
        normed = layer.post_attention_layernorm(hidden)
        return (hidden + layer.mlp(normed)).view(shape)

    return forward


def _swap_linears(path: FastPath, causal: nn.Module, lent: set[int]) -> None:
    """LoRA layers that no fast block took, or not for every row, get a function of their own."""
    taken = {id(p.base) for group in path.groups for p in group.projections} - lent
    for name, module in causal.named_modules():
        if not hasattr(module, "lora_A") or not hasattr(module, "base_layer"):
            continue
        if id(module.base_layer) in taken:
            continue
        found = read_projection(module)
        path.report.add("lora_linear", name, found if isinstance(found, str) else None)
        if isinstance(found, str):
            continue
        group = LoraGroup([found])
        path.groups.append(group)
        module.forward = _linear_forward(path, module, group)
        path.swapped.append(module)


def _linear_forward(path: FastPath, module: Any, group: LoraGroup) -> Forward:
    original = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not path.active:
            return original(x, *args, **kwargs)
        return linear_with_lora(x.to(group.dtype), group).to(x.dtype)

    return forward
