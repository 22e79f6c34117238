"""Time and memory of a step against rows, length, rank, layers and width, on random weights."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from contestant import Clock, figures

WORDS = (
    "state",
    "city",
    "river",
    "lake",
    "mountain",
    "border",
    "area",
    "capital",
    "people",
    "high",
    "low",
)


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Steps of one micro batch that holds `rows` rows of `length` tokens each.

    Settings: rows, length, rank, layers, width, steps. The model has the Llama shape: heads of 64, three
    query heads a key head, a SwiGLU of 8/3 width, SmolLM2's vocabulary, tied embeddings.
    """
    import ours

    asked = job["settings"]
    out = Path(job["out"])
    parameters = make_model(out / "model", asked)
    made = {name: out / f"{name}.jsonl" for name in ("rows", "validation")}
    count = asked["rows"] * asked["steps"]
    write_rows(made["rows"], count, asked["length"], out / "model")
    write_rows(made["validation"], 1, min(asked["length"], 128), out / "model")
    settings = {
        "method": {"kind": "lora", "rank": asked["rank"], "alpha": 2 * asked["rank"]},
        "batch_tokens": asked["rows"] * asked["length"],
        "micro_batch_tokens": asked["rows"] * asked["length"],
        "max_row_tokens": 4 * asked["length"],
        "max_steps": asked["steps"],
        "epochs": 4,
    }
    paths = {name: str(path) for name, path in made.items()}
    session = ours.open_session({**job, **paths}, settings, base=str(out / "model"))
    clock = Clock()
    found = figures(clock, *ours.run_steps(session, asked["steps"], clock), warm=1)
    return found | {
        "parameters": parameters,
        "precision": session.plan.precision,
    }


def make_model(folder: Path, asked: dict[str, Any]) -> int:
    """A random model as a folder on disk; returns how many parameters it has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_tokenizer, resolve_base

    tokenizer = load_tokenizer(resolve_base(ModelConfig()))
    width = asked["width"]
    heads = width // 64
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=(width * 8 // 3 + 63) // 64 * 64,
        num_hidden_layers=asked["layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def write_rows(path: Path, count: int, length: int, folder: Path) -> None:
    """Rows whose rendered length is `length` tokens or at most a few less; a third is answer."""
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_tokenizer

    renderer = ChatRenderer(load_tokenizer(folder))
    draw, lines = random.Random(length), []
    for _ in range(count):
        body = [draw.choice(WORDS) for _ in range(length)]
        low, high = 2, length
        while high - low > 1:  # the longest text that still fits
            middle = (low + high) // 2
            fits = len(renderer.render(_messages(body[:middle])).token_ids) <= length
            low, high = (middle, high) if fits else (low, middle)
        lines.append(json.dumps({"messages": _messages(body[:low]), "meta": {}}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _messages(words: list[str]) -> list[dict[str, str]]:
    cut = max(1, len(words) * 2 // 3)
    return [
        {"role": "user", "content": " ".join(words[:cut])},
        {"role": "assistant", "content": " ".join(words[cut:]) or "yes"},
    ]
