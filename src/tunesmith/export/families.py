"""What llama.cpp computes otherwise than transformers, by a model's config.

llama.cpp fixes some settings by architecture, and its converter leaves those out without a word. The
files then load and answer, wrongly. Each rule here was found by comparing logits of tiny random
models (tests/export/test_families.py, docs/export/families.md), and names the setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, listed

__all__ = ["check_family", "exact_context"]

Config = Mapping[str, Any]

SILU = frozenset({"silu", "swish"})
GELU = frozenset({"gelu_pytorch_tanh"})
ACTIVATIONS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3"), SILU),
    **dict.fromkeys(("gemma2", "gemma3_text"), GELU),
}
"""Activations of the families that are proved; llama.cpp reads none from the file."""
ROPES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(
        ("llama", "mistral"), frozenset({"default", "linear", "yarn", "llama3", "dynamic"})
    ),
    **dict.fromkeys(
        ("qwen2", "qwen3", "smollm3"), frozenset({"default", "linear", "yarn", "dynamic"})
    ),
    "gemma2": frozenset({"default"}),
    "gemma3_text": frozenset({"default", "linear"}),
    "phi3": frozenset({"default", "longrope"}),
}
"""Kinds of rotary embedding that the converter writes and llama.cpp reads, by family."""
NO_BIAS = ("qwen3", "gemma2", "gemma3_text", "smollm3", "phi3", "mistral")
IGNORES_WINDOW = ("mistral", "qwen2", "qwen3", "smollm3", "phi3")
YARN_DEFAULTS: Mapping[str, float | bool | None] = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": None,
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
}


def check_family(config: Config, folder: Path) -> None:
    """Refuse settings that would be lost in a GGUF file; a family without rules passes.

    Args:
        config: as transformers fills it in, text part of a multimodal model included.
        folder: whose config it is, for the message.

    Raises:
        ModelError: names every such setting with its value.
    """
    text = _text(config)
    kind = str(text.get("model_type"))
    if kind not in ROPES:
        return
    problems = [*_general(kind, text), *_rope(kind, text), *_SPECIAL.get(kind, _nothing)(text)]
    if problems:
        raise ModelError(
            f"the model in {folder} would answer otherwise as GGUF:\n{listed(problems)}",
            why=f"llama.cpp computes {kind} models without these settings, and says nothing",
            fix="leave the GGUF forms out of export.forms, such as --set 'export.forms=[merged]'",
        )


def exact_context(config: Config) -> int | None:
    """Longest context up to which llama.cpp computes the same; None for the model's own.

    It attends to everything where these families attend to a window, which is the same as long as
    the window holds everything. And it takes LongRoPE's factors by the size of the context, where
    transformers takes them by the length of the text.
    """
    text = _text(config)
    kind, limits = text.get("model_type"), []
    layers, window = text.get("layer_types"), text.get("sliding_window")
    slides = "sliding_attention" in layers if layers else kind in ("mistral", "phi3")
    if kind in IGNORES_WINDOW and slides and window:
        limits.append(int(window))
    rope = text.get("rope_parameters") or {}
    if kind == "phi3" and rope.get("rope_type") == "longrope":
        name = "original_max_position_embeddings"
        limits.append(int(rope.get(name) or text[name]))
    return min(limits, default=None)


def _text(config: Config) -> Config:
    return {**config, **(config.get("text_config") or {})}


def _nothing(_config: Config) -> Iterator[str]:
    yield from ()


def _general(kind: str, config: Config) -> Iterator[str]:
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation is not None and activation not in ACTIVATIONS[kind]:
        yield f"activation {activation!r}: llama.cpp takes {sorted(ACTIVATIONS[kind])[0]!r}"
    for name in ("attention_bias", "mlp_bias"):
        if kind in NO_BIAS and config.get(name):
            yield f"{name}: true: llama.cpp's {kind} has no such biases"


def _rope(kind: str, config: Config) -> Iterator[str]:
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_layer = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    for one in by_layer.values() or [settings]:
        rope = str(one.get("rope_type") or one.get("type") or "default")
        if rope not in ROPES[kind]:
            yield f"rope_type {rope!r}: llama.cpp's {kind} knows {', '.join(sorted(ROPES[kind]))}"
        if rope == "yarn":
            yield from _yarn(one)
    if kind == "gemma3_text" and by_layer:
        sliding = by_layer.get("sliding_attention", {})
        if sliding.get("rope_type", "default") != "default":
            yield f"rope_type {sliding['rope_type']!r} in sliding layers: llama.cpp scales full layers"


def _yarn(settings: Config) -> Iterator[str]:
    for name, default in YARN_DEFAULTS.items():
        value = settings.get(name)
        if value is not None and value != default:
            yield f"YaRN's {name} {value}: llama.cpp computes with {default or 'its own'}"


def _gemma2(config: Config) -> Iterator[str]:
    yield from _scalar(config, large=46)
    wanted = ["full_attention" if i % 2 else "sliding_attention" for i in range(_layers(config))]
    yield from _pattern(config, wanted, "every second layer is full")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not config.get(name):
            yield f"{name} {config.get(name)}: llama.cpp's Gemma 2 needs one"
    if not config.get("tie_word_embeddings", True):
        yield "tie_word_embeddings: false: llama.cpp's Gemma 2 takes the embedding as its head"


def _gemma3(config: Config) -> Iterator[str]:
    yield from _scalar(config, large=62)
    wanted = [
        "sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(_layers(config))
    ]
    yield from _pattern(config, wanted, "every sixth layer is full")
    if config.get("attn_logit_softcapping"):
        yield "attn_logit_softcapping: llama.cpp's Gemma 3 has none"
    if config.get("use_bidirectional_attention"):
        yield "use_bidirectional_attention: true: llama.cpp's Gemma 3 looks back only"


def _scalar(config: Config, large: int) -> Iterator[str]:
    """The scale of the scores, which llama.cpp takes from the head's size, or from the width in the
    largest model of the family (told by its number of layers)."""
    heads, scalar = int(config["num_attention_heads"]), config.get("query_pre_attn_scalar")
    head = int(config["hidden_size"]) / heads if _layers(config) == large else config["head_dim"]
    if scalar is not None and scalar != head:
        yield f"query_pre_attn_scalar {scalar}: llama.cpp takes {head:g}"


def _pattern(config: Config, wanted: Sequence[str], told: str) -> Iterator[str]:
    found = config.get("layer_types")
    if found is not None and list(found) != list(wanted):
        yield f"layer_types: in llama.cpp {told}, here the order is another"


def _smollm3(config: Config) -> Iterator[str]:
    layers = config.get("no_rope_layers")
    if layers is not None and list(layers) != [int((i + 1) % 4 != 0) for i in range(len(layers))]:
        yield "no_rope_layers: in llama.cpp every fourth layer is without rotary embedding"


def _layers(config: Config) -> int:
    return int(config["num_hidden_layers"])


_SPECIAL: Mapping[str, Callable[[Config], Iterator[str]]] = {
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "smollm3": _smollm3,
}
