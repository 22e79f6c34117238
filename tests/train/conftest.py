"""A tiny random Llama with the short tokenizer, and a small sealed dataset."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from tunesmith.models.load import save_model
from tunesmith.store import Artifact, Run, failpoints

sys.path.insert(0, str(Path(__file__).parent))
from small_base import save_small_base, sealed_sums


@pytest.fixture(scope="session")
def tokenizer(short_tokenizer):
    return short_tokenizer


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory, tokenizer) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("base")
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


def chat(question: str, answer: str) -> dict:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        "meta": {},
    }


def seal_dataset(folder: Path, train: list[dict], validation: list[dict]) -> Artifact:
    with Run.open(folder, "data", inputs={}) as at:
        for name, rows in (("train", train), ("validation", validation), ("test", validation)):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            at.write_text(f"{name}.jsonl", "".join(lines))
        return at.finish({"name": "sums", "rows": {}, "databases": []})


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Artifact:
    train = [
        chat(f"what is {a} plus {b}?", f"the sum is {a + b}.") for a in range(8) for b in range(8)
    ]
    validation = [chat(f"what is {a} plus {a}?", f"the sum is {a + a}.") for a in range(20, 28)]
    return seal_dataset(tmp_path_factory.mktemp("dataset") / "data", train, validation)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return save_small_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Artifact:
    return sealed_sums(tmp_path_factory.mktemp("rows") / "data")


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    failpoints.arm("")


@pytest.fixture
def _survives_sigterm():
    """So that a signal that nobody catches fails a test and does not end all of them."""

    def unheard(number, frame):
        raise AssertionError("nobody caught the signal")

    before = signal.signal(signal.SIGTERM, unheard)
    yield
    signal.signal(signal.SIGTERM, before)
