"""A tiny random Llama whose tokens are bytes, in a folder as `load_model` reads it: loads in no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TRAIN_SCRIPT = """
import json, sys
from tunesmith.config import recipe_from
from tunesmith.errors import TunesmithError
from tunesmith.store import Artifact, Run
from tunesmith.train import run
place, dataset, values = sys.argv[1:4]
parent = Artifact.open(dataset)
try:
    with Run.open(place, "train", inputs={}, parents=[parent.as_parent()], resume=True) as at:
        run(recipe_from(json.loads(values)), at, parent)
except TunesmithError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
"""Trains in a process of its own: arguments are the run, the dataset and the recipe as JSON; it may be run again."""


def byte_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    words.add_special_tokens([AddedToken(text, special=True) for text in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def save_small_base(folder: Path, *, layers: int = 2) -> Path:
    """Random weights of a fixed seed, drawn by torch's CPU generator: the same on every machine."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.models.load import save_model

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


def write_sums(path: Path, count: int = 10) -> Path:
    """`count` squared rows of one prompt and one completion."""
    rows = [
        {"prompt": f"what is {a} plus {b}?", "completion": f"the sum is {a + b}."}
        for a in range(count)
        for b in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_pairs(path: Path, count: int = 6) -> Path:
    """`count` squared rows of one prompt and two answers."""
    pairs = [pair(a, b) for a in range(count) for b in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return path


def pair(a: int, b: int) -> dict[str, Any]:
    """A prompt with a right and a wrong answer."""
    said = [[{"role": "assistant", "content": f"it is {total}."}] for total in (a + b, a + b + 7)]
    asked = [{"role": "user", "content": f"what is {a} plus {b}?"}]
    return {"prompt": asked, "chosen": said[0], "rejected": said[1]}


def sealed_pairs(folder: Path, train: int = 16, validation: int = 4) -> Any:
    """A sealed dataset of pairs."""
    from tunesmith.store import Run

    def row(a: int, b: int) -> str:
        return json.dumps(pair(a, b) | {"meta": {}}) + "\n"

    with Run.open(folder, "data", inputs={}) as at:
        at.write_text("train.jsonl", "".join(row(i, 3 * i) for i in range(train)))
        for name in ("validation", "test"):
            at.write_text(f"{name}.jsonl", "".join(row(i + 50, i) for i in range(validation)))
        return at.finish({"name": "pairs", "rows": {}, "databases": []})


def sealed_sums(folder: Path, train: int = 36, validation: int = 6) -> Any:
    """A sealed dataset of sums."""
    from tunesmith.store import Run

    def row(a: int, b: int) -> str:
        said = [("user", f"what is {a} plus {b}?"), ("assistant", f"the sum is {a + b}.")]
        messages = [{"role": role, "content": content} for role, content in said]
        return json.dumps({"messages": messages, "meta": {}}) + "\n"

    with Run.open(folder, "data", inputs={}) as at:
        at.write_text("train.jsonl", "".join(row(i, 3 * i) for i in range(train)))
        for name in ("validation", "test"):
            at.write_text(f"{name}.jsonl", "".join(row(i + 50, i) for i in range(validation)))
        return at.finish({"name": "sums", "rows": {}, "databases": []})


def values(base: Path, **train: Any) -> dict[str, Any]:
    """A recipe for short steps, with whatever of `train` is given instead."""
    settings = {
        "epochs": 2,
        "batch_tokens": 256,
        "micro_batch_tokens": 128,
        "precision": "fp32",
        "threads": 1,
        "sample_rows": 0,
        "validate_every_steps": 2,
        "checkpoint_every_steps": 1,
        "method": {"kind": "lora", "rank": 2},
    }
    return {"model": {"base": str(base)}, "train": {**settings, **train}}


def train(place: Path, rows: Any, recipe: dict[str, Any]) -> Any:
    """Trains in this process, or goes on; the sealed run."""
    from tunesmith.config import recipe_from
    from tunesmith.store import Run
    from tunesmith.train import run

    with Run.open(place, "train", inputs={}, parents=[rows.as_parent()], resume=True) as at:
        return run(recipe_from(recipe), at, rows).artifact
