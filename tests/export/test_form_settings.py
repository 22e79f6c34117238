"""What a form says of itself is that of what it was made from, key by key; what is told when it is not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gguf
import pytest

from tunesmith.errors import ParityError
from tunesmith.export import certify
from tunesmith.export.gguf_tokenizer import RULES, is_named
from tunesmith.export.metadata import FLOAT32
from tunesmith.export.settings import check_settings

MERGES = ["a b", "ab c", "c d"]
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 8,
    "layer_types": ["full_attention", "sliding_attention"] * 4,
    "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
    "dtype": "float32",
    "pad_token_id": None,
}


def write_gguf(path, *, merges=MERGES, types=(1, 3), theta=10_000.0, bos=False, **more):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_rope_freq_base(theta)
    writer.add_token_list(["a", "b"])
    writer.add_token_merges(merges)
    writer.add_token_types(types)
    writer.add_add_bos_token(bos)
    for key, value in more.items():
        writer.add_uint32(key.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def of_gguf(folder):
    return SimpleNamespace(scratch=folder)


def test_file_type_and_importance_are_a_gguf_forms_own(tmp_path):
    write_gguf(tmp_path / FLOAT32, general__file_type=0)
    own = {"general__quantization_version": 2, "quantize__imatrix__chunks_count": 4}
    form = write_gguf(tmp_path / "form.gguf", general__file_type=15, **own)
    told = check_settings("gguf-q4_k_m", form, of_gguf(tmp_path))
    assert told.startswith("all 6 keys of model-f32.gguf")


CHANGES = {
    "merges": ({"merges": ["ab c", "a b", "c d"]}, r"tokenizer\.ggml\.merges \(2 of 3 entries\)"),
    "a merge fewer": ({"merges": MERGES[:2]}, r"tokenizer\.ggml\.merges \(1 of 3 entries\)"),
    "kind of a token": ({"types": (1, 1)}, r"tokenizer\.ggml\.token_type \(1 of 2 entries\)"),
    "rotary base": ({"theta": 10_001.0}, r"freq_base \(10001\.0 for 10000\.0\)"),
    "begin of text": ({"bos": True}, r"add_bos_token \(True for False\)"),
    "one more": ({"llama__expert_count": 2}, r"llama\.expert_count \(2 for nothing\)"),
}


@pytest.mark.parametrize(("change", "told"), CHANGES.values(), ids=CHANGES)
def test_every_other_key_is_the_float32_files(tmp_path, change, told):
    write_gguf(tmp_path / FLOAT32)
    form = write_gguf(tmp_path / "form.gguf", **change)
    with pytest.raises(ParityError, match=f"form.gguf says otherwise than .* in 1 keys: .*{told}"):
        check_settings("gguf-q4_k_m", form, of_gguf(tmp_path))


def test_a_key_that_is_missing_is_seen(tmp_path):
    write_gguf(tmp_path / FLOAT32, llama__expert_count=2)
    form = write_gguf(tmp_path / "form.gguf")
    with pytest.raises(ParityError, match=r"llama\.expert_count \(nothing for 2\)"):
        check_settings("gguf-q4_k_m", form, of_gguf(tmp_path))


def test_what_could_not_be_compared_is_told(tmp_path):
    form = write_gguf(tmp_path / "form.gguf")
    told = check_settings("gguf-q4_k_m", form, of_gguf(tmp_path))
    assert told == "not compared: model-f32.gguf is no longer there"
    gone = SimpleNamespace(merged=tmp_path / "gone")
    assert check_settings("awq", tmp_path, gone).startswith("not compared: the merged model")


def of_folder(folder, config=CONFIG, **settings):
    for place in ("merged", "form"):
        (folder / place).mkdir()
        (folder / place / "tokenizer.json").write_text("{}")
    (folder / "merged/config.json").write_text(json.dumps(CONFIG))
    (folder / "form/config.json").write_text(json.dumps(config))
    return SimpleNamespace(
        merged=folder / "merged", config=SimpleNamespace(prune_layers=settings.get("prune_layers"))
    )


def test_a_form_sets_its_number_format_and_its_quantiser(tmp_path):
    config = CONFIG | {"dtype": "bfloat16", "quantization_config": {"bits": 4}}
    del config["pad_token_id"]
    told = check_settings("awq", tmp_path / "form", of_folder(tmp_path, config))
    assert told == "config.json of the merged model, and tokenizer.json"


@pytest.mark.parametrize(
    ("form", "change", "told"),
    [
        ("awq", {"num_hidden_layers": 7}, r"num_hidden_layers \(7 for 8\)"),
        (
            "awq",
            {"rope_parameters": {"rope_theta": 1_000.0, "rope_type": "default"}},
            r"rope_parameters\.rope_theta \(1000\.0 for 10000\.0\)",
        ),
        ("merged", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("merged", {"pad_token_id": 3}, r"pad_token_id \(3 for nothing\)"),
        ("pruned", {}, r"num_hidden_layers \(8 for 6\)"),
        ("awq", {"layer_types": None}, r"layer_types \(nothing for \['full"),
        ("awq", {"layer_types": ["full_attention"] * 7}, r"layer_types \(4 of 8 entries\)"),
    ],
)
def test_every_other_key_of_a_folder_is_the_merged_models(tmp_path, form, change, told):
    sources = of_folder(tmp_path, CONFIG | change, prune_layers=2)
    with pytest.raises(ParityError, match=rf"form/config\.json says otherwise .*{told}"):
        check_settings(form, tmp_path / "form", sources)


def test_a_pruned_model_has_some_of_the_layers_in_their_order(tmp_path):
    layers = CONFIG["layer_types"]
    pruned = CONFIG | {"num_hidden_layers": 6, "layer_types": layers[:3] + layers[5:]}
    sources = of_folder(tmp_path, pruned, prune_layers=2)
    assert check_settings("pruned", tmp_path / "form", sources)
    wrong = pruned | {"layer_types": ["full_attention"] * 6}
    (tmp_path / "form/config.json").write_text(json.dumps(wrong))
    with pytest.raises(ParityError, match="layer_types"):
        check_settings("pruned", tmp_path / "form", sources)


def test_a_file_beside_the_weights_is_the_merged_ones(tmp_path):
    sources = of_folder(tmp_path)
    (tmp_path / "form/tokenizer.json").write_text("{ }")
    with pytest.raises(ParityError, match=r"form/tokenizer\.json is not the merged model's"):
        check_settings("awq", tmp_path / "form", sources)


def test_a_config_that_is_no_object_is_told(tmp_path):
    sources = of_folder(tmp_path, [])
    with pytest.raises(ParityError, match=r"form/config\.json is no JSON object"):
        check_settings("awq", tmp_path / "form", sources)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_the_names_that_llama_cpp_gives_it_and_no_other(rule):
    assert [name for name in RULES if is_named(name, rule)] == [rule]
    alike = {"llama-bpe": "pixtral", "qwen2": "stablelm2", "gpt-2": "olmo", "smollm": "starcoder"}
    assert [name for name, other in alike.items() if is_named(other, rule)] == [rule]
    assert not is_named("falcon", rule)


def test_a_bundles_tokenizer_is_loaded_once_and_again_when_a_file_of_it_changed(
    short_tokenizer, tmp_path
):
    short_tokenizer.save_pretrained(tmp_path)
    first = certify._tokenizer(tmp_path)
    assert certify._tokenizer(tmp_path) is first
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<|im_start|>"}))
    changed = certify._tokenizer(tmp_path)
    assert changed.eos_token == "<|im_start|>" != first.eos_token
