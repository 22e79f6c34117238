"""GPTQ, AWQ and the format that both are written in."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tunesmith.errors import DataError, EnvironmentProblem, ModelError
from tunesmith.export.folders import awq, gptq
from tunesmith.export.folders.calibrate import Layers, Shared, open_layers, shared_inputs
from tunesmith.export.folders.packed import fit, group_size, pack, whole_range
from tunesmith.models.load import load_model

FLOAT = torch.float32


def unpacked(words: torch.Tensor, columns: int) -> list[list[int]]:
    """An independent reader: Python's own integers, eight nibbles a word, the first lowest."""
    rows = []
    for row in words.tolist():
        nibbles = [((word & 0xFFFFFFFF) >> (4 * place)) & 0xF for word in row for place in range(8)]
        rows.append([nibble - 8 for nibble in nibbles[:columns]])
    return rows


@given(
    st.integers(1, 9).flatmap(
        lambda columns: st.lists(
            st.lists(st.integers(-8, 7), min_size=columns, max_size=columns), min_size=1, max_size=3
        )
    )
)
def test_packed_numbers_are_read_back_by_another_reader(rows):
    numbers = torch.tensor(rows, dtype=torch.int8)
    assert unpacked(pack(numbers), len(rows[0])) == rows


@pytest.mark.slow
def test_packing_is_that_of_the_package_that_engines_use():
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    numbers = torch.randint(-8, 8, (5, 64), dtype=torch.int8)
    assert torch.equal(pack(numbers), helpers.pack_to_int32(numbers, 4))
    assert torch.equal(pack(numbers.t()).t(), helpers.pack_to_int32(numbers, 4, packed_dim=0))


def test_no_weight_is_further_than_half_a_step_from_its_number():
    weight = torch.randn(6, 64)
    grid = whole_range(weight, 32, FLOAT, symmetric=False)
    steps = grid.scale.repeat_interleave(32, dim=1)
    # The zero point is rounded too: the ends of a range may lie half a step outside.
    assert bool(((grid.weight(grid.round(weight)) - weight).abs() <= steps * 1.001).all())


@pytest.mark.parametrize("symmetric", [True, False])
def test_searched_ranges_err_less_than_whole_ones(symmetric):
    torch.manual_seed(0)
    weight = torch.randn(32, 128) ** 3
    importance = torch.rand(128) + 0.1

    def error(grid):
        return float(((grid.weight(grid.round(weight)) - weight).square() * importance).sum())

    searched = fit(weight, 64, FLOAT, importance, symmetric=symmetric)
    assert error(searched) < error(whole_range(weight, 64, FLOAT, symmetric=symmetric))


def test_group_of_zeros_stays_zero():
    weight = torch.zeros(2, 32)
    grid = fit(weight, 32, torch.float16, torch.ones(32), symmetric=True)
    assert torch.equal(grid.weight(grid.round(weight)), weight)


def _inputs(tokens: int, width: int) -> torch.Tensor:
    """Correlated inputs of very different sizes, as in a language model."""
    mixed = torch.randn(tokens, width) @ torch.randn(width, width)
    return mixed * torch.logspace(-1, 1, width)[torch.randperm(width)]


@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_of_unrelated_inputs_is_plain_rounding(symmetric):
    weight = torch.randn(8, 64)
    grid = whole_range(weight, 32, FLOAT, symmetric=symmetric)
    gram = torch.diag(torch.rand(64) + 0.5)
    assert torch.equal(gptq.gptq(weight, gram, grid), grid.round(weight))


def test_gptq_makes_the_outputs_errors_smaller_than_rounding():
    torch.manual_seed(1)
    weight, x = torch.randn(24, 160), _inputs(400, 160)
    grid = whole_range(weight, 32, FLOAT, symmetric=True)

    def error(numbers):
        return float(((grid.weight(numbers) - weight) @ x.t()).square().sum())

    assert error(gptq.gptq(weight, x.t() @ x, grid)) < 0.6 * error(grid.round(weight))


def test_gptq_refuses_statistics_that_are_not_finite():
    weight = torch.randn(4, 32)
    grid = whole_range(weight, 32, FLOAT, symmetric=True)
    with pytest.raises(ModelError, match="not finite"):
        gptq.gptq(weight, torch.full((32, 32), torch.nan), grid)


def test_awq_scales_up_the_inputs_that_are_large():
    torch.manual_seed(2)
    x = torch.randn(300, 64)
    x[:, 5] *= 60
    shared = Shared(("a",), x.t() @ x, 300, x.abs().mean(dim=0))
    weight = torch.randn(16, 64)
    found = awq.factors([weight], shared, 32, FLOAT)
    assert int(found.argmax()) == 5

    def error(factor):
        grid = whole_range(weight * factor, 32, FLOAT, symmetric=True)
        off = grid.weight(grid.round(weight * factor)) / factor - weight
        return float((off @ x.t()).square().sum())

    assert error(found) < 0.5 * error(torch.ones(64))


def _with_layers(kind: str) -> Layers:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(3)
    config = CONFIG_MAPPING[kind](
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        initializer_range=0.2,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data = torch.rand_like(weight)
    return Layers(model, [[1, 2, 3, 4, 5], [9, 8, 7]])


@pytest.mark.parametrize(
    ("kind", "folded"), [("llama", 4), ("qwen3", 4), ("gemma3_text", 4), ("phi3", 3)]
)
def test_awq_folds_change_no_layers_output(kind, folded):
    """Of the four tensors that a block's matrices read; Phi-3's up half is no matrix of its own."""
    layers = _with_layers(kind)
    with torch.inference_mode():
        before = [states.clone() for states in layers.outputs(0)]
        weights = {n: w.clone() for n, w in layers.blocks[0].named_parameters()}
        found, _ = shared_inputs(layers, 0)
        assert sum(len(shared.names) for shared in found) == sum(
            isinstance(m, torch.nn.Linear) for m in layers.blocks[0].modules()
        )
        for shared in found:
            shared.magnitude = torch.rand_like(shared.magnitude) + 0.1  # Something to scale by.
        changed = [bool(awq.scale_inputs(layers, 0, shared, 32, FLOAT)) for shared in found]
        for one, other in zip(before, layers.outputs(0), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    assert sum(changed) <= folded
    assert any(not torch.equal(w, weights[n]) for n, w in layers.blocks[0].named_parameters())


def test_statistics_are_those_of_every_token(sources):
    layers = open_layers(sources.merged, sources.calibration)
    seen = []
    hook = layers.blocks[0].mlp.down_proj.register_forward_pre_hook(
        lambda _m, args: seen.append(args[0][0])
    )
    found = {shared.names: shared for shared in shared_inputs(layers, 0)[0]}
    hook.remove()
    x = torch.cat(seen[-4:])
    assert ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj") in found
    assert found[("mlp.gate_proj", "mlp.up_proj")].norm == "post_attention_layernorm"
    down = found[("mlp.down_proj",)]
    assert down.tokens == sum(map(len, sources.calibration))
    torch.testing.assert_close(down.gram, x.t() @ x, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(down.magnitude, x.abs().mean(dim=0))


def test_layers_one_by_one_make_what_the_model_makes(sources):
    layers = open_layers(sources.merged, sources.calibration)
    row = torch.tensor([list(sources.calibration[0])])
    with torch.inference_mode():
        whole = layers.model(row, output_hidden_states=True, use_cache=False).hidden_states
        layers.advance(0)
    torch.testing.assert_close(layers.states[0], whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gptq", "awq"])
def test_file_says_what_was_computed_to_another_reader_and_to_transformers(form, sources, tmp_path):
    pytest.importorskip("compressed_tensors")
    module = {"gptq": gptq, "awq": awq}[form]
    facts = getattr(module, f"write_{form}")(sources, tmp_path / form)
    assert (facts["bits"], facts["group_size"], facts["calibration_rows"]) == (4, 64, 4)
    tensors = load_file(tmp_path / form / "model.safetensors")
    config = json.loads((tmp_path / form / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert {file.suffix for file in (tmp_path / form).iterdir()} <= {
        ".json",
        ".safetensors",
        ".jinja",
    }
    name = "model.layers.1.mlp.down_proj"
    rows, columns = tensors[f"{name}.weight_shape"].tolist()
    numbers = torch.tensor(unpacked(tensors[f"{name}.weight_packed"], columns), dtype=FLOAT)
    scale = tensors[f"{name}.weight_scale"]
    assert scale.dtype == torch.float16
    # Zero points are packed along the outputs.
    zero = torch.tensor(unpacked(tensors[f"{name}.weight_zero_point"].t(), rows), dtype=FLOAT).t()
    numbers -= zero.repeat_interleave(64, dim=1)
    mine = numbers * scale.float().repeat_interleave(64, dim=1)
    assert (rows, columns) == (64, 128)

    dense = load_model(tmp_path / form, FLOAT)
    # transformers multiplies in the scales' float16.
    torch.testing.assert_close(dense.get_submodule(name).weight, mine, rtol=5e-4, atol=0)
    with torch.inference_mode():
        wanted = dense(torch.tensor([sources.calibration[0][:-1]])).logits[0, 9:].numpy()
    found = next(module.answers(tmp_path / form, sources, sources.calibration[:1], [10]))
    assert abs(found - wanted).max() < 1e-3


def test_matrices_that_no_group_divides_are_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=48, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1,
            num_key_value_heads=2, vocab_size=9,
        )
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"\[48, 64\] inputs") as caught:
        group_size(model, "gptq")
    assert "GGUF" in caught.value.fix


def test_rows_of_one_token_calibrate_nothing(sources):
    with pytest.raises(DataError, match="calibration rows"):
        open_layers(sources.merged, [[1], []])


@pytest.mark.parametrize("form", ["gptq", "awq"])
def test_missing_package_names_the_extra(form, sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    module = {"gptq": gptq, "awq": awq}[form]
    with pytest.raises(EnvironmentProblem) as caught:
        getattr(module, f"write_{form}")(sources, tmp_path / form)
    assert "pip install 'tunesmith[export]'" in caught.value.fix
    assert not (tmp_path / form).exists()


@pytest.mark.slow
def test_damaged_packing_changes_the_answers(sources, tmp_path):
    """What the certificate would see: one word of one matrix."""
    pytest.importorskip("compressed_tensors")
    from safetensors.torch import save_file

    few = dataclasses.replace(sources, calibration=sources.calibration[:1])
    gptq.write_gptq(few, tmp_path / "g")
    before = next(gptq.answers(tmp_path / "g", few, few.calibration, [10]))
    path = tmp_path / "g/model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.down_proj.weight_scale"][:, 0] *= 1.5
    save_file(tensors, path, metadata={"format": "pt"})
    after = next(gptq.answers(tmp_path / "g", few, few.calibration, [10]))
    assert abs(after - before).max() > 1e-3
