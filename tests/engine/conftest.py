"""A tiny random Llama with the embedded model's tokenizer, and the embedded GGUF file."""

from __future__ import annotations

import pytest

from tunesmith.engine import Sampling
from tunesmith.models.embedded import embedded_gguf

STOP_ID = 2


@pytest.fixture(scope="session")
def tokenizer(embedded_tokenizer):
    return embedded_tokenizer


@pytest.fixture(scope="session")
def tiny_model(tokenizer):
    """Its weights are large, so that answers vary and a wrong position changes them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=STOP_ID,
        pad_token_id=STOP_ID,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def prompts(tokenizer):
    """Prompts of many lengths: some share a long beginning, two are equal, one is a single token."""
    schema = "CREATE TABLE city (name TEXT, population INTEGER, state TEXT);\n"
    texts = [
        schema + "How many cities are there?",
        schema + "Which city is the largest?",
        schema,
        "Hello",
        "What is the capital of France?",
        schema + "How many cities are there?",
        schema + "How many people live in Ohio, all cities together?",
        "x",
        "What is the capital of Italy, and how far is it from the sea?",
    ]
    return [tuple(tokenizer.encode(text)) for text in texts]


@pytest.fixture(scope="session")
def gguf():
    return embedded_gguf()


@pytest.fixture
def greedy():
    return Sampling(max_tokens=16)
