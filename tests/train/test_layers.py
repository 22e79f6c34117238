"""Adapters only in the upper layers: which get one, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tunesmith.config import LoraMethod
from tunesmith.errors import ConfigError
from tunesmith.models.adapters import put_adapter
from tunesmith.train.layers import upper_layers
from tunesmith.train.methods import prepare_lora, save_trained

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def base():
    return tiny.base_model("Llama", num_hidden_layers=4)


def adapted_names(**settings) -> set[str]:
    model = prepare_lora(base(), LoraMethod(rank=2, **settings), seed=0)
    return {
        name.removeprefix("base_model.model.model.layers.").removesuffix(".lora_A.default.weight")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "lora_A" in name
    }


def test_the_last_layers_get_adapters_on_all_their_linear_layers():
    upper, everywhere = adapted_names(layers=2), adapted_names()
    assert len(everywhere) == 4 * 7
    assert upper == {name for name in everywhere if name.startswith(("2.", "3."))}


def test_as_many_layers_as_there_are_is_the_same_as_none_given():
    assert adapted_names(layers=4) == adapted_names()


def test_named_targets_are_taken_in_the_last_layers_alone():
    names = adapted_names(layers=1, targets=("q_proj", "down_proj"))
    assert names == {"3.self_attn.q_proj", "3.mlp.down_proj"}


def test_more_layers_than_the_model_has_are_refused_with_its_number():
    with pytest.raises(ConfigError, match=r"layers = 5, but the model has 4") as caught:
        upper_layers(base(), 5)
    assert "train.method.layers=4" in caught.value.fix


def test_a_target_that_only_lower_layers_have_is_refused():
    model = base()
    model.model.layers[0].mlp.extra_proj = torch.nn.Linear(48, 48)
    with pytest.raises(ConfigError, match="extra_proj, which the last 2 layers") as caught:
        prepare_lora(model, LoraMethod(layers=2, targets=("extra_proj", "q_proj")), seed=0)
    assert "raise train.method.layers" in caught.value.fix


def test_an_adapter_of_upper_layers_is_saved_and_put_back_the_same(tmp_path):
    model = prepare_lora(base(), LoraMethod(rank=2, layers=2), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(3, 20)[None]
    save_trained(model, None, tmp_path, base_name="base")
    again = put_adapter(base(), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)
        assert not torch.equal(again(ids).logits, base()(ids).logits)
