"""Every stored weight of `merged` and `pruned` is the merged model's, rounded; of `pruned` in the layers' order."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tunesmith.errors import ParityError
from tunesmith.export.same_weights import check_weights

LAYERS = 5
PARTS = ("self_attn.q_proj.weight", "mlp.experts.3.up_proj.weight", "input_layernorm.weight")


def tensors(dtype=torch.float32, layers=range(LAYERS)):
    """Of the layers that are named, numbered anew."""
    chance = torch.Generator().manual_seed(0)
    outside = {name: torch.randn(7, 3, generator=chance) for name in ("model.embed", "model.norm")}
    every = [{part: torch.randn(4, 3, generator=chance) for part in PARTS} for _ in range(LAYERS)]
    inside = {
        f"model.layers.{number}.{part}": tensor
        for number, layer in enumerate(layers)
        for part, tensor in every[layer].items()
    }
    return {name: tensor.to(dtype) for name, tensor in (outside | inside).items()}


def folder(place, found):
    place.mkdir()
    (place / "config.json").write_text("{}")
    save_file({name: tensor.clone() for name, tensor in found.items()}, place / "model.safetensors")
    return place


@pytest.fixture
def merged(tmp_path):
    return folder(tmp_path / "float32", tensors())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_rounded_weights_are_the_same(tmp_path, merged, dtype):
    told = check_weights("merged", folder(tmp_path / "merged", tensors(dtype)), merged)
    assert told == f"all {2 + 3 * LAYERS} tensors are the merged model's, rounded once"


def test_the_sign_of_a_zero_counts(tmp_path):
    found = {"model.embed": torch.zeros(3, 2)}
    merged = folder(tmp_path / "float32", found)
    assert check_weights("merged", folder(tmp_path / "same", found), merged)
    found["model.embed"][1, 1] = -0.0
    with pytest.raises(ParityError, match=r"model\.embed"):
        check_weights("merged", folder(tmp_path / "merged", found), merged)


@pytest.mark.parametrize("layers", [(0, 1), (3, 4), (0, 2, 4), (1, 2, 3), range(LAYERS)], ids=str)
def test_any_layers_in_their_order_are_a_pruned_model(tmp_path, merged, layers):
    place = folder(tmp_path / "pruned", tensors(torch.float16, layers))
    assert check_weights("pruned", place, merged).startswith(f"all {2 + 3 * len(layers)} tensors")


@pytest.mark.parametrize("layers", [(1, 0), (0, 0), (2, 4, 3)], ids=str)
def test_layers_in_another_order_are_not(tmp_path, merged, layers):
    place = folder(tmp_path / "pruned", tensors(torch.float16, layers))
    with pytest.raises(ParityError, match=f"layer {len(layers) - 1} in pruned is none of"):
        check_weights("pruned", place, merged)


def stepped(found, name):
    flat = found[name].view(-1)
    flat[5] = torch.nextafter(flat[5], torch.tensor(9.0, dtype=flat.dtype))


LAST = "model.layers.1.mlp.experts.3.up_proj.weight"
DAMAGES = {
    "a step of one weight": lambda f: stepped(f, LAST),
    "a step of one weight outside of the layers": lambda f: stepped(f, "model.norm"),
    "a weight less": lambda f: f.pop(LAST),
    "a weight less outside of the layers": lambda f: f.pop("model.norm"),
    "a weight more": lambda f: f.update({"model.layers.1.more": torch.zeros(2)}),
    "a weight more outside of the layers": lambda f: f.update({"more": torch.zeros(2)}),
    "another shape": lambda f: f.update({LAST: f[LAST].reshape(3, 4)}),
    "no number": lambda f: f[LAST].view(-1)[0].fill_(float("nan")),
    "a part of the next layer": lambda f: f.update(
        {LAST: tensors(torch.float16)[LAST.replace("layers.1", "layers.2")]}
    ),
}


@pytest.mark.parametrize("form", ["merged", "pruned"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_differs_is_named(tmp_path, merged, form, damage):
    found = tensors(torch.float16, range(LAYERS) if form == "merged" else (0, 1, 4))
    DAMAGES[damage](found)
    with pytest.raises(ParityError, match=r"(not|none of) the merged model's"):
        check_weights(form, folder(tmp_path / form, found), merged)


def test_quantised_forms_and_a_source_that_is_gone_are_told(tmp_path, merged):
    place = folder(tmp_path / "x", tensors(torch.float16))
    assert check_weights("awq", place, merged) == ""
    assert check_weights("merged", place, tmp_path / "gone").startswith("not compared")
