"""A PEFT adapter as a GGUF LoRA file, proved on llama.cpp's logits."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("xllamacpp")
pytest.importorskip("conversion")
sys.path.insert(0, str(Path(__file__).parent))
import gguf_families as tiny
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ModelError
from tunesmith.export.convert import to_gguf
from tunesmith.export.gguf_lora import write_lora
from tunesmith.models.load import load_model

SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 20}},
    "rank_pattern": {"rank_pattern": {"k_proj": 7, "up_proj": 2}},
    "all three": {
        "use_rslora": True,
        "alpha_pattern": {r"model\.layers\.0\..*": 5, "v_proj": 11},
        "rank_pattern": {"o_proj": 1, "gate_proj": 9},
    },
}


class Bench:
    """A base, its GGUF file, a row of tokens and what the base expects there."""

    def __init__(self, folder: Path, case: tiny.Case) -> None:
        self.folder = folder
        self.base = tiny.save_case(case, folder / "base")
        self.gguf = folder / "base.gguf"
        to_gguf(self.base, self.gguf, "f32", "tiny")
        self.row = tiny.row_of(len(tiny.tokenizer_of(case.tokenizer)))
        self.plain = tiny.logprobs_of(self.model(), self.row)

    def model(self):
        return load_model(self.base, torch.float32)

    def adapter(self, place: Path, **settings):
        """Folder of a random adapter, and what base + adapter expects."""
        adapted = tiny.adapter_for(self.model(), place, **settings)
        return place, tiny.logprobs_of(adapted, self.row)

    def gap(self, wanted, lora: Path) -> tiny.Gap:
        return tiny.gap(self.gguf, wanted, self.row, lora)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("lora"), tiny.LLAMA)


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Bench:
    case = tiny.LLAMA.has(tie_word_embeddings=False)
    return Bench(tmp_path_factory.mktemp("untied"), case)


def test_a_plain_adapter_is_base_plus_adapter_in_llama_cpp(bench, tmp_path):
    adapter, wanted = bench.adapter(tmp_path / "adapter")
    facts = write_lora(adapter, bench.base, tmp_path / "lora.gguf", name="tiny")
    assert facts == {"alpha": 8.0, "modules": 14, "ranks": [4], "modules_with_a_factor": 0}
    found = bench.gap(wanted, tmp_path / "lora.gguf")
    assert found.largest < 1e-3
    assert found.agreement == 1
    # The adapter is no whisper: without it, the answers are others.
    assert bench.gap(bench.plain, tmp_path / "lora.gguf").largest > 1


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_scale_of_peft_arrives(bench, tmp_path, settings):
    adapter, wanted = bench.adapter(tmp_path / "adapter", **settings)
    write_lora(adapter, bench.base, tmp_path / "lora.gguf", name="tiny")
    found = bench.gap(wanted, tmp_path / "lora.gguf")
    assert found.largest < 1e-3
    assert found.agreement == 1


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2.0, 0.5, 1.05])
def test_a_wrong_scale_is_seen(bench, tmp_path, factor):
    adapter, wanted = bench.adapter(tmp_path / "adapter", use_rslora=True)
    lora = tmp_path / "lora.gguf"
    write_lora(adapter, bench.base, lora, name="tiny")
    tiny.replace_value(lora, "adapter.lora.alpha", 8.0 * factor)
    assert bench.gap(wanted, lora).largest > 0.05


@pytest.mark.slow
def test_the_scale_that_llama_cpp_would_take_from_the_config_is_another_for_rslora(bench, tmp_path):
    """Its own converter writes B as it is; so does this for plain LoRA, and only there."""
    adapter, wanted = bench.adapter(tmp_path / "adapter", use_rslora=True)
    config = adapter / "adapter_config.json"
    plain = json.loads(config.read_text()) | {"use_rslora": False}
    config.write_text(json.dumps(plain))
    write_lora(adapter, bench.base, tmp_path / "lora.gguf", name="tiny")
    assert bench.gap(wanted, tmp_path / "lora.gguf").largest > 0.5


@pytest.mark.slow
def test_rows_that_are_not_moved_with_the_base_are_seen(bench, tmp_path):
    import gguf
    import numpy as np

    adapter, wanted = bench.adapter(tmp_path / "adapter")
    lora = tmp_path / "lora.gguf"
    write_lora(adapter, bench.base, lora, name="tiny")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    stored = load_file(adapter / "adapter_model.safetensors")[key].numpy()
    reader = gguf.GGUFReader(lora, "r+")
    tensor = next(t for t in reader.tensors if t.name == "blk.0.attn_q.weight.lora_b")
    assert not np.array_equal(tensor.data, stored)
    tensor.data[:] = stored
    del reader, tensor
    assert bench.gap(wanted, lora).largest > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head", "v_proj"]])
def test_embedding_and_head_of_an_untied_model_are_adapted(untied, tmp_path, targets):
    adapter, wanted = untied.adapter(tmp_path / "adapter", target_modules=targets)
    write_lora(adapter, untied.base, tmp_path / "lora.gguf", name="tiny")
    found = untied.gap(wanted, tmp_path / "lora.gguf")
    assert found.largest < 1e-3
    assert found.agreement == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [tiny.MISTRAL, tiny.QWEN2, tiny.QWEN3, tiny.SMOLLM3, tiny.PHI, tiny.G2, tiny.G3],
    ids=lambda case: case.family,
)
def test_adapters_of_every_family_fit_its_tensors(tmp_path, case):
    bench = Bench(tmp_path, case)
    adapter, wanted = bench.adapter(tmp_path / "adapter", use_rslora=True)
    write_lora(adapter, bench.base, tmp_path / "lora.gguf", name="tiny")
    found = bench.gap(wanted, tmp_path / "lora.gguf")
    # Adapted logits are larger than the base's, and Gemma's GELU comes from a table.
    assert found.largest < 3 * case.tolerance
    assert found.agreement == 1


@pytest.mark.parametrize("targets", ["embed_tokens", "lm_head"])
def test_an_adapter_on_one_of_two_tied_matrices_is_refused(tmp_path, targets):
    tied = tiny.save_case(tiny.LLAMA.has(tie_word_embeddings=True), tmp_path / "tied")
    model = load_model(tied, torch.float32)
    tiny.adapter_for(model, tmp_path / "adapter", target_modules=[targets])
    with pytest.raises(ModelError, match=f"changes .*{targets} of a model whose head is tied"):
        write_lora(tmp_path / "adapter", tied, tmp_path / "lora.gguf", name="tiny")
    assert not (tmp_path / "lora.gguf").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "bias beside each B"),
        ({"modules_to_save": ["lm_head"]}, "whole trained modules"),
        ({"trainable_token_indices": [5, 6]}, "single tokens' embeddings"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"use_dora": True, "bias": "lora_only"}, "biases"),
    ],
)
def test_what_a_lora_file_cannot_hold_is_refused_with_its_reason(bench, tmp_path, settings, told):
    tiny.adapter_for(bench.model(), tmp_path / "adapter", **settings)
    with pytest.raises(ModelError, match=told) as caught:
        write_lora(tmp_path / "adapter", bench.base, tmp_path / "lora.gguf", name="tiny")
    assert "merged" in caught.value.fix
    assert not (tmp_path / "lora.gguf").exists()


def test_another_kind_of_adapter_is_refused(bench, tmp_path):
    adapter, _ = bench.adapter(tmp_path / "adapter")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(ModelError, match="peft_type 'IA3'"):
        write_lora(adapter, bench.base, tmp_path / "lora.gguf", name="tiny")


@pytest.mark.slow
def test_an_adapter_of_another_base_is_refused(bench, tmp_path):
    adapter, _ = bench.adapter(tmp_path / "adapter")
    narrow = tiny.save_case(tiny.LLAMA.has(hidden_size=32), tmp_path / "narrow")
    with pytest.raises(ModelError, match="made for a weight of"):
        write_lora(adapter, narrow, tmp_path / "lora.gguf", name="tiny")
    shallow = tiny.save_case(tiny.LLAMA.has(num_hidden_layers=1), tmp_path / "shallow")
    with pytest.raises(ModelError, match="the base has no such weight"):
        write_lora(adapter, shallow, tmp_path / "lora.gguf", name="tiny")


def _change(adapter: Path, change) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


KEY = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(KEY.format("A")), "has only one of A and B"),
        (lambda t: t.clear() or t.update(x=torch.zeros(1)), "no LoRA pair"),
        (lambda t: t.update({KEY.format("A"): torch.zeros(5, 64)}), "its config says rank 4"),
        (lambda t: t[KEY.format("B")].fill_(float("nan")), "not finite"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(400, 64)}), "no LoRA"),
    ],
)
def test_a_damaged_adapter_is_refused(bench, tmp_path, change, told):
    adapter, _ = bench.adapter(tmp_path / "adapter")
    _change(adapter, change)
    with pytest.raises(ModelError) as caught:
        write_lora(adapter, bench.base, tmp_path / "lora.gguf", name="tiny")
    assert told in str(caught.value)
    assert not (tmp_path / "lora.gguf").exists()


@pytest.mark.slow
def test_missing_and_unreadable_files_are_refused(bench, tmp_path):
    adapter, _ = bench.adapter(tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        write_lora(adapter, bench.base, tmp_path / "lora.gguf", name="tiny")
    shutil.rmtree(adapter)
    with pytest.raises(ModelError, match="no readable adapter_config"):
        write_lora(adapter, bench.base, tmp_path / "lora.gguf", name="tiny")
