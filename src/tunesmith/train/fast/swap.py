"""Finds what the fast path holds for in a model and swaps those modules' forward passes.

A swap sets `forward` on the module itself: names, parameters, state dicts and hooks stay as they
are, and outside of a training step every module runs its own forward pass (so generation works).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.train.fast.blocks import AttentionBlock, MlpBlock, attention_block, mlp_block
from tunesmith.train.fast.lora import LoraGroup, Projection, linear_with_lora, read_projection
from tunesmith.train.fast.parts import FastPathReport, FastSwitches
from tunesmith.train.fast.segments import AttentionShape, SegmentPlan

__all__ = ["FastPath", "apply", "fast_path_of", "remove"]

LLAMA_SHAPED = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})
"""Decoder layers whose forward pass is exactly the two blocks of `blocks.py`, read in their source."""

LOGIT_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "logits_scale")
"""Config keys by which families change logits after the head; small logits would not show it."""

ATTRIBUTE = "tunesmith_fast_path"

Forward = Callable[..., Any]


@dataclass
class FastPath:
    """What `apply` attached to a model."""

    trunk: nn.Module
    """The model without its head."""
    head: nn.Linear | None
    """Frozen head of the fast loss; None for the plain loss."""
    rotary: nn.Module | None
    shape: AttentionShape | None
    """Heads of every layer's attention; None when rows must be padded instead of packed."""
    window: int | None
    """Longest segment for which attention is not cut by a sliding window."""
    report: FastPathReport
    groups: list[LoraGroup] = field(default_factory=list)
    swapped: list[nn.Module] = field(default_factory=list)
    active: bool = False
    """True inside of a training step."""
    plan: SegmentPlan | None = None
    """Segments of the packed batch in flight."""


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
    causal = _causal_model(model)
    trunk = causal.base_model
    _own_storage(causal)
    report = FastPathReport()
    path = FastPath(trunk, None, None, None, None, report)
    layers = [
        (name, module)
        for name, module in trunk.named_modules()
        if type(module).__name__ in LLAMA_SHAPED
    ]
    if layers and (switches.attention_block or switches.mlp_block):
        _swap_layers(path, layers, switches)
    if switches.lora_linear:
        _swap_linears(path, causal)
    if switches.head_loss:
        reason = _head_obstacle(causal, trunk)
        report.add("head_loss", type(causal).__name__, reason)
        path.head = None if reason else causal.get_output_embeddings()
    object.__setattr__(model, ATTRIBUTE, path)
    return report


def remove(model: nn.Module) -> None:
    """Undo `apply`; does nothing to a model that is not on the fast path."""
    path = fast_path_of(model)
    if path is None:
        return
    for module in path.swapped:
        del module.forward
    for group in path.groups:
        group.release()
    object.__delattr__(model, ATTRIBUTE)


def _own_storage(model: nn.Module) -> None:
    """Copy frozen CPU weights into memory of their own, one by one.

    A checkpoint that was mapped from disk is let go: else its pages would stay resident beside the
    joint matrices that `LoraGroup` makes of them.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def _causal_model(model: nn.Module) -> Any:
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _swap_layers(
    path: FastPath, layers: list[tuple[str, nn.Module]], switches: FastSwitches
) -> None:
    blocks: list[tuple[Any, AttentionBlock | None, MlpBlock | None]] = []
    attention = switches.attention_block and _plan_attention(path, layers)
    for name, layer in layers:
        one = _attention_weights(layer, path, switches) if attention else None
        two = _mlp_weights(layer, path, name) if switches.mlp_block else None
        blocks.append((layer, one, two))
    for layer, one, two in blocks:
        layer.forward = _layer_forward(path, layer, one, two)
        path.swapped.append(layer)


def _plan_attention(path: FastPath, layers: list[tuple[str, nn.Module]]) -> bool:
    """Packed layout needs every layer's attention; one that does not hold makes all of them plain."""
    reasons = {name: _attention_obstacle(layer, path.trunk) for name, layer in layers}
    for name, reason in reasons.items():
        if reason is not None:
            path.report.add("attention_block", name, reason)
    if any(reason is not None for reason in reasons.values()):
        return False
    attention: Any = layers[0][1].self_attn
    config: Any = attention.config
    path.shape = _shape_of(attention)
    path.rotary = path.trunk.rotary_emb  # type: ignore[assignment]
    path.window = getattr(config, "sliding_window", None)
    for name, _ in layers:
        path.report.add("attention_block", name, None)
    return True


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
        "no rotary embedding": not hasattr(trunk, "rotary_emb"),
        "attention dropout": float(getattr(config, "attention_dropout", 0.0) or 0.0) > 0.0,
        "the norm is trained": layer.input_layernorm.weight.requires_grad,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _attention_weights(layer: Any, path: FastPath, switches: FastSwitches) -> AttentionBlock:
    attention, norm = layer.self_attn, layer.input_layernorm
    qkv = _group(path, [attention.q_proj, attention.k_proj, attention.v_proj])
    out = _group(path, [attention.o_proj])
    weight, eps = norm.weight.detach(), float(norm.variance_epsilon)
    return AttentionBlock(weight, eps, qkv, out, switches.keep_attention)


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
    original = layer.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not path.active:
            return original(hidden_states, *args, **kwargs)
        shape, width = hidden_states.shape, hidden_states.shape[-1]
        if attention is not None and path.plan is not None:
            hidden = attention_block(hidden_states.view(-1, width), attention, path.plan)
        else:
            normed = layer.input_layernorm(hidden_states)
            mixed = layer.self_attn(normed, *args, **kwargs)[0]
            hidden = (hidden_states + mixed).view(-1, width)
        if mlp is not None:
            return mlp_block(hidden, mlp).view(shape)
        normed = layer.post_attention_layernorm(hidden)
        return (hidden + layer.mlp(normed)).view(shape)

    return forward


def _swap_linears(path: FastPath, causal: nn.Module) -> None:
    """LoRA layers that no fast block took get a function of their own."""
    taken = {id(p.base) for group in path.groups for p in group.projections}
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
        return linear_with_lora(x.to(group.weight.dtype), group).to(x.dtype)

    return forward


def _head_obstacle(causal: Any, trunk: Any) -> str | None:
    """The fast loss holds when logits are the head's product of the trunk's output: tried on four tokens."""
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear:
        return f"the head is a {type(head).__name__}"
    if head.weight.requires_grad or head.bias is not None:
        return "the head is trained or has a bias"
    for name in LOGIT_SETTINGS:
        if getattr(causal.config, name, None) not in (None, 1, 1.0):
            return f"logits are changed after the head ({name})"
    ids = torch.arange(1, 5, device=head.weight.device)[None]
    modes = [(module, module.training) for module in causal.modules()]
    causal.eval()
    try:
        with torch.no_grad():
            hidden = trunk(input_ids=ids, use_cache=False).last_hidden_state
            logits = causal(input_ids=ids, use_cache=False).logits
            same = torch.equal(head(hidden), logits)
    finally:
        for module, mode in modes:
            module.training = mode
    return None if same else "logits are not the head's product of the trunk's output"
