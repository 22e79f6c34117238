"""The format of each tensor, held against what llama.cpp chose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.export.quantise.policy import FILE_TYPES, Model, choose_types, in_order
from tunesmith.models.files.ggml import GGML_TYPES
from tunesmith.models.files.gguf import GgufTensor

RECORDED = json.loads((Path(__file__).parent / "types_of_llama_cpp.json").read_text())["models"]


def tensors_of(shapes: dict[str, list[int]], layers: int) -> dict[str, GgufTensor]:
    found = {}
    for name, shape in shapes.items():
        for layer in range(layers if "*" in name else 1):
            whole = name.replace("*", str(layer))
            found[whole] = GgufTensor(whole, GGML_TYPES[0], tuple(shape), 0, 0)
    return found


def spelled(recorded: dict[str, str]) -> dict[str, str]:
    """ "2xQ6_K 1xQ4_K" back to a format for each layer."""
    found = {}
    for name, runs in recorded.items():
        types = [t for run in runs.split() for t in [run.split("x")[1]] * int(run.split("x")[0])]
        found |= {name.replace("*", str(layer)): kind for layer, kind in enumerate(types)}
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_each_tensor_has_the_format_that_llama_cpp_gives_it(name):
    known = RECORDED[name]
    seventy = name == "Llama-3.1-70B"
    model = Model(known["architecture"], known["layers"], known["experts"], seventy)
    tensors = tensors_of(known["shapes"], known["layers"])
    for kind, recorded in known["types"].items():
        chosen = choose_types(kind, tensors, model, importance=False)
        assert {n: choice.type for n, choice in chosen.items()} == spelled(recorded), kind


def test_layers_are_visited_by_number_and_what_is_in_none_comes_first():
    names = ["blk.10.a", "blk.2.b", "output.weight", "blk.2.a", "Z", "blk.0.x"]
    assert in_order(names) == ["Z", "output.weight", "blk.0.x", "blk.2.a", "blk.2.b", "blk.10.a"]


def test_a_matrix_of_importance_guards_the_first_layers_of_q4_0():
    known = RECORDED["Llama-3.1-8B"]
    tensors = tensors_of(known["shapes"], 32)
    model = Model("llama", 32, 0, False)
    chosen = choose_types("q4_0", tensors, model, importance=True)
    guarded = [name for name, choice in chosen.items() if choice.type == "Q4_1"]
    assert guarded == [f"blk.{layer}.ffn_down.weight" for layer in range(4)]


def test_an_expert_in_no_layer_is_refused():
    shape = {"blk.9.ffn_down_exps.weight": [256, 4, 8]}
    with pytest.raises(ValueError, match="none of the model's 4 layers"):
        choose_types("q4_k_m", tensors_of(shape, 1), Model("llama", 4, 8, False), importance=False)


@pytest.mark.parametrize(
    ("architecture", "layers", "heads", "key_heads", "expected"),
    [
        ("llama", 80, 64, 8, True),
        ("llama", 80, 64, 64, False),
        ("qwen2", 80, 64, 64, True),
        ("llama", 32, 32, 8, False),
        ("phi3", 80, 64, 8, False),
    ],
)
def test_models_of_eighty_layers_are_told_by_their_heads(
    architecture, layers, heads, key_heads, expected
):
    class File:
        def get(self, key, default=None):
            return {
                "general.architecture": architecture,
                f"{architecture}.block_count": layers,
                f"{architecture}.attention.head_count": heads,
                f"{architecture}.attention.head_count_kv": [key_heads] * layers,
            }.get(key, default)

    assert Model.of(File()).is_seventy_b is expected


def test_file_types_have_the_numbers_of_the_gguf_package():
    from gguf import LlamaFileType

    names = {"f32": "ALL_F32"} | {k: f"MOSTLY_{k.upper()}" for k in FILE_TYPES if k != "f32"}
    assert {k: t.number for k, t in FILE_TYPES.items()} == {
        k: LlamaFileType[name].value for k, name in names.items()
    }
