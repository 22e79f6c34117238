"""Tiny random models and rows for the tests of the fast path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from tunesmith.train.packing import MicroBatch, Row, pack

SHAPE = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def base_model(family: str, **changes: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")._from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # ones or zeros would hide a forgotten factor
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def adapted(model: Any, **changes: Any) -> Any:
    """The model under LoRA whose B is not zero, so that every gradient is alive."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **changes}
    wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return wrapped.train()


def some_rows(count: int = 12, longest: int = 60, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    for size in random.integers(2, longest, size=count):
        tokens = random.integers(3, 200, size=size).tolist()
        answer = int(random.integers(1, size))
        rows.append((tokens, [place >= answer for place in range(size)]))
    return rows


def one_batch(rows: list[Row], micro_batch_tokens: int = 512) -> MicroBatch:
    batches = list(pack(rows, micro_batch_tokens))
    assert len(batches) == 1
    return batches[0]


def adapter_grads(model: Any) -> dict[str, torch.Tensor]:
    """Gradients of the trained weights; then clears them."""
    found = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    model.zero_grad(set_to_none=True)
    return found


def assert_same_grads(
    one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float = 2e-5
) -> None:
    """Equal to `tolerance` of each tensor's largest entry, none of them zero."""
    assert one.keys() == two.keys()
    for name, grad in one.items():
        scale = float(grad.abs().max())
        assert scale > 0, name
        gap = float((grad - two[name]).abs().max())
        assert gap <= tolerance * scale, f"{name}: {gap} of {scale}"
