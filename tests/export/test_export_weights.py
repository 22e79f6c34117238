"""Merging: in float32, rounded once, tied heads kept right."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ModelError
from tunesmith.export.weights import (
    merge,
    most_common_format,
    save_merged,
    write_rounded,
)
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.files import stored_tensors
from tunesmith.models.load import load_model, load_tokenizer

INPUTS = torch.tensor([[1, 520, 33, 7, 999, 2, 40, 41]])


def logits(model):
    with torch.inference_mode():
        return model(input_ids=INPUTS).logits.double()


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head"], ["embed_tokens", "q_proj"]])
@pytest.mark.parametrize("tied", [True, False])
def test_merged_float32_weights_compute_what_base_and_adapter_do(tmp_path, make, targets, tied):
    base = make.short(tmp_path / "base", tied=tied)
    model = make.adapted(base, targets)
    wanted, plain = logits(model), logits(load_model(base, torch.float32))
    assert (wanted - plain).abs().max() > 0.1
    save_merged(merge(model), ChatRenderer(load_tokenizer(base)), tmp_path / "merged")
    found = logits(load_model(tmp_path / "merged", torch.float32))
    assert (wanted - found).abs().max() < 1e-4


def test_rounding_comes_once_and_in_each_tensors_own_format(tmp_path, make):
    base = make.short(tmp_path / "base")
    tensors = load_file(base.dir / "model.safetensors")
    kept = "model.norm.weight"
    tensors[kept] = tensors[kept].float()
    save_file(tensors, base.dir / "model.safetensors", metadata={"format": "pt"})
    save_merged(merge(make.adapted(base)), ChatRenderer(load_tokenizer(base)), tmp_path / "exact")
    write_rounded(tmp_path / "exact", base.dir, tmp_path / "rounded")
    exact = load_file(tmp_path / "exact/model.safetensors")
    rounded = load_file(tmp_path / "rounded/model.safetensors")
    assert rounded.keys() == exact.keys() == tensors.keys()
    for name, tensor in rounded.items():
        assert exact[name].dtype == torch.float32
        assert torch.equal(tensor, exact[name].to(tensors[name].dtype))
    assert {t.dtype for t in rounded.values()} == {torch.float16, torch.float32}
    assert json.loads((tmp_path / "rounded/config.json").read_text())["dtype"] == "float16"
    assert load_model(tmp_path / "rounded", torch.float16).dtype == torch.float16


def test_the_merged_folder_knows_its_stop_tokens(tmp_path, make):
    base = make.short(tmp_path / "base")
    renderer = ChatRenderer(load_tokenizer(base))
    save_merged(load_model(base, torch.float32), renderer, tmp_path / "merged")
    settings = json.loads((tmp_path / "merged/generation_config.json").read_text())
    assert [settings["eos_token_id"]] == list(renderer.stop_ids)


def test_a_weight_too_large_for_the_format_is_refused(tmp_path, make):
    base = make.short(tmp_path / "base")
    model = load_model(base, torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    save_merged(model, ChatRenderer(load_tokenizer(base)), tmp_path / "exact")
    with pytest.raises(ModelError, match=r"up_proj.*does not fit into torch.float16"):
        write_rounded(tmp_path / "exact", base.dir, tmp_path / "rounded")


def test_an_adapter_with_a_number_that_is_not_finite_is_refused(tmp_path, make):
    model = make.adapted(make.short(tmp_path / "base"))
    with torch.no_grad():
        next(w for n, w in model.named_parameters() if "lora_B" in n)[0, 0] = float("nan")
    with pytest.raises(ModelError, match="cannot be merged"):
        merge(model)


def test_headers_give_format_and_size(tmp_path, make):
    base = make.short(tmp_path / "base")
    tensors = stored_tensors(base.dir)
    loaded = load_file(base.dir / "model.safetensors")
    assert {name: t.numel for name, t in tensors.items()} == {
        name: t.numel() for name, t in loaded.items()
    }
    assert all(t.bytes == 2 * t.numel and t.dtype == "float16" for t in tensors.values())
    assert most_common_format(base.dir) == "float16"


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0{bad}", b"\x02\0"])
def test_a_damaged_safetensors_header_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        stored_tensors(tmp_path)
