"""The form `pruned`."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from tunesmith.config import ExportConfig, ModelConfig
from tunesmith.errors import ModelError
from tunesmith.export.folders import prune
from tunesmith.export.reference import Given
from tunesmith.models.load import load_model, resolve_base, save_model

ROWS = tuple(tuple(range(3 + start, 40 + start)) for start in range(3))
IDLE = (2, 3)


@pytest.fixture(scope="module")
def deep(make, tmp_path_factory, short_tokenizer):
    """Six layers, of which 2 and 3 pass on what they read."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(short_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.3,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=4,
        tie_word_embeddings=True,
        eos_token_id=short_tokenizer.eos_token_id,
    )
    model = Qwen3ForCausalLM(config)
    for index in IDLE:
        layer = model.model.layers[index]
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    folder = tmp_path_factory.mktemp("deep")
    save_model(model, short_tokenizer, folder / "base")
    base = resolve_base(ModelConfig(base=str(folder / "base")))
    return make.sources(folder, base, rows=ROWS, prune_layers=2)


def test_layers_that_do_nothing_are_the_ones_dropped_and_nothing_is_lost(deep, tmp_path):
    sources = dataclasses.replace(deep, validation=Given(ROWS, (10, 10, 10)))
    facts = prune.write_pruned(sources, tmp_path / "pruned")
    assert (facts["dropped_layers"], facts["layers"], facts["layers_before"]) == ([2, 3], 4, 6)
    assert facts["validation_rows"] == 3
    assert facts["validation_loss_pruned"] == pytest.approx(facts["validation_loss"], abs=1e-4)
    config = json.loads((tmp_path / "pruned/config.json").read_text())
    assert config["num_hidden_layers"] == 4
    kept = [0, 1, 4, 5]
    before = json.loads((deep.merged / "config.json").read_text())["layer_types"]
    assert config["layer_types"] == [before[index] for index in kept]
    assert len(set(config["layer_types"])) == 2
    whole = load_model(deep.merged, torch.float32)
    with torch.inference_mode():
        wanted = whole(torch.tensor([ROWS[0][:-1]])).logits[0, 9:].numpy()
    found = next(prune.answers(tmp_path / "pruned", sources, ROWS[:1], [10]))
    assert abs(found - wanted).max() < 1e-4


def test_loss_is_the_written_folders_own(deep, tmp_path):
    """Dropping layers that do something costs what the facts say."""
    sources = dataclasses.replace(
        deep, config=ExportConfig(prune_layers=4), validation=Given(ROWS, (10, 10, 10))
    )
    facts = prune.write_pruned(sources, tmp_path / "pruned")
    assert facts["validation_loss_pruned"] != pytest.approx(facts["validation_loss"], abs=1e-3)
    loss, tokens = 0.0, 0
    for row, logits in zip(
        ROWS, prune.answers(tmp_path / "pruned", sources, ROWS, [10, 10, 10]), strict=True
    ):
        target = torch.tensor(row[10:])
        loss += float(torch.nn.functional.cross_entropy(torch.tensor(logits), target)) * len(target)
        tokens += len(target)
    assert facts["validation_loss_pruned"] == pytest.approx(loss / tokens, abs=1e-4)


def test_one_layer_in_eight_is_the_default_and_at_least_one(deep, tmp_path):
    sources = dataclasses.replace(deep, config=ExportConfig())
    facts = prune.write_pruned(sources, tmp_path / "pruned")
    assert facts["layers"] == 5
    assert "validation_loss" not in facts


def test_more_layers_than_there_are_is_refused(deep, tmp_path):
    sources = dataclasses.replace(deep, config=ExportConfig(prune_layers=6))
    with pytest.raises(ModelError, match="prune_layers is 6, and the model has 6 layers") as caught:
        prune.write_pruned(sources, tmp_path / "pruned")
    assert caught.value.fix == "--set export.prune_layers=1"
    assert not (tmp_path / "pruned").exists()


def test_angle_of_a_turn_is_its_share_of_pi():
    right, up = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert prune.angle([right], [up]) == pytest.approx(0.5, abs=1e-3)
    assert prune.angle([right, right], [-right, 2 * right]) == pytest.approx(0.5, abs=1e-3)
