"""Layers below the lowest trained one run without autograd, and something may stand in for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tunesmith.train import fast
from tunesmith.train.fast.trunk import FrozenTrunk, frozen_layers

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

UPPER = {"layers_to_transform": [2, 3], "target_modules": ["q_proj", "v_proj", "down_proj"]}


def model_of(family: str = "Llama", base: dict | None = None, **changes):
    settings = {"num_hidden_layers": 4, **(base or {})}
    return tiny.adapted(tiny.base_model(family, **settings), **{**UPPER, **changes})


def saved_in_layers(model, batch) -> list[int]:
    """Tensors that autograd keeps while each decoder layer runs forward."""
    layers = model.get_base_model().model.layers
    counts, now = [0] * len(layers), [-1]

    def pack(tensor):
        if now[0] >= 0:
            counts[now[0]] += 1
        return tensor

    def enter(index):
        return lambda module, inputs: now.__setitem__(0, index)

    hooks = [layer.register_forward_pre_hook(enter(i)) for i, layer in enumerate(layers)]
    hooks += [layer.register_forward_hook(lambda *_: now.__setitem__(0, -1)) for layer in layers]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fast.train_microbatch(model, batch, 100.0)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma2"])
@pytest.mark.parametrize("on_fast_path", [True, False])
def test_nothing_is_kept_for_a_backward_pass_in_frozen_layers(family, on_fast_path):
    model = model_of(family, {"head_dim": 8} if family == "Gemma2" else None)
    if on_fast_path:
        fast.apply(model)
    counts = saved_in_layers(model, tiny.one_batch(tiny.some_rows()))
    assert counts[:2] == [0, 0]
    assert all(counts[2:])


def test_all_layers_keep_something_when_all_are_trained():
    model = model_of(layers_to_transform=None)
    fast.apply(model)
    assert all(saved_in_layers(model, tiny.one_batch(tiny.some_rows())))


def test_frozen_layers_end_below_the_lowest_trained_weight():
    assert frozen_layers(model_of()) == 2
    assert frozen_layers(model_of(layers_to_transform=[3])) == 3
    assert frozen_layers(model_of(layers_to_transform=[1, 3])) == 1
    assert frozen_layers(model_of(layers_to_transform=None)) == 0
    assert frozen_layers(tiny.base_model("Llama", num_hidden_layers=4)) == 0


@pytest.mark.parametrize(("tied", "count"), [(True, 0), (False, 2)])
def test_a_trained_head_counts_only_when_it_is_the_embedding_too(tied, count):
    model = model_of(base={"tie_word_embeddings": tied})
    model.get_base_model().get_output_embeddings().weight.requires_grad_(True)
    assert frozen_layers(model) == count


def test_a_trained_embedding_leaves_no_frozen_layer():
    model = model_of(base={"tie_word_embeddings": False})
    model.get_base_model().get_input_embeddings().weight.requires_grad_(True)
    assert frozen_layers(model) == 0


def test_recorded_states_in_place_of_the_frozen_layers_give_the_same_loss_and_gradients():
    model = model_of()
    fast.apply(model)
    batch = tiny.one_batch(tiny.some_rows())
    loss, _ = fast.train_microbatch(model, batch, 100.0)
    grads = tiny.adapter_grads(model)
    trunk = FrozenTrunk(model, 2)
    with trunk.recording() as found:
        fast.evaluate_microbatch(model, batch)
    assert trunk.obstacle(found, 60) is None
    ran = []
    for layer in model.get_base_model().model.layers:
        layer.self_attn.register_forward_hook(lambda *_: ran.append(1))
        layer.mlp.register_forward_hook(lambda *_: ran.append(1))
    with trunk.replaced(lambda hidden: found[0]):
        assert fast.train_microbatch(model, batch, 100.0)[0] == loss
    again = tiny.adapter_grads(model)
    assert all(torch.equal(grads[name], again[name]) for name in grads)
    with trunk.replaced(lambda hidden: found[0] * 0.5):
        assert fast.train_microbatch(model, batch, 100.0)[0] != pytest.approx(loss, rel=1e-6)
    tiny.adapter_grads(model)
    trunk.detach()
    assert fast.train_microbatch(model, batch, 100.0)[0] == loss


def test_frozen_layers_do_not_run_while_something_stands_in_for_them():
    model = model_of()
    trunk = FrozenTrunk(model, 2)
    batch = tiny.one_batch(tiny.some_rows())
    with trunk.recording() as found:
        fast.evaluate_microbatch(model, batch)
    ran = []
    for index, layer in enumerate(model.get_base_model().model.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    with trunk.replaced(lambda hidden: found[0]):
        fast.evaluate_microbatch(model, batch)
    assert ran == [2, 3]
    ran.clear()
    with trunk.recording():
        fast.evaluate_microbatch(model, batch)
    assert ran == [0, 1]


def test_dropout_in_a_frozen_layer_is_an_obstacle_and_above_it_is_none():
    model = model_of("Phi", {"num_key_value_heads": 6, "resid_pdrop": 0.1}, target_modules=["fc2"])
    trunk = FrozenTrunk(model, 2)
    assert "dropout" in trunk.obstacle([torch.zeros(1, 2, 3)], 60)
    for layer in model.get_base_model().model.layers[:2]:
        layer.resid_dropout.p = 0.0
    assert trunk.obstacle([torch.zeros(1, 2, 3)], 60) is None
    assert "more than one tensor" in trunk.obstacle([(torch.zeros(1, 2, 3), None)], 60)


def test_rows_that_change_the_rotary_embedding_of_others_are_an_obstacle():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = model_of(base={"rope_parameters": rope, "max_position_embeddings": 64})
    trunk = FrozenTrunk(model, 2)
    assert trunk.obstacle([torch.zeros(1, 2, 3)], 64) is None
    assert "rotary embedding" in trunk.obstacle([torch.zeros(1, 2, 3)], 65)


def test_a_count_outside_of_the_model_is_refused():
    with pytest.raises(ValueError, match="count=5 of 4"):
        FrozenTrunk(model_of(), 5)
