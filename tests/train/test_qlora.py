"""QLoRA: the fast step equals PEFT on NF4 layers, on dense copies of them, and on bitsandbytes."""

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
from tunesmith.errors import ConfigError
from tunesmith.models.load import BaseModel, load_model
from tunesmith.models.nf4 import Nf4Linear
from tunesmith.models.quantised import Nf4Format, load_nf4, original_weights, quantise_linears
from tunesmith.store import Artifact, Run
from tunesmith.train import fast
from tunesmith.train import stage as train_stage
from tunesmith.train.fast.kernels import why_not, without_kernels
from tunesmith.train.fast.lora import LoraGroup, Projection

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny
import test_stage as stage

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

SHAPE = {"hidden_size": 96, "intermediate_size": 128}
"""Every weight a whole number of blocks, in whole rows too, which bitsandbytes wants on a CPU."""
SHAPE_OF_WHOLE_ROWS = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
}


def quantised(family: str = "Llama", form: Nf4Format | None = None, **changes: Any) -> Any:
    base = tiny.base_model(family, **{**SHAPE, **changes})
    quantise_linears(base, torch.float32, form or Nf4Format())
    return base


def adapted(base: Any) -> Any:
    """The same adapter on any base, whatever was drawn to make it."""
    torch.manual_seed(5)
    return tiny.adapted(base)


def step(model: Any, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss, _ = fast.train_microbatch(model, batch, 100.0)
    return loss, tiny.adapter_grads(model)


def assert_fast_equals_plain(model: Any, tolerance: float = 2e-5) -> Any:
    batch = tiny.one_batch(tiny.some_rows())
    loss, grads = step(model, batch)
    report = fast.apply(model)
    fast_loss, fast_grads = step(model, batch)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    tiny.assert_same_grads(grads, fast_grads, tolerance)
    return report


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_the_fast_step_equals_the_plain_one(family, double_quant):
    model = tiny.adapted(quantised(family, Nf4Format(64, double_quant)))
    report = assert_fast_equals_plain(model)
    assert not report.plain
    assert report.fast["attention_block"] == report.fast["mlp_block"] == 2


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2"])
def test_other_families_keep_their_fast_parts(family):
    report = assert_fast_equals_plain(tiny.adapted(quantised(family, head_dim=16)), 5e-5)
    dense = fast.apply(tiny.adapted(tiny.base_model(family, **SHAPE, head_dim=16)))
    assert report.fast == dense.fast


def test_the_step_is_that_of_dense_layers_that_hold_the_dequantised_weights():
    model, batch = adapted(quantised()), tiny.one_batch(tiny.some_rows())
    fast.apply(model)
    loss, grads = step(model, batch)
    base = quantised()
    for name, layer in list(base.named_modules()):
        if isinstance(layer, Nf4Linear):
            dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
            dense.weight = torch.nn.Parameter(layer.dense(torch.float32))
            parent, _, leaf = name.rpartition(".")
            setattr(base.get_submodule(parent), leaf, dense)
    other_loss, other_grads = step(adapted(base), batch)
    assert loss == pytest.approx(other_loss, rel=1e-5)
    tiny.assert_same_grads(other_grads, grads)


def test_the_step_is_that_of_peft_with_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes", reason="reference; the record stands in for it")
    model = adapted(quantised(**SHAPE_OF_WHOLE_ROWS))
    batch = tiny.one_batch(tiny.some_rows())
    fast.apply(model)
    loss, grads = step(model, batch)
    base = tiny.base_model("Llama", **{**SHAPE, **SHAPE_OF_WHOLE_ROWS})
    for name, layer in list(base.model.named_modules()):
        if type(layer) is torch.nn.Linear:
            held = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, bias=False, quant_type="nf4"
            )
            held.weight = bnb.nn.Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4", module=held
            ).to("cpu")
            parent, _, leaf = name.rpartition(".")
            setattr(base.model.get_submodule(parent), leaf, held)
    base.is_loaded_in_4bit = True
    reference = adapted(base)
    assert type(reference.base_model.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    other_loss, other_grads = step(reference, batch)
    assert loss == pytest.approx(other_loss, rel=1e-5)
    tiny.assert_same_grads(other_grads, grads)


def test_a_layer_that_stays_dense_beside_quantised_ones_is_held_too():
    # 9,216 weights for the queries, 1,536 for the keys.
    model = tiny.adapted(quantised(form=Nf4Format(1024), num_key_value_heads=1))
    attention = model.get_base_model().model.layers[0].self_attn
    kinds = [type(getattr(attention, name).base_layer) for name in ("q_proj", "k_proj")]
    assert kinds == [Nf4Linear, torch.nn.Linear]
    assert not assert_fast_equals_plain(model).plain


def test_layers_without_an_adapter_are_quantised_and_held():
    model = tiny.adapted(quantised(), target_modules=["q_proj", "down_proj"])
    assert isinstance(model.get_base_model().model.layers[0].self_attn.k_proj, Nf4Linear)
    assert not assert_fast_equals_plain(model).plain


def test_bf16_products_come_near_the_fp32_gradients():
    batch = tiny.one_batch(tiny.some_rows())
    model = tiny.adapted(quantised())
    loss, grads = step(model, batch)
    base = tiny.base_model("Llama", **SHAPE)
    quantise_linears(base, torch.bfloat16, Nf4Format())
    for module in base.modules():
        if not isinstance(module, Nf4Linear):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(parameter.to(torch.bfloat16)))
    base.tie_weights()
    half = tiny.adapted(base)
    fast.apply(half)
    half_loss, half_grads = step(half, batch)
    assert half_loss == pytest.approx(loss, rel=2e-2)
    for name, grad in half_grads.items():
        assert grad.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(grad.flatten(), grads[name].flatten(), 0)
        assert cosine > 0.99, name


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_the_kernel_makes_the_same_dense_bits_as_the_torch_operations(dtype, block_size):
    torch.manual_seed(0)
    form = {"block_size": block_size, "double_quant": True, "compute_dtype": dtype}
    layers = [Nf4Linear(192, rows, None, **form) for rows in (128, 64)]
    for layer in layers:
        layer.quantise(torch.randn(layer.out_features, 192))
    group = LoraGroup([Projection(layer, None, None, 0.0) for layer in layers])
    with without_kernels():
        wanted = group.weight.clone()
    assert torch.equal(group.weight, wanted)
    assert torch.equal(wanted, torch.cat([layer.dense(dtype) for layer in layers]))


def test_groups_keep_no_dense_copy_and_share_the_memory_of_the_one_in_use():
    model = tiny.adapted(quantised())
    fast.apply(model)
    step(model, tiny.one_batch(tiny.some_rows()))
    groups = fast.swap.fast_path_of(model).groups
    assert len(groups) == 8
    assert len({group.weight.untyped_storage().data_ptr() for group in groups}) == 1


def test_weights_that_were_quantised_anew_are_refused_until_removed():
    model = tiny.adapted(quantised())
    fast.apply(model)
    layer = model.get_base_model().model.layers[1].mlp.up_proj.base_layer
    layer.quantise(torch.randn(layer.out_features, layer.in_features))
    batch = tiny.one_batch(tiny.some_rows())
    with pytest.raises(ValueError, match="moved, cast or merged"):
        step(model, batch)
    fast.remove(model)
    fast.apply(model)
    assert step(model, batch)[0] > 0


def test_the_fast_step_can_read_the_original_weights_from_the_file(tmp_path):
    tiny.base_model("Llama", **SHAPE).save_pretrained(tmp_path)
    base = BaseModel("tiny", tmp_path, "0" * 64)
    batch = tiny.one_batch(tiny.some_rows())
    wanted, _ = fast.evaluate_microbatch(adapted(load_model(base, torch.float32)), batch)
    model = adapted(load_nf4(base, torch.float32, Nf4Format()))
    fast.apply(model)
    before, _ = fast.evaluate_microbatch(model, batch)
    with original_weights(model):
        assert fast.evaluate_microbatch(model, batch)[0] == pytest.approx(wanted, rel=1e-5)
    assert before != pytest.approx(wanted, rel=1e-4)
    assert fast.evaluate_microbatch(model, batch)[0] == before


def settings(base: Path, **train: Any) -> dict[str, Any]:
    return stage.settings(base, method={"kind": "qlora", "rank": 4}, **train)


def test_a_block_size_that_nf4_does_not_have_is_refused(tiny_base):
    method = {"kind": "qlora", "block_size": 48}
    with pytest.raises(ConfigError, match="block_size"):
        recipe_from({"model": {"base": str(tiny_base)}, "train": {"method": method}})


def test_a_run_whose_loss_on_the_original_base_is_not_finite_is_sealed_and_says_so(
    tmp_path, tiny_base, dataset, monkeypatch, capsys
):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    real = train_stage.save_trained

    def damaging(*args: Any, **options: Any) -> None:
        """The base's file gets a bad weight between the training and the seal."""
        weights = load_file(base / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.inf
        save_file(weights, base / "new", metadata={"format": "pt"})
        (base / "new").replace(base / "model.safetensors")
        real(*args, **options)

    monkeypatch.setattr(train_stage, "save_trained", damaging)
    result = stage.train_here(tmp_path / "run", dataset, settings(base, max_steps=1))
    facts = Artifact.open(tmp_path / "run", "train").facts["quantised_base"]
    assert facts["validation_loss_on_original"] is None
    assert "the loss is nan" in facts["why_no_loss"]
    assert facts["why_no_loss"] in " ".join(capsys.readouterr().err.split())
    assert result.validation_loss > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed")
def test_a_run_learns_samples_states_its_base_and_exports_onto_the_original(
    tmp_path, tiny_base, dataset
):
    values = settings(tiny_base, epochs=4, sample_rows=1, optimizer={"learning_rate": 0.02})
    values["export"] = {"forms": ["adapter", "merged"], "parity_prompts": 2, "parity_tokens": 4}
    result = stage.train_here(tmp_path / "run", dataset, values)
    assert result.validation_loss < result.first_validation_loss - 0.1
    facts = Artifact.open(tmp_path / "run", "train").facts
    quantised = facts["quantised_base"]
    assert (quantised["kind"], quantised["block"], quantised["double_quant"]) == ("nf4", 64, True)
    assert quantised["layers"] == 14
    assert 4 < quantised["bits_per_weight"] < 5
    original = quantised["validation_loss_on_original"]
    assert original != result.validation_loss
    assert original == pytest.approx(result.validation_loss, abs=0.5)
    trained = Artifact.open(tmp_path / "run", "train")
    with Run.open(tmp_path / "bundle", "export", inputs={}) as at:
        bundle = export.run(recipe_from(values), at, dataset, trained)
    assert "merged/model.safetensors" in bundle.artifact.files


@pytest.mark.slow
def test_killed_and_resumed_it_is_bit_equal_to_a_straight_run(tmp_path, tiny_base, dataset):
    values = settings(tiny_base, epochs=4)
    straight = stage.start(tmp_path / "straight", dataset, values)
    assert straight.wait() == 0, stage.said(tmp_path / "straight").read_text()
    killed = stage.fork(tmp_path / "killed", dataset, values)
    stage.wait_for_steps(tmp_path / "killed", 4, killed)
    killed.kill()
    killed.wait()
    resumed = stage.fork(tmp_path / "killed", dataset, values)
    assert resumed.wait() == 0, stage.said(tmp_path / "killed").read_text()
    assert stage.adapter_bytes(tmp_path / "killed") == stage.adapter_bytes(tmp_path / "straight")
