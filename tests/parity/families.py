"""Families of causal models with random small shapes, and the plain way to their loss and gradients.

`parts` names the fast parts that a family gets with adapters on all linear layers; the table in
docs/train/how-it-works.md is made from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.train.packing import IGNORED, Row

BLOCKS = ("attention_block", "mlp_block", "head_loss")
SLIDING_BLOCKS = ("attention_block", "packed_attention", "mlp_block", "lora_linear", "head_loss")
PACKED = ("packed_attention", "lora_linear", "head_loss")

Draw = Callable[[np.random.Generator, dict[str, Any]], dict[str, Any]]


def flag(random: np.random.Generator) -> bool:
    return bool(random.integers(2))


def window(random: np.random.Generator) -> int:
    """Shorter than most rows."""
    return int(random.integers(4, 20))


def llama(random: np.random.Generator, shape: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": flag(random), "mlp_bias": flag(random)}


def mistral(random: np.random.Generator, shape: dict[str, Any]) -> dict[str, Any]:
    return {"sliding_window": window(random)}


def qwen2(random: np.random.Generator, shape: dict[str, Any]) -> dict[str, Any]:
    return {"sliding_window": window(random), "use_sliding_window": True, "max_window_layers": 1}


def qwen3(random: np.random.Generator, shape: dict[str, Any]) -> dict[str, Any]:
    return {**qwen2(random, shape), "attention_bias": flag(random)}


def gemma(random: np.random.Generator, shape: dict[str, Any]) -> dict[str, Any]:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return {
        "sliding_window": window(random),
        "layer_types": kinds[: shape["num_hidden_layers"]],
        "query_pre_attn_scalar": 12,
        "attention_bias": flag(random),
    }


def gemma2(random: np.random.Generator, shape: dict[str, Any]) -> dict[str, Any]:
    # Caps as small as these bend the scores of a random model too.
    caps = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.7}
    return {**gemma(random, shape), **caps}


def phi(random: np.random.Generator, shape: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": rope(0.5), "tie_word_embeddings": False}


def phi3(random: np.random.Generator, shape: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": rope(0.5), "sliding_window": window(random)}


def rope(share: float) -> dict[str, Any]:
    """Rotary embedding of a share of each head."""
    return {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}


@dataclass(frozen=True)
class Family:
    """`config` and `model` are class names in transformers; `free_heads`: heads need not add up to hidden."""

    config: str
    model: str
    draw: Draw
    parts: tuple[str, ...]
    free_heads: bool = True


FAMILIES = {
    "Llama, SmolLM2": Family("LlamaConfig", "LlamaForCausalLM", llama, BLOCKS),
    "Mistral": Family("MistralConfig", "MistralForCausalLM", mistral, SLIDING_BLOCKS),
    "Qwen2": Family("Qwen2Config", "Qwen2ForCausalLM", qwen2, SLIDING_BLOCKS, free_heads=False),
    "Qwen3": Family(
        "Qwen3Config",
        "Qwen3ForCausalLM",
        qwen3,
        ("packed_attention", "mlp_block", "lora_linear", "head_loss"),
    ),
    "Gemma 2": Family("Gemma2Config", "Gemma2ForCausalLM", gemma2, PACKED),
    "Gemma 3 (text)": Family("Gemma3TextConfig", "Gemma3ForCausalLM", gemma, PACKED),
    "Phi": Family("PhiConfig", "PhiForCausalLM", phi, PACKED, free_heads=False),
    "Phi-3": Family("Phi3Config", "Phi3ForCausalLM", phi3, PACKED, free_heads=False),
}


def random_model(name: str, seed: int, **changes: Any) -> Any:
    """A model of random shape and weights; biases and norms are not at their neutral values."""
    import transformers

    family = FAMILIES[name]
    random = np.random.default_rng([seed, len(name)])
    key_heads, group = (int(random.integers(1, 4)) for _ in range(2))
    head_dim = int(random.choice([8, 12, 16]))
    heads = key_heads * group
    hidden = heads * head_dim
    if family.free_heads:
        hidden = heads * 8 * -(-int(random.integers(3, 9)) // heads)
    shape = {
        "vocab_size": int(random.integers(120, 260)),
        "hidden_size": hidden,
        "intermediate_size": int(random.integers(5, 12)) * 8,
        "num_hidden_layers": int(random.integers(2, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "tie_word_embeddings": flag(random),
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family.free_heads:
        shape["head_dim"] = head_dim
    shape |= family.draw(random, shape) | changes
    torch.manual_seed(seed)
    config = getattr(transformers, family.config)(**shape)
    model = getattr(transformers, family.model)._from_config(config)
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def adapted(model: Any, seed: int = 1) -> Any:
    """Under LoRA on all linear layers, of a random rank, with a B that is not zero."""
    from peft import LoraConfig, get_peft_model

    rank = int(np.random.default_rng(seed).integers(1, 7))
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, settings)
    torch.manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return wrapped.train()


def random_rows(seed: int, count: int = 10, longest: int = 44, start: int = 0) -> list[Row]:
    """Rows of random tokens, their ends trained; the first `start` tokens are the same in all."""
    random = np.random.default_rng(seed)
    shared = random.integers(3, 100, size=start).tolist()
    rows: list[Row] = []
    for size in random.integers(3, longest, size=count):
        tokens = random.integers(3, 120, size=size).tolist()
        answer = int(random.integers(1, size))
        flags = [False] * start + [place >= answer for place in range(size)]
        rows.append((shared + tokens, flags))
    return rows


def row_by_row(model: Any, rows: list[Row], normaliser: float) -> tuple[float, dict[str, Any]]:
    """Loss and gradients by the model's own forward pass and PyTorch's cross-entropy, one row at a time."""
    total = 0.0
    for tokens, trained in rows:
        ids = torch.tensor(tokens)
        labels = torch.where(torch.tensor(trained), ids, IGNORED)[1:]
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits, labels, ignore_index=IGNORED, reduction="sum"
        )
        (loss / normaliser).backward()
        total += float(loss.detach())
    return total, take_grads(model)


def take_grads(model: Any) -> dict[str, torch.Tensor]:
    """Gradients of what is trained; then clears them."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same_grads(
    one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float = 3e-5
) -> None:
    """Equal within fp32 rounding: 3e-5 is 250 units of rounding, for sums of up to some 10,000 terms.

    The error of a sum follows its terms, not its result, so a tensor whose true gradient is zero
    (the bias of the keys) is held to a thousandth of the largest gradient of the model.
    """
    assert one.keys() == two.keys()
    largest = max(float(grad.abs().max()) for grad in one.values())
    assert largest > 0
    for name, grad in one.items():
        scale = max(float(grad.abs().max()), 1e-3 * largest)
        gap = float((grad - two[name]).abs().max())
        assert gap <= tolerance * scale, f"{name}: {gap} of {scale}"
