"""`check_model` on folders with weights and a tokenizer: whole ones pass, each planted fault is named."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import MissingError, ModelError
from tunesmith.export.check import CheckOptions, check_model
from tunesmith.export.check.sandbox import render_apart

slow = pytest.mark.slow

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
QUERY = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """A tiny Llama in two shards, with everything that belongs to it."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    make.short(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    places = {}
    for file, half in zip(SHARDS, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(half, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture
def model(whole, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "model")


def edit(path, **changes):
    value = json.loads(path.read_text())
    for key, to in changes.items():
        if to is None:
            value.pop(key, None)
        else:
            value[key] = to
    path.write_text(json.dumps(value))


def change(folder, name, how):
    """Another tensor under a name, in whichever shard has it."""
    for file in SHARDS:
        tensors = load_file(folder / file)
        if name in tensors:
            made = how(tensors.pop(name))
            tensors |= {} if made is None else {name: made.contiguous()}
            save_file(tensors, folder / file, metadata={"format": "pt"})


def cut(path, n_bytes):
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - n_bytes)


def swap(folder):
    one, two = (folder / file for file in SHARDS)
    one.rename(folder / "aside")
    two.rename(one)
    (folder / "aside").rename(two)


def lose(folder, name):
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))
    change(folder, name, lambda _tensor: None)


def add(folder, name, tensor):
    tensors = load_file(folder / SHARDS[0]) | {name: tensor}
    save_file(tensors, folder / SHARDS[0], metadata={"format": "pt"})
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = SHARDS[0]
    (folder / INDEX).write_text(json.dumps(index))


def with_nan(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[5] = float("nan")
    return tensor


def template(folder, change):
    path = folder / "chat_template.jinja"
    path.write_text(change(path.read_text()))


def words(folder, change):
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def linked(folder):
    (folder / "vocab.txt").symlink_to("/etc/passwd")


def deep(folder):
    (folder / "config.json").write_text('{"model_type": ' + "[" * 50_000 + "]" * 50_000 + "}")


def huge(folder):
    with (folder / "config.json").open("r+b") as stream:
        stream.truncate(1 << 33)


FAULTS = {
    "a truncated shard": (lambda f: cut(f / SHARDS[1], 100), "safetensors-bounds", SHARDS[1]),
    "swapped shards": (swap, "weights-index", INDEX),
    "a missing shard": (lambda f: (f / SHARDS[0]).unlink(), "weights-missing", INDEX),
    "a missing index": (lambda f: (f / INDEX).unlink(), "weights-index", INDEX),
    "a wrong shape": (lambda f: change(f, QUERY, lambda t: t[:32]), "weights-shape", "model"),
    "a lost tensor": (lambda f: lose(f, QUERY), "weights-missing", "model"),
    "a tensor too many": (lambda f: add(f, "x.weight", torch.ones(2)), "weights-extra", "model"),
    "a tensor in two shards": (
        lambda f: save_file(load_file(f / SHARDS[0]) | {NORM: torch.ones(64)}, f / SHARDS[0]),
        "weights-twice",
        INDEX,
    ),
    "an index to another folder": (
        lambda f: edit(f / INDEX, weight_map={"a": "../../x.safetensors"}),
        "link-outside",
        INDEX,
    ),
    "a pickle renamed to .safetensors": (
        lambda f: (f / SHARDS[0]).write_bytes(pickle.dumps({"a": 1})),
        "pickle",
        SHARDS[0],
    ),
    "a pickle of torch beside it": (
        lambda f: torch.save({"a": torch.ones(2)}, f / "training_args.bin"),
        "pickle",
        "training_args.bin",
    ),
    "an array of objects": (
        lambda f: np.save(f / "x.npy", np.array([{}], dtype=object), allow_pickle=True),
        "pickle",
        "x.npy",
    ),
    "a link out of the folder": (linked, "link-outside", "vocab.txt"),
    "a broken link": (lambda f: (f / "a").symlink_to("none"), "file-unreadable", "a"),
    "a named pipe": (lambda f: os.mkfifo(f / "config2.json"), "file-kind", "config2.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "config-missing", "config.json"),
    "a deep config": (deep, "json-syntax", "config.json"),
    "a giant config": (huge, "json-size", "config.json"),
    "a config of a billion layers": (
        lambda f: edit(f / "config.json", num_hidden_layers=10**9),
        "config-number",
        "config.json",
    ),
    "a layer too many": (
        lambda f: edit(f / "config.json", num_hidden_layers=3),
        "weights-missing",
        "model",
    ),
    "an unknown architecture": (
        lambda f: edit(f / "config.json", model_type="none_such"),
        "weights-load",
        "model",
    ),
    "code of its own": (
        lambda f: edit(f / "config.json", auto_map={"AutoModel": "x.Y"}),
        "code",
        "config.json",
    ),
    "a Python file": (lambda f: (f / "modeling.py").write_text("1"), "code", "modeling.py"),
    "a missing tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "tokenizer-missing",
        "tokenizer.json",
    ),
    "a token beyond the embedding": (
        lambda f: words(f, lambda w: w["model"]["vocab"].update({"beyond": 2_048})),
        "tokenizer-vocabulary",
        "tokenizer.json",
    ),
    "a special token that is none": (
        lambda f: edit(f / "tokenizer_config.json", eos_token="<|none|>"),
        "tokenizer-special",
        "tokenizer_config.json",
    ),
    "no template": (
        lambda f: (f / "chat_template.jinja").unlink(),
        "template-missing",
        "tokenizer_config.json",
    ),
    "a template character missing": (
        lambda f: template(f, lambda t: t.replace("}}", "}", 1)),
        "template-broken",
        "chat_template.jinja",
    ),
    "a template without the stop token": (
        lambda f: template(f, lambda t: t.replace("<|im_end|>", "")),
        "template-renderer",
        "chat_template.jinja",
    ),
    "a template that does not open the answer": (
        lambda f: template(f, lambda t: t.replace("add_generation_prompt", "false")),
        "template-opening",
        "chat_template.jinja",
    ),
    "a wrong eos": (
        lambda f: edit(f / "generation_config.json", eos_token_id=7),
        "stop-token",
        "generation_config.json",
    ),
    "an eos beyond the vocabulary": (
        lambda f: edit(f / "config.json", eos_token_id=1 << 20),
        "stop-token",
        "config.json",
    ),
    "no number": (lambda f: change(f, QUERY, with_nan), "values-finite", SHARDS[0]),
    "a matrix of zeros": (
        lambda f: change(f, QUERY, torch.zeros_like),
        "values-zero",
        SHARDS[0],
    ),
    "a matrix of one number": (
        lambda f: change(f, QUERY, torch.ones_like),
        "values-constant",
        SHARDS[0],
    ),
}
WARNED = {"template-missing", "weights-extra", "code", "values-zero"}
WARNED |= {"values-constant"}


@slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_with_its_file_and_remedy(model, fault):
    plant, check, file = FAULTS[fault]
    plant(model)
    result = check_model(model)
    found = [one for one in result.findings if one.check == check]
    assert found, result.findings
    assert file in {one.file for one in found}
    assert all(one.what and one.fix for one in result.findings if one.severity != "note")
    assert result.exit_code(strict=True) == ModelError.exit_code
    assert (result.exit_code() == 0) == (check in WARNED)


@slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_gives_nothing_to_say(make, tmp_path, tied, whole):
    make.short(tmp_path / "one", tied=tied)
    for folder in (tmp_path / "one", whole):
        result = check_model(folder)
        assert result.findings == ()
        assert result.exit_code(strict=True) == 0
        assert "fingerprint" in result.facts["model" if folder == whole else "one"]


@slow
def test_every_fault_is_told_at_once(model):
    for fault in ("a wrong eos", "a tensor too many", "a Python file", "a link out of the folder"):
        FAULTS[fault][0](model)
    found = {one.check for one in check_model(model).findings}
    assert {"stop-token", "weights-extra", "code", "link-outside"} <= found


@slow
def test_the_embedded_model_its_gguf_and_its_sealed_folder_are_sound(embedded_base):
    from tunesmith.models.embedded import embedded_gguf

    for place in (embedded_base.dir, embedded_base.dir.parent, embedded_gguf()):
        result = check_model(place)
        assert result.findings == (), place
        assert result.exit_code(strict=True) == 0


FAMILIES = ("Llama", "Qwen2", "Qwen3", "Gemma2", "Gemma3", "Mixtral", "Mistral", "Phi3")


@slow
@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_of_every_family_are_those_of_its_loader(tmp_path, family):
    import transformers

    kind = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    ids = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}
    config = getattr(transformers, kind)(**sizes, **heads, **ids)
    made = getattr(transformers, f"{family}ForCausalLM")(config)
    made.save_pretrained(tmp_path)
    found = [one.check for one in check_model(tmp_path).findings]
    assert found == ["tokenizer-missing"]


ADAPTERS = {
    "all layers": {"target_modules": "all-linear"},
    "DoRA": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "rsLoRA": {"target_modules": ["q_proj"], "use_rslora": True},
    "ranks by pattern": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {"v_proj": 2, "layers.1.mlp.up_proj": 8},
    },
    "regular expressions": {
        "target_modules": r".*\.(q|v)_proj",
        "rank_pattern": {r"layers\.0.*q_proj": 7},
    },
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "whole layers": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "biases": {"target_modules": ["q_proj"], "bias": "all"},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]},
    "left out": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
}


@slow
@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.filterwarnings("ignore")
def test_adapters_as_peft_saves_them_give_nothing_to_say(make, tmp_path_factory, kind, whole):
    from peft import LoraConfig, get_peft_model

    from tunesmith.models.load import load_model

    config = LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **ADAPTERS[kind])
    place = tmp_path_factory.mktemp("adapter")
    model = load_model(whole, torch.float32)
    get_peft_model(model, config).save_pretrained(place, save_embedding_layers=False)
    assert check_model(place, CheckOptions(base=whole)).findings == ()


def test_a_snapshot_of_the_hubs_cache_may_be_of_links(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / ("a" * 64)).write_bytes(b"{}")
    (snapshot / "adapter_config.json").symlink_to(f"../../blobs/{'a' * 64}")
    (snapshot / "x.json").symlink_to("../../../elsewhere")
    found = {one.file: one.check for one in check_model(snapshot).findings}
    assert found["x.json"] == "link-outside"
    assert found["adapter_config.json"] == "adapter-config"


def test_a_place_without_a_model_is_refused(tmp_path):
    with pytest.raises(MissingError):
        check_model(tmp_path / "none")
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ModelError, match="holds no model"):
        check_model(tmp_path)
    (tmp_path / "tool.py").write_text("print()")  # A warning by itself.
    with pytest.raises(ModelError, match="holds no model"):
        check_model(tmp_path)


def test_a_template_has_little_memory_and_ends(tmp_path):
    assert "MemoryError" in render_apart("{{ 'a' * 10**11 }}", {})["error"]
    assert render_apart("{{ messages.__class__.__mro__ }}", {})["refused"]


@slow
def test_a_template_without_an_end_is_stopped():
    forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    assert "more than" in render_apart(forever, {})["error"]


@slow
def test_values_are_looked_at_only_when_wanted(model):
    change(model, QUERY, with_nan)
    assert check_model(model, CheckOptions(values=False)).findings == ()


def test_one_fact_about_a_file_is_told_once_with_the_remedy_of_what_the_file_is(model):
    with (model / "config.json").open("a") as stream:
        stream.write("x")
    found = [one for one in check_model(model).findings if one.check == "json-syntax"]
    assert [one.fix for one in found] == ["restore the model's own config.json"]
