"""NF4 equals bitsandbytes bit for bit, and loading holds one dense weight at a time."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import ModelError
from tunesmith.models import nf4
from tunesmith.models.half import HalfLinear
from tunesmith.models.load import BaseModel, load_model
from tunesmith.models.nf4 import Nf4Linear, dynamic_code
from tunesmith.models.quantised import Nf4Format, load_nf4, original_weights, quantise_linears

sys.path.insert(0, str(Path(__file__).parent))
import record_nf4 as record

CASES = json.loads(record.RECORD.read_text(encoding="utf-8"))["cases"]


def linear_of(weight: torch.Tensor, block_size: int = 64, double_quant: bool = True) -> Nf4Linear:
    out_features, in_features = weight.shape
    made = Nf4Linear(
        in_features,
        out_features,
        None,
        block_size=block_size,
        double_quant=double_quant,
        compute_dtype=torch.float32,
    )
    made.quantise(weight)
    return made


def parts_of(made: Nf4Linear) -> dict[str, torch.Tensor]:
    found = {"codes": made.weight}
    if made.double_quant:
        names = {"absmax": "absmax_codes", "scales": "absmax_scales", "mean": "absmax_mean"}
        found |= {name: getattr(made, own).view(-1) for name, own in names.items()}
    else:
        found["absmax"] = made.absmax
    dense = {f"dense_{kind}": made.dense(getattr(torch, kind)) for kind in ("float32", "bfloat16")}
    return found | dense


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['kind']}-{c['shape']}-{c['block_size']}")
def test_codes_scales_and_dense_weights_are_those_recorded_of_bitsandbytes(case):
    weight = record.weight(case["shape"], case["kind"], case["seed"])
    made = parts_of(linear_of(weight, case["block_size"], case["double_quant"]))
    assert {name: record.digest(tensor) for name, tensor in made.items()} == {
        name: case[name] for name in made
    }


@given(seed=st.integers(0, 10_000), double_quant=st.booleans(), spread=st.floats(1e-6, 1e3))
def test_codes_scales_and_dense_weights_equal_the_installed_bitsandbytes(
    seed, double_quant, spread
):
    pytest.importorskip("bitsandbytes", reason="reference; the record stands in for it")
    weight = record.weight([128, 128], "float32", seed) * spread
    made = parts_of(linear_of(weight, 64, double_quant))
    for name, tensor in record.of_bitsandbytes(weight, 64, double_quant).items():
        assert torch.equal(made[name].view(-1), tensor.view(-1)), name


@given(st.integers(0, 2**31), st.sampled_from([32, 64, 128]), st.integers(1, 40))
def test_no_dense_weight_is_further_from_its_own_than_half_the_widest_step(seed, block, blocks):
    torch.manual_seed(seed)
    weight = torch.randn(blocks, block) * 0.1
    dense = linear_of(weight, block, double_quant=False).dense(torch.float32)
    peak = weight.abs().amax(1, keepdim=True)
    widest = max(b - a for a, b in zip(nf4.NF4_CODE, nf4.NF4_CODE[1:], strict=False))
    assert bool(((dense - weight).abs() <= peak * widest / 2 + 1e-7).all())
    # A block's largest weight is kept: exactly when it is positive, and code -1 is exact too.
    at = weight.abs().argmax(1, keepdim=True)
    assert torch.allclose(dense.gather(1, at), weight.gather(1, at), rtol=1e-6, atol=0)


def test_blocks_that_cross_rows_are_dequantised_where_they_lie():
    weight = record.weight([128, 96], "float32", 3)
    dense = linear_of(weight, 64, double_quant=False).dense(torch.float32)
    flat = linear_of(weight.view(192, 64), 64, double_quant=False).dense(torch.float32)
    assert torch.equal(dense.view(-1), flat.view(-1))


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_constant_weight_has_equal_scales_and_comes_back(value):
    weight = torch.full((64, 64), value)
    assert torch.allclose(linear_of(weight).dense(torch.float32), weight, atol=1e-6)


def test_the_dynamic_code_rises_from_nearly_minus_one_to_one():
    code = dynamic_code()
    assert code.shape == (256,)
    assert bool((code[1:] > code[:-1]).all())
    assert (float(code[-1]), float(code.abs().min())) == (1.0, 0.0)


def test_tiles_and_chunks_of_another_size_give_the_same_bits(monkeypatch):
    weight = record.weight([192, 576], "float32", 1)
    made = parts_of(linear_of(weight))
    monkeypatch.setattr(nf4, "CHUNK", 1000)
    monkeypatch.setattr(nf4, "TILE", 4096)
    again = parts_of(linear_of(weight))
    assert all(torch.equal(made[name], again[name]) for name in made)


def test_scales_that_were_cast_are_refused():
    made = linear_of(torch.randn(64, 64), double_quant=False).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"cast to torch\.bfloat16"):
        made.dense(torch.float32)


def test_the_forward_pass_and_its_gradient_are_those_of_the_dense_weight():
    torch.manual_seed(0)
    made = linear_of(torch.randn(96, 64))
    made.bias = torch.nn.Parameter(torch.randn(96), requires_grad=False)
    x = torch.randn(3, 5, 64, requires_grad=True)
    dy = torch.randn(3, 5, 96)
    y = made(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    wanted = torch.nn.functional.linear(x, made.dense(torch.float32), made.bias)
    assert torch.equal(y, wanted)
    assert torch.equal(dx, torch.autograd.grad(wanted, x, dy)[0])


SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def saved(folder: Path, *, tied: bool = True, shard: str = "1GB", **changes) -> BaseModel:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**{**SHAPE, **changes}, tie_word_embeddings=tied)
    Qwen2ForCausalLM(config).to(torch.float16).save_pretrained(folder, max_shard_size=shard)
    return BaseModel("tiny", folder, "0" * 64)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize(("tied", "shard"), [(True, "1GB"), (False, "1GB"), (True, "20KB")])
def test_loading_tensor_by_tensor_gives_the_model_that_is_quantised_after_loading(
    tmp_path, tied, shard
):
    base = saved(tmp_path, tied=tied, shard=shard)
    model = load_nf4(base, torch.float32, Nf4Format())
    whole = load_model(base, torch.float32)
    assert not torch.equal(logits(model), logits(whole))
    quantise_linears(whole, torch.float32, Nf4Format())
    assert torch.equal(logits(model), logits(whole))
    assert list(model.state_dict()) == list(whole.state_dict())
    assert sum(isinstance(module, Nf4Linear) for module in model.modules()) == 14
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_a_layer_that_is_no_whole_number_of_blocks_stays_dense(tmp_path):
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1}
    base = saved(tmp_path, hidden_size=60, intermediate_size=64, **heads)
    model = load_nf4(base, torch.float32, Nf4Format())
    attention = model.model.layers[0].self_attn
    assert isinstance(attention.q_proj, HalfLinear)  # 3,600 weights
    assert type(model.model.layers[0].mlp.up_proj) is Nf4Linear  # 3,840
    assert torch.isfinite(logits(model)).all()


def test_nothing_to_quantise_is_refused(tmp_path):
    base = saved(tmp_path, hidden_size=12, intermediate_size=20, num_attention_heads=2)
    with pytest.raises(ModelError, match="no linear layer of tiny can be quantised"):
        load_nf4(base, torch.float32, Nf4Format(block_size=4096))


def test_original_weights_are_read_from_the_file_while_the_block_runs(tmp_path):
    base = saved(tmp_path)
    model = load_nf4(base, torch.float32, Nf4Format())
    before = logits(model)
    with original_weights(model) as can:
        assert can
        assert torch.equal(logits(model), logits(load_model(base, torch.float32)))
    assert torch.equal(logits(model), before)


def test_a_model_quantised_in_memory_has_no_original_to_read(tmp_path):
    model = load_model(saved(tmp_path), torch.float32)
    quantise_linears(model, torch.float32, Nf4Format())
    before = logits(model)
    with original_weights(model) as can:
        assert not can
        assert torch.equal(logits(model), before)


def test_a_truncated_file_is_one_clear_error(tmp_path):
    base = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be read"):
        load_nf4(base, torch.float32, Nf4Format())


def test_a_config_of_another_model_is_refused(tmp_path):
    base = saved(tmp_path / "a")
    saved(tmp_path / "b", intermediate_size=128)
    shutil.copy(tmp_path / "b" / "config.json", tmp_path / "a" / "config.json")
    with pytest.raises(ModelError, match=r"config\.json makes it \(128, 64\)"):
        load_nf4(base, torch.float32, Nf4Format())


def test_a_missing_weight_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    base = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights"):
        load_nf4(base, torch.float32, Nf4Format())
