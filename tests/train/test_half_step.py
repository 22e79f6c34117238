"""A step on frozen weights in 16 bits has the bits of the step on fp32 weights."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith import export
from tunesmith.config import recipe_from
from tunesmith.models import half
from tunesmith.models.frozen import load_frozen
from tunesmith.models.half import HalfLinear
from tunesmith.models.load import BaseModel, load_model
from tunesmith.store import Artifact, Run
from tunesmith.train import fast
from tunesmith.train.fast.kernels import without_kernels
from tunesmith.train.fast.preference import row_logps

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny
import test_stage as stage

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

CASES = [
    ("Llama", {"tie_word_embeddings": True}),
    ("Llama", {"tie_word_embeddings": False, "attention_bias": True}),
    ("Qwen2", {}),
    ("Phi", {"num_key_value_heads": 6}),
    ("Gemma2", {"head_dim": 16}),
]


@pytest.fixture(autouse=True)
def _many_slabs(monkeypatch):
    """The tiny heads are made of several slabs too."""
    monkeypatch.setattr(half, "SLAB_ENTRIES", 64 * 48)


def both(folder: Path, family: str, **changes: Any) -> tuple[Any, Any]:
    """The same adapter on weights in 16 bits and in fp32; as PEFT makes it, B not zero."""
    tiny.base_model(family, **changes).to(torch.float16).save_pretrained(folder)
    base = BaseModel("tiny", folder, "0" * 64)
    models = []
    for load in (load_frozen, load_model):
        torch.manual_seed(5)
        models.append(tiny.adapted(load(base, torch.float32)))
    return models[0], models[1]


def step(model: Any, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss, _ = fast.train_microbatch(model, batch, 100.0)
    return loss, tiny.adapter_grads(model)


def assert_same_bits(one: tuple[float, Any], two: tuple[float, Any]) -> None:
    assert one[0] == two[0]
    assert one[1].keys() == two[1].keys()
    for name, grad in one[1].items():
        assert grad.abs().max() > 0, name
        assert torch.equal(grad, two[1][name]), name


@pytest.mark.parametrize(("family", "changes"), CASES)
@pytest.mark.parametrize("kernels", [True, False])
def test_loss_and_gradients_have_the_same_bits(tmp_path, family, changes, kernels):
    narrow, wide = both(tmp_path, family, **changes)
    weights = zip(tiny_weights(narrow), tiny_weights(wide), strict=True)
    assert all(torch.equal(one, two) for one, two in weights)
    batch = tiny.one_batch(tiny.some_rows())
    reports = [fast.apply(model, fast.FastSwitches(kernels=kernels)) for model in (narrow, wide)]
    assert reports[0].fast == reports[1].fast
    assert reports[0].plain == reports[1].plain
    assert_same_bits(step(narrow, batch), step(wide, batch))
    assert fast.evaluate_microbatch(narrow, batch) == fast.evaluate_microbatch(wide, batch)
    for model in (narrow, wide):
        fast.remove(model)
    assert_same_bits(step(narrow, batch), step(wide, batch))


def tiny_weights(model: Any) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_the_plain_path_has_the_same_bits_too(tmp_path, family, changes):
    narrow, wide = both(tmp_path, family, **changes)
    batch = tiny.one_batch(tiny.some_rows())
    assert_same_bits(step(narrow, batch), step(wide, batch))


def test_log_probabilities_of_answers_have_the_same_bits(tmp_path):
    narrow, wide = both(tmp_path, "Llama")
    batch = tiny.one_batch(tiny.some_rows())
    for model in (narrow, wide):
        fast.apply(model)
    assert torch.equal(row_logps(narrow, batch), row_logps(wide, batch))


def test_layers_that_stay_in_fp32_beside_others_are_held_too(tmp_path):
    """One weight of the joint product has a value that 16 bits do not have."""
    tiny.base_model("Llama").to(torch.float16).float().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.self_attn.k_proj.weight"][0, 0] = 0.1
    save_file(weights, file, metadata={"format": "pt"})
    base = BaseModel("tiny", tmp_path, "0" * 64)
    made = []
    for load in (load_frozen, load_model):
        torch.manual_seed(5)
        model = tiny.adapted(load(base, torch.float32))
        fast.apply(model)
        made.append(model)
    attention = made[0].get_base_model().model.layers[0].self_attn
    kinds = [type(getattr(attention, name).base_layer) for name in ("q_proj", "k_proj")]
    assert kinds == [HalfLinear, torch.nn.Linear]
    batch = tiny.one_batch(tiny.some_rows())
    assert_same_bits(step(made[0], batch), step(made[1], batch))


def test_weights_that_were_moved_after_apply_are_refused(tmp_path):
    model, _ = both(tmp_path, "Llama")
    fast.apply(model)
    layer = model.get_base_model().model.layers[1].mlp.up_proj.base_layer
    layer.weight.data = layer.weight.data.clone()
    with pytest.raises(ValueError, match="moved, cast or merged"):
        step(model, tiny.one_batch(tiny.some_rows()))


def test_a_frozen_16_bit_weight_that_is_not_finite_is_named(tmp_path):
    from tunesmith.train.nonfinite import _bad_weights

    model, _ = both(tmp_path, "Llama")
    layer = model.get_base_model().model.layers[1].mlp.up_proj.base_layer
    layer.narrow[0, 0] = torch.inf
    assert [name.endswith("1.mlp.up_proj.base_layer.weight") for name in _bad_weights(model)] == [
        True
    ]


@pytest.fixture
def half_base(tmp_path, tiny_base):
    """The tiny base as models are published: in 16 bits."""
    folder = tmp_path / "half-base"
    shutil.copytree(tiny_base, folder)
    weights = {name: one.half() for name, one in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed")
def test_killed_and_resumed_and_merged_it_is_the_straight_run(tmp_path, half_base, dataset):
    values = stage.settings(half_base, epochs=4)
    values["export"] = {"forms": ["adapter", "merged"], "parity_prompts": 2, "parity_tokens": 4}
    straight = stage.start(tmp_path / "straight", dataset, values)
    assert straight.wait() == 0, stage.said(tmp_path / "straight").read_text()
    killed = stage.fork(tmp_path / "killed", dataset, values)
    stage.wait_for_steps(tmp_path / "killed", 4, killed)
    killed.kill()
    killed.wait()
    resumed = stage.fork(tmp_path / "killed", dataset, values)
    assert resumed.wait() == 0, stage.said(tmp_path / "killed").read_text()
    assert stage.adapter_bytes(tmp_path / "killed") == stage.adapter_bytes(tmp_path / "straight")
    merged = []
    for name in ("straight", "killed"):
        trained = Artifact.open(tmp_path / name, "train")
        with Run.open(tmp_path / f"{name}-bundle", "export", inputs={}) as at:
            bundle = export.run(recipe_from(values), at, dataset, trained)
        merged.append(bundle.artifact.path("merged/model.safetensors").read_bytes())
    assert merged[0] == merged[1]


def test_without_kernels_the_head_has_the_same_bits_in_either_type():
    torch.manual_seed(0)
    weight = (torch.randn(300, 48) * 0.1).half()
    hidden = torch.randn(20, 48)
    positions, labels = torch.arange(9), torch.randint(0, 300, (9,))
    found = []
    with without_kernels():
        for form in (weight, weight.float()):
            used = hidden.clone().requires_grad_()
            loss = fast.head.head_loss(used, form, positions, labels, 3.0)
            loss.backward()
            found.append((float(loss.detach()), used.grad))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
