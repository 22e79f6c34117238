"""The whole path of each family: adapter on a base -> one merge -> GGUF, with certificates."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp")
pytest.importorskip("conversion")
sys.path.insert(0, str(Path(__file__).parent))
import gguf_families as tiny
import torch

from tunesmith.config import ModelConfig
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_model, load_tokenizer, resolve_base

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
FAMILIES = {"Mistral": tiny.MISTRAL, "Qwen3": tiny.QWEN3, "Phi-3": tiny.PHI, "Gemma 3": tiny.G3}
FORMS = ("gguf-q8_0", "gguf-lora")
# Where a random model's best tokens are close, 8 bits swap some, and float16 attention one or two.
LIMITS = {"gguf-q8_0": {"greedy_agreement": 0.7}, "gguf-lora": {"greedy_agreement": 0.9}}


def prepared(case: tiny.Case, folder: Path, make):
    tokenizer = tiny.tokenizer_of(case.tokenizer)
    tokenizer.chat_template = TEMPLATE
    tiny.save_case(case.has(head_dim=16), folder / "base")
    base = resolve_base(ModelConfig(base=str(folder / "base")))
    renderer = ChatRenderer(load_tokenizer(base))
    dataset = make.dataset(folder / "data", None)
    adapted = tiny.adapter_for(
        load_model(base, torch.float32), folder / "adapter", use_rslora=True, lora_alpha=4
    )
    trained = make.run(folder / "train", base, dataset, adapted, renderer.fingerprint)
    return make.Workbench(folder, base, renderer, dataset, trained)


@pytest.mark.slow
@pytest.mark.parametrize("case", FAMILIES.values(), ids=FAMILIES)
def test_adapter_to_gguf_is_certified(tmp_path, case, make):
    bench = prepared(case, tmp_path, make)
    result = bench.export(tmp_path / "export", forms=FORMS, limits=LIMITS)
    assert set(result.parity) == set(FORMS)
    assert result.parity["gguf-lora"].clear_agreement == 1
    assert result.parity["gguf-lora"].mean_kl < 1e-3
    assert result.parity["gguf-q8_0"].mean_kl < 0.02
