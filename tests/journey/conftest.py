"""A tiny random Llama with the real tokenizer, and the command: as a user starts it, and then in forks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest

PROGRAM = Path(sys.executable).with_name("tunesmith")

Tunesmith = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_tokenizer, resolve_base, save_model

    tokenizer = load_tokenizer(resolve_base(ModelConfig()))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("base")
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def small_sets(tiny_base) -> list[str]:
    """`--set` options that make every stage take seconds; a random model is not held to parity bars."""
    values = {
        "model.base": str(tiny_base),
        "train.max_steps": 2,
        "train.batch_tokens": 256,
        "train.micro_batch_tokens": 256,
        "train.precision": "fp32",
        "train.sample_rows": 1,
        "evaluate.max_answer_tokens": 8,
        "export.parity_prompts": 2,
        "export.parity_tokens": 4,
        **{
            f"export.limits.{form}": "{greedy_agreement: 0.1, mean_kl: 9.0, perplexity_ratio: 9.0}"
            for form in ("merged", "gguf-f16", "gguf-q8_0")
        },
    }
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


STARTED: set[str] = set()
"""Commands that were started as a user does; their imports, some seconds each, are not waited for again."""


def command_in(folder: Path) -> Tunesmith:
    """The command, run in `folder`; `code` is the exit code that is expected, `fresh` starts it as a user does."""

    def call(*args: object, code: int = 0, fresh: bool = False) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in args]
        name = " ".join(words[:2]) if words[0] == "data" else words[0]
        environment = {**os.environ, "COLUMNS": "200", "JOURNEY": str(folder)}
        start = started if fresh or name not in STARTED else forked.complete
        found = start(words, folder, environment)
        STARTED.add(name)
        assert found.returncode == code, f"{args}\n{found.stdout}\n{found.stderr}"
        return found

    return call


def started(
    words: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        env=environment,
        check=False,
    )


@pytest.fixture
def tunesmith(tmp_path) -> Tunesmith:
    return command_in(tmp_path)


@pytest.fixture(scope="session")
def tunesmith_in() -> Callable[[Path], Tunesmith]:
    return command_in


SCHEMAS = {
    "chat": lambda question, answer: {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    },
    "instruction": lambda question, answer: {
        "instruction": "Double it.",
        "input": question,
        "output": answer,
    },
    "prompt": lambda question, answer: {"prompt": question, "completion": answer},
}


@pytest.fixture(scope="session")
def write_examples() -> Callable[..., None]:
    def write(path: Path, schema: str, n: int = 40) -> None:
        row = SCHEMAS[schema]
        lines = [json.dumps(row(f"what is {k} plus {k}?", str(2 * k))) + "\n" for k in range(n)]
        path.write_text("".join(lines))

    return write
