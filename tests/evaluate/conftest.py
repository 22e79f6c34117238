"""A tiny random Llama with the short tokenizer, a random adapter on it, and sealed artifacts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config import ModelConfig, Recipe, recipe_from
from tunesmith.engine import Sampling
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import BaseModel, load_model, resolve_base, save_model
from tunesmith.store import Artifact, Run

MAX_TOKENS = 12


@dataclass(frozen=True)
class Bench:
    """A base, an adapter on it, and what both answer to questions."""

    base: BaseModel
    renderer: ChatRenderer
    adapter_dir: Path

    def facts(self, **changes: Any) -> dict[str, Any]:
        return {
            "base": {"name": self.base.name, "sha256": self.base.sha256},
            "method": {"kind": "lora", "rank": 4},
            "precision": "fp32",
            "renderer_fingerprint": self.renderer.fingerprint,
            **changes,
        }

    def seal_trained(self, folder: Path, **changes: Any) -> Artifact:
        with Run.open(folder, "train", inputs={}) as at:
            for file in self.adapter_dir.glob("adapter_*"):
                at.path(f"adapter/{file.name}").write_bytes(file.read_bytes())
            return at.finish(self.facts(**changes))

    def recipe(self, **evaluate: Any) -> Recipe:
        settings = {"max_answer_tokens": MAX_TOKENS, "resamples": 200, **evaluate}
        return recipe_from({"model": {"base": str(self.base.dir)}, "evaluate": settings})

    def answers(self, questions: list[str], *, tuned: bool) -> list[str]:
        """What a loop of its own says, without the evaluate stage."""
        from peft import PeftModel

        from tunesmith.engine.backends.transformers import TransformersBackend

        model = load_model(self.base, _float32())
        if tuned:
            model = PeftModel.from_pretrained(model, self.adapter_dir).eval()
        backend = TransformersBackend(
            model, self.renderer.tokenizer, stop_ids=self.renderer.stop_ids, batch_rows=1
        )
        prompts = [self.renderer.prompt_ids([{"role": "user", "content": q}]) for q in questions]
        return [found.text for found in backend.generate(prompts, Sampling(max_tokens=MAX_TOKENS))]


def _float32() -> Any:
    import torch

    return torch.float32


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, short_tokenizer: Any) -> Bench:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = short_tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("base")
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    base = resolve_base(ModelConfig(base=str(folder)))
    adapted = get_peft_model(
        load_model(base, torch.float32),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False),
    )
    adapter_dir = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(adapter_dir)
    return Bench(base, ChatRenderer(tokenizer), adapter_dir)


@pytest.fixture(scope="session")
def trained(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return bench.seal_trained(tmp_path_factory.mktemp("trained") / "train")


@pytest.fixture
def seal_dataset(tmp_path: Path) -> Callable[..., Artifact]:
    """Seals a dataset with given test rows, and a database of one table for each further name."""

    def seal(rows: list[dict[str, Any]], *names: str, folder: str = "data") -> Artifact:
        with Run.open(tmp_path / folder, "data", inputs={}) as at:
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            at.write_text("test.jsonl", "".join(lines))
            for name in names:
                path = at.path(f"databases/{name}.sqlite")
                with sqlite3.connect(path) as connection:
                    connection.executescript(
                        "CREATE TABLE item (name); INSERT INTO item VALUES ('a'), ('b')"
                    )
                connection.close()
            facts = {"name": "small", "rows": {"test": len(rows)}, "databases": list(names)}
            return at.finish(facts)

    return seal
