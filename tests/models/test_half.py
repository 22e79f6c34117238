"""Frozen weights in 16 bits compute what fp32 weights do, and only where that is exact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tunesmith.models import half
from tunesmith.models.frozen import load_frozen
from tunesmith.models.half import HalfEmbedding, HalfLinear, exact_half, frozen_weight, slabs
from tunesmith.models.load import BaseModel, load_model

SHAPE = {
    "vocab_size": 211,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def saved(folder: Path, family: str = "Llama", dtype: Any = torch.float16, **changes) -> BaseModel:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(dtype).save_pretrained(folder)
    return BaseModel("tiny", folder, "0" * 64)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 40)[None], use_cache=False).logits


def half_layers(model: Any) -> set[str]:
    kinds = (HalfLinear, HalfEmbedding)
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=40), st.booleans())
def test_every_16_bit_number_survives_being_stored_in_fp32(bits, is_bf16):
    dtype = torch.bfloat16 if is_bf16 else torch.float16
    narrow = torch.tensor(bits, dtype=torch.int16).view(dtype)
    wide = narrow.float()
    found = exact_half(wide)
    if bool(wide.isnan().any()):
        assert found is None
    else:
        assert found is not None
        assert torch.equal(found.float(), wide)
        assert torch.equal(found.float().signbit(), wide.signbit())


@pytest.mark.parametrize(
    "values", [[0.1], [1.0, 70_000.0, 1 + 2**-10], [2.0**-30, 1 + 2**-10], [float("nan")]]
)
def test_a_weight_with_one_value_that_has_no_16_bits_stays(values):
    assert exact_half(torch.tensor([*[1.0] * half.CHECKED, *values])) is None


def test_a_weight_takes_the_type_that_has_all_its_values():
    assert exact_half(torch.tensor([70_000.0, 2.0**-30]).bfloat16().float()).dtype == torch.bfloat16
    assert exact_half(torch.tensor([1 + 2**-10])).dtype == torch.float16
    assert exact_half(torch.ones(2, dtype=torch.float64)) is None


@pytest.mark.parametrize("rows", [64, 100, 256, 300])
def test_slabs_are_all_rows_once_and_the_same_for_both_types(rows, monkeypatch):
    monkeypatch.setattr(half, "SLAB_ENTRIES", 128 * 16)
    narrow = torch.randn(rows, 16).half()
    parts = [(part, slab.clone()) for part, slab in slabs(narrow, torch.float32)]
    wide = [(part, slab.clone()) for part, slab in slabs(narrow.float(), torch.float32)]
    assert [part for part, _ in parts] == [part for part, _ in wide]
    assert torch.equal(torch.cat([slab for _, slab in parts]), narrow.float())
    assert len(parts) == -(-rows // 128)
    assert len(list(slabs(narrow, torch.float16))) == 1


def test_only_one_slab_of_a_weight_is_wide_at_a_time(monkeypatch):
    monkeypatch.setattr(half, "SLAB_ENTRIES", 64 * 16)
    narrow = torch.randn(300, 16).half()
    assert len({slab.data_ptr() for _, slab in slabs(narrow, torch.float32)}) == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("entries", [64 * 24, 1 << 20])
def test_the_layer_is_a_plain_linear_layer_with_its_gradient(bias, entries, monkeypatch):
    monkeypatch.setattr(half, "SLAB_ENTRIES", entries)
    torch.manual_seed(0)
    plain = torch.nn.Linear(24, 200, bias=bias).requires_grad_(False)
    plain.weight.data = plain.weight.half().float()
    bits = torch.nn.Parameter(plain.weight.half().view(torch.int16), requires_grad=False)
    layer = HalfLinear(bits, torch.float16, plain.bias)
    x = torch.randn(2, 7, 24, requires_grad=True)
    y = torch.randn(2, 7, 24)
    wanted, found = plain(x), layer(x)
    assert torch.equal(found, wanted)
    assert torch.equal(layer(y), plain(y))
    dy = torch.randn_like(wanted)
    (one,) = torch.autograd.grad(wanted, x, dy)
    (two,) = torch.autograd.grad(found, x, dy)
    assert torch.equal(two, one)
    assert torch.equal(layer.dense(torch.float32), plain.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"tie_word_embeddings": False, "attention_bias": True}),
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Phi", {"num_key_value_heads": 4}),
        ("Gemma2", {}),
    ],
)
def test_the_loaded_model_has_the_logits_of_fp32_weights(tmp_path, family, changes, dtype):
    base = saved(tmp_path, family, dtype, **changes)
    model, whole = load_frozen(base, torch.float32), load_model(base, torch.float32)
    assert torch.equal(logits(model), logits(whole))
    assert list(model.state_dict()) == list(whole.state_dict())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    kept, wide = (
        sum(p.numel() * p.element_size() for p in one.parameters()) for one in (model, whole)
    )
    assert kept < (0.62 if family != "Gemma2" else 0.8) * wide
    tied = whole.lm_head.weight is whole.get_input_embeddings().weight
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model.dtype == torch.float32


MAMBA = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "expand": 2}
INDEXED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 4,
}


@pytest.mark.parametrize(("family", "changes"), [("Mamba2", MAMBA), ("DeepseekV32", INDEXED)])
def test_layers_whose_weight_the_family_itself_reads_stay_as_they_are(tmp_path, family, changes):
    base = saved(tmp_path, family, **changes)
    model = load_frozen(base, torch.float32)
    assert half_layers(model)
    assert torch.equal(logits(model), logits(load_model(base, torch.float32)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computed_buffers_are_those_of_a_model_that_transformers_loads(tmp_path, dtype):
    changes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 1024}
    base = saved(tmp_path, "GPTJ", **changes)
    ours, theirs = load_frozen(base, dtype), load_model(base, dtype)
    expected = dict(theirs.named_buffers())
    assert expected
    for name, buffer in ours.named_buffers():
        assert buffer.dtype == expected[name].dtype
        assert torch.equal(buffer, expected[name])
    assert ours.config.dtype == theirs.config.dtype == dtype


def test_it_answers_as_fp32_weights_do(tmp_path):
    base = saved(tmp_path)
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 8, "do_sample": False}
    answers = [
        load(base, torch.float32).generate(**prompt, attention_mask=torch.ones(1, 3))
        for load in (load_frozen, load_model)
    ]
    assert torch.equal(*answers)


def test_an_embedding_that_does_more_than_look_rows_up_stays_and_so_does_its_tied_head(tmp_path):
    model = load_frozen(saved(tmp_path, "Gemma2"), torch.float32)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.lm_head.weight.dtype == torch.float32
    assert type(model.lm_head) is torch.nn.Linear
    assert "model.layers.0.mlp.up_proj" in half_layers(model)


def test_weights_that_are_stored_in_fp32_stay_unless_16_bits_hold_them(tmp_path):
    base = saved(tmp_path, dtype=torch.float32)
    assert not half_layers(load_frozen(base, torch.float32))
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name].bfloat16().float()
    save_file(weights, file, metadata={"format": "pt"})
    model = load_frozen(base, torch.float32)
    assert half_layers(model) == {name.removesuffix(".weight")}
    assert torch.equal(logits(model), logits(load_model(base, torch.float32)))


def test_products_in_bf16_have_plain_layers(tmp_path):
    base = saved(tmp_path)
    model = load_frozen(base, torch.bfloat16)
    assert not half_layers(model)
    assert torch.equal(logits(model), logits(load_model(base, torch.bfloat16)))


@pytest.mark.parametrize("differs", [True, False])
def test_a_head_that_the_file_has_beside_its_tied_embedding_is_what_transformers_makes_of_it(
    tmp_path, differs
):
    base = saved(tmp_path, tie_word_embeddings=True)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding * 2 if differs else embedding.clone()
    save_file(weights, file, metadata={"format": "pt"})
    model, whole = load_frozen(base, torch.float32), load_model(base, torch.float32)
    assert torch.equal(logits(model), logits(whole))
    assert {"lm_head", "model.embed_tokens"} <= half_layers(model)


def test_a_file_that_names_weights_otherwise_gives_the_same_model(tmp_path):
    base = saved(tmp_path)
    wanted = load_frozen(base, torch.float32)
    file = tmp_path / "model.safetensors"
    weights = {name.removeprefix("model."): one for name, one in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    model = load_frozen(base, torch.float32)
    assert half_layers(model) == half_layers(wanted)
    assert torch.equal(logits(model), logits(wanted))


def test_the_head_of_any_layer_comes_as_it_is_kept(tmp_path):
    base = saved(tmp_path)
    assert frozen_weight(load_frozen(base, torch.float32).lm_head).dtype == torch.float16
    assert frozen_weight(load_model(base, torch.float32).lm_head).dtype == torch.float32


GROWTH = """
import json, sys
from pathlib import Path
import torch
from accelerate import init_empty_weights
from transformers import LlamaForCausalLM
from tunesmith.models.frozen import load_frozen
from tunesmith.models.load import BaseModel

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

before = peak()
model = load_frozen(BaseModel("base", Path(sys.argv[1]), ""), torch.float32)
print(json.dumps([peak() - before, max(p.numel() * 2 for p in model.parameters())]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_the_model_and_one_weight_beside_it(embedded_base):
    found = subprocess.run(
        [sys.executable, "-c", GROWTH, str(embedded_base.dir)],
        capture_output=True,
        text=True,
        check=True,
    )
    growth, largest = json.loads(found.stdout.splitlines()[-1])
    stored = (embedded_base.dir / "model.safetensors").stat().st_size
    assert growth < 1.1 * stored + largest
