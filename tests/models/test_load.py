"""Base models: identified by content, and refused when they are not what they should be."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tunesmith.config import ModelConfig
from tunesmith.errors import MissingError, ModelError
from tunesmith.models import embedded
from tunesmith.models.devices import choose_precision, default_threads
from tunesmith.models.frozen import load_frozen
from tunesmith.models.load import (
    BaseModel,
    load_model,
    load_tokenizer,
    quiet_transformers,
    resolve_base,
    tokenizer_on_disk,
)


@pytest.fixture(scope="module")
def base(embedded_base):
    return embedded_base


@pytest.mark.slow
def test_the_embedded_model_is_the_real_one_and_loads_without_quantisation(base):
    model = load_model(base, torch.float32)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    tokens = load_tokenizer(base)("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = int(model(**tokens).logits[0, -1].argmax())
    assert load_tokenizer(base).decode([best]).strip() == "Paris"


def test_a_copied_folder_is_the_same_model_and_a_changed_one_is_not(base, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(base.dir, copy)
    assert resolve_base(ModelConfig(base=str(copy))).sha256 == base.sha256
    (copy / "chat_template.jinja").write_text("other")
    assert resolve_base(ModelConfig(base=str(copy))).sha256 != base.sha256


def test_the_tokenizer_of_a_folder_is_had_without_reading_its_weights(base, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(base.dir, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    # What cannot be opened as a file cannot have been hashed either.
    (copy / "model.safetensors").mkdir()
    with pytest.raises(OSError, match="directory"):
        resolve_base(ModelConfig(base=str(copy)))
    tokenizer, name = tokenizer_on_disk(ModelConfig(base=str(copy)))
    assert name == "copy"
    assert tokenizer("a b").input_ids == load_tokenizer(base)("a b").input_ids


@pytest.mark.slow
def test_the_tokenizer_of_a_gguf_file_is_that_of_the_model_made_of_it(base, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    tokenizer, name = tokenizer_on_disk(ModelConfig(base="embedded"))
    assert list(tmp_path.rglob("*")) == []
    made = load_tokenizer(base)
    turns = [{"role": "user", "content": "Why is 7\u00a0prime?\n<|im_end|>"}]
    assert name == base.name
    assert tokenizer.get_vocab() == made.get_vocab()
    assert tokenizer.chat_template == made.chat_template
    for one in (turns[0]["content"], "def f(x):\n\treturn x  # \u00e9"):
        assert tokenizer(one).input_ids == made(one).input_ids


@pytest.mark.slow
def test_a_damaged_cache_is_noticed_and_made_again(monkeypatch, tmp_path, base):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    place = tmp_path / "models" / base.dir.parent.name
    shutil.copytree(base.dir.parent, place)
    made: list[str] = []

    def write_again(gguf, run):
        made.append(gguf.name)
        shutil.copytree(base.dir, run.dir / "model")

    monkeypatch.setattr(embedded, "_write_dequantised", write_again)
    assert embedded.embedded_model().dir == place
    assert made == []
    weights = place / "model" / "model.safetensors"
    with weights.open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"\xff\xff")
    assert embedded.embedded_model().dir == place
    assert made == [embedded.embedded_gguf().name]


@pytest.mark.parametrize("name", ["no-such-folder", "./missing", "nowhere/model.gguf"])
def test_a_missing_model_is_named_with_the_ways_to_get_one(name):
    with pytest.raises(MissingError) as caught:
        resolve_base(ModelConfig(base=name))
    assert name in caught.value.what
    assert "embedded" in caught.value.fix


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="no safetensors") as caught:
        resolve_base(ModelConfig(base=str(tmp_path)))
    assert "pytorch_model.bin" in caught.value.why


@pytest.mark.slow
def test_a_model_that_lacks_a_weight_is_refused_not_filled_at_random(base, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(base.dir, copy)
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.3\.mlp\.up_proj"):
        load_model(copy, torch.float32)


def test_a_truncated_weight_file_is_a_model_error(base, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(base.dir, copy)
    weights = copy / "model.safetensors"
    with weights.open("r+b") as stream:
        stream.truncate(weights.stat().st_size // 2)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(copy, torch.float32)


def test_the_measured_choice_follows_its_own_figures():
    choice = choose_precision(seconds=0.05)
    assert choice.precision == ("bf16" if choice.bf16_gflops > 1.2 * choice.fp32_gflops else "fp32")
    assert default_threads() >= 1


def test_advice_of_other_libraries_is_silent_inside_and_heard_again_after():
    advice = logging.getLogger("bitsandbytes.backends")
    with quiet_transformers():
        assert not advice.isEnabledFor(logging.WARNING)
    assert advice.isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    "load",
    [load_tokenizer, lambda folder: load_frozen(BaseModel("a", folder, "0" * 64), torch.float32)],
)
def test_a_folder_that_brings_code_is_refused_without_asking(tmp_path, load, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
    names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    code = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(code))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "y")
    with pytest.raises(ModelError):
        load(tmp_path)
    assert not asked
    assert not ran.exists()
