"""A tiny Llama with the real SmolLM2 tokenizer, a random adapter on it, and a small dataset."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith import export
from tunesmith.config import ModelConfig, recipe_from
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import BaseModel, load_model, load_tokenizer, resolve_base, save_model
from tunesmith.store import Artifact, Run

SYSTEM = "Answer with one SQLite query."
LOOSE = {"greedy_agreement": 0.5, "mean_kl": 9.0, "perplexity_ratio": 9.0}
"""Limits for a random model, whose every weight counts."""
QUESTIONS = ("How many states?", "Which river is longest?", "Name a city in Kansas.", "7 * 6 = ?")


@dataclass(frozen=True)
class Workbench:
    """A base model, a dataset and a run, and a way to export them."""

    folder: Path
    base: BaseModel
    renderer: ChatRenderer
    dataset: Artifact
    trained: Artifact

    def recipe(self, **settings: Any) -> Any:
        settings = {"parity_prompts": 4, "parity_tokens": 6, **settings}
        return recipe_from(
            {"name": "tiny", "model": {"base": str(self.base.dir)}, "export": settings}
        )

    def export(self, place: Path, *, resume: bool = False, **settings: Any) -> Any:
        recipe = self.recipe(**settings)
        with Run.open(place, "export", inputs={}, resume=resume) as at:
            return export.run(recipe, at, self.dataset, self.trained)


def save_tiny(
    tokenizer: Any, folder: Path, *, spread: float = 0.5, dtype: str = "float16", tied: bool = True
) -> BaseModel:
    """A random Llama on the disk; with a larger `spread` its best tokens lead more clearly."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=spread,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_model(LlamaForCausalLM(config).to(getattr(torch, dtype)), tokenizer, folder)
    return resolve_base(ModelConfig(base=str(folder)))


def adapted(base: BaseModel, targets: Any = "all-linear", spread: float = 0.1) -> Any:
    """Base with a random adapter, in float32."""
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_model(base, torch.float32), config)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=spread)
    return model.eval()


def seal_run(
    folder: Path, base: BaseModel, dataset: Artifact, model: Any, fingerprint: str
) -> Artifact:
    """A train artifact that holds `model`: an adapter, or all weights."""
    import warnings

    is_adapter = hasattr(model, "peft_config")
    with Run.open(folder, "train", inputs={}, parents=[dataset.as_parent()]) as at:
        place = at.path(f"{'adapter' if is_adapter else 'model'}/config.json").parent
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_adapter:
                model.save_pretrained(place)
                (place / "README.md").unlink(missing_ok=True)
            else:
                save_model(model, load_tokenizer(base), place)
        return at.finish(
            {
                "base": {"name": base.name, "sha256": base.sha256},
                "method": {"kind": "lora" if is_adapter else "full"},
                "steps": 3,
                "validation_loss": 1.25,
                "renderer_fingerprint": fingerprint,
                "dataset": "questions",
            }
        )


def seal_dataset(folder: Path, system: str | None = SYSTEM) -> Artifact:
    """Four questions, in every split."""
    first = [] if system is None else [{"role": "system", "content": system}]
    rows = [
        {
            "messages": [
                *first,
                {"role": "user", "content": question},
                {"role": "assistant", "content": "select 1"},
            ],
            "meta": {},
        }
        for question in QUESTIONS
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with Run.open(folder, "data", inputs={"system": system}) as at:
        for split in ("train", "validation", "test"):
            at.write_text(f"{split}.jsonl", text)
        return at.finish({"rows": {"train": 4, "validation": 4, "test": 4}, "databases": []})


def save_adapter(
    folder: Path, base: BaseModel, *, seed: int = 1, targets: Any = "all-linear", **config: Any
) -> Path:
    """A random adapter in PEFT's format, of any LoRA configuration."""
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": targets}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = LoraConfig(**settings | config)
        model = get_peft_model(load_model(base, torch.float32), lora)
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, mean=float("magnitude" in name), std=0.1)
        model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="session")
def merging(tmp_path_factory, make):
    """A float16 base, three sealed adapter runs of it (and the adapters alone), and two fully trained models."""
    import torch

    from tunesmith.models.adapters import put_adapter

    folder = tmp_path_factory.mktemp("merging")
    base = make.short(folder / "base")
    renderer = ChatRenderer(load_tokenizer(base))
    dataset = seal_dataset(folder / "data")
    adapters, models = [], []
    for number, name in enumerate("abc"):
        place = save_adapter(folder / f"peft-{name}", base, seed=number)
        model = put_adapter(load_model(base, torch.float32), place)
        adapters.append(seal_run(folder / name, base, dataset, model, renderer.fingerprint))
    for number, name in enumerate(("x", "y")):
        model = load_model(base, torch.float16)
        torch.manual_seed(10 + number)
        for weight in model.parameters():
            weight.data += 0.02 * torch.randn_like(weight)
        models.append(seal_run(folder / name, base, dataset, model, renderer.fingerprint))
    return SimpleNamespace(
        dir=folder, base=base, renderer=renderer, dataset=dataset, adapters=adapters, models=models
    )


def form_sources(
    folder: Path, base: BaseModel, *, rows: tuple[tuple[int, ...], ...] = (), **settings: Any
) -> Any:
    """What a form is written from: the base with every weight in float32, and calibration rows."""
    import torch

    from tunesmith.config import ExportConfig
    from tunesmith.export.forms import Sources

    tokenizer = load_tokenizer(base)
    save_model(load_model(base, torch.float32), tokenizer, folder / "merged")
    (folder / "scratch").mkdir()
    return Sources(
        merged=folder / "merged",
        base=base,
        trained=None,
        renderer=ChatRenderer(tokenizer),
        name="tiny",
        scratch=folder / "scratch",
        calibration=rows,
        config=ExportConfig(**settings),
    )


@pytest.fixture(scope="session")
def sources(tmp_path_factory, make):
    """A tiny model to write forms from, calibrated on four rows of random tokens."""
    import random

    chance = random.Random(0)
    rows = tuple(tuple(chance.randrange(3, 2000) for _ in range(n)) for n in (40, 33, 40, 12))
    folder = tmp_path_factory.mktemp("sources")
    return form_sources(folder, make.short(folder / "base", spread=0.2), rows=rows)


@pytest.fixture(scope="session")
def make(embedded_tokenizer, short_tokenizer):
    """The makers above, for tests that need another model, adapter, dataset or run.

    `short` is `tiny` with the short tokenizer: for what is never written as GGUF.
    """
    return SimpleNamespace(
        save=save_tiny,
        tiny=partial(save_tiny, embedded_tokenizer),
        short=partial(save_tiny, short_tokenizer),
        adapted=adapted,
        adapter=save_adapter,
        run=seal_run,
        sources=form_sources,
        dataset=seal_dataset,
        Workbench=Workbench,
    )


@pytest.fixture(scope="session")
def bench(tmp_path_factory, make, embedded_tokenizer):
    """A clear-spoken tiny model (its best tokens lead by far) with an adapter on all layers."""
    folder = tmp_path_factory.mktemp("bench")
    base = make.tiny(folder / "base")
    renderer = ChatRenderer(embedded_tokenizer)
    dataset = seal_dataset(folder / "data")
    trained = seal_run(folder / "train", base, dataset, adapted(base), renderer.fingerprint)
    return Workbench(folder, base, renderer, dataset, trained)


@pytest.fixture(scope="session")
def bundle(bench, tmp_path_factory):
    """All forms of it, exported once."""
    place = tmp_path_factory.mktemp("bundle") / "export"
    limits = dict.fromkeys(("merged", "gguf-f16", "gguf-q8_0"), LOOSE)
    return bench.export(place, limits=limits)


@pytest.fixture
def copied(bundle, tmp_path):
    """A copy of the bundle's folder that a test may damage."""
    return Path(shutil.copytree(bundle.artifact.dir, tmp_path / "copied"))
