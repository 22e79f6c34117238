"""Adapters of other families: merged into their base they compute what PEFT computes."""

from __future__ import annotations

import pytest
import torch

from tunesmith.config import ModelConfig
from tunesmith.export.merge import Asked, run
from tunesmith.models.adapters import put_adapter
from tunesmith.models.load import load_model, resolve_base, save_model

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 128}
FAMILIES = ("qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "mistral", "gpt2")
INPUTS = torch.tensor([[1, 520, 33, 7, 999, 2, 40, 41]])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_adapter_computes_what_peft_does(family, make, short_tokenizer, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = GPT2 if family == "gpt2" else SIZES
    config = AutoConfig.for_model(family, vocab_size=len(short_tokenizer), **sizes)
    config.initializer_range = 0.2
    torch.manual_seed(0)
    save_model(AutoModelForCausalLM.from_config(config), short_tokenizer, tmp_path / "base")
    base = resolve_base(ModelConfig(base=str(tmp_path / "base")))
    turned = {"fan_in_fan_out": True} if family == "gpt2" else {}
    places = [
        str(make.adapter(tmp_path / name, base, seed=seed, **turned))
        for seed, name in enumerate("ab")
    ]

    def logits(model):
        with torch.inference_mode():
            return model(input_ids=INPUTS).logits

    asked = Asked(models=(places[0], places[0]), out=tmp_path / "out", base=str(base.dir))
    found = logits(load_model(run(asked).dir, torch.float32))
    wanted = logits(put_adapter(load_model(base, torch.float32), tmp_path / "a"))
    assert (wanted - logits(load_model(base, torch.float32))).abs().max() > 0.01
    assert (found - wanted).abs().max() < 2e-4 * wanted.abs().max()
    both = Asked(models=tuple(places), out=tmp_path / "both", method="concat", base=str(base.dir))
    stacked = logits(put_adapter(load_model(base, torch.float32), run(both).dir))
    mean = Asked(models=tuple(places), out=tmp_path / "mean", base=str(base.dir))
    whole = logits(load_model(run(mean).dir, torch.float32))
    assert (stacked - whole).abs().max() < 2e-4 * whole.abs().max()
