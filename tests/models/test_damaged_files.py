"""A model's damaged or odd files end in an error of ours, whatever their reader raises."""

from __future__ import annotations

import json
import math

import pytest

from tunesmith.errors import ModelError
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_tokenizer
from tunesmith.models.refusals import refusing


@pytest.fixture
def folder(short_tokenizer, tmp_path):
    short_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))


def model(kind, **parts):
    return {"model": {"type": kind, **parts}}


def post(single):
    return {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [],
            "special_tokens": {},
        }
    }


WORDS = {
    "an unknown model": model("Nope", vocab={}, merges=[]),
    "merges of unknown tokens": model("BPE", vocab={"a": 0}, merges=[["x", "y"]]),
    "an added token without flags": {"added_tokens": [{"id": 0, "content": "<|im_end|>"}]},
    "an unknown token beyond the list": model("Unigram", unk_id=99_999, vocab=[["a", 0.0]]),
    "a normalizer that is no pattern": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}
    },
    "a splitter that is no pattern": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(a+)+$("},
            "behavior": "Isolated",
            "invert": False,
        }
    },
}


@pytest.mark.parametrize("damage", WORDS)
def test_a_damaged_tokenizer_is_an_error_with_a_remedy(folder, damage):
    edit(folder / "tokenizer.json", **WORDS[damage])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_tokenizer(folder)
    assert caught.value.why
    assert "tokenizer.json" in caught.value.fix


SETTINGS = [
    {"bos_token": 1.5},
    {"added_tokens_decoder": None},
    {"auto_map": "x"},
    {"tokenizer_class": 1},
    {"model_max_length": ""},
    {"model_max_length": [512]},
    {"model_max_length": math.nan},
]


@pytest.mark.parametrize("odd", SETTINGS, ids=str)
def test_odd_settings_of_a_tokenizer_are_an_error_with_a_remedy(folder, odd):
    edit(folder / "tokenizer_config.json", **odd)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(folder)
    assert caught.value.why
    assert "tokenizer_config.json" in caught.value.fix


def test_a_length_that_is_no_number_never_reaches_the_tokenizer(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = "long"
    with pytest.raises(ModelError, match="model_max_length is 'long'"):
        ChatRenderer(tokenizer)


def test_a_tokenizer_without_a_limit_is_fine(folder):
    edit(folder / "tokenizer_config.json", model_max_length=None)
    assert ChatRenderer(load_tokenizer(folder)).prompt_ids([{"role": "user", "content": "Hi"}])


def test_a_tokenizer_that_makes_no_tokens_is_refused(folder):
    edit(folder / "tokenizer.json", **post([{"SpecialToken": {"id": "[X]", "type_id": 0}}]))
    with pytest.raises(ModelError, match="makes no tokens") as caught:
        ChatRenderer(load_tokenizer(folder))
    assert "tokenizer.json" in caught.value.fix


def test_a_text_that_a_tokenizer_cannot_cut_is_an_error_with_a_remedy(folder):
    """It has no token for what it does not know, and the package raises `Exception` itself."""
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {one["content"]: one["id"] for one in words["added_tokens"]}
    edit(folder / "tokenizer.json", **model("WordLevel", vocab=special, unk_token="[none]"))
    with pytest.raises(ModelError, match="cannot cut a text") as caught:
        ChatRenderer(load_tokenizer(folder))
    assert caught.value.why


def test_a_template_that_fails_in_any_way_is_a_refusal(folder):
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    with pytest.raises(ModelError, match="refuses a conversation"):
        ChatRenderer(load_tokenizer(folder))


PANIC = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
"""As the tokenizers package names what its Rust code raises when it panics; it cannot be imported."""


class OwnError(Exception):
    """Neither a library's nor the mere `Exception`."""


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(1), OwnError("x"), MemoryError()]
)
def test_what_is_no_refusal_of_files_passes(error):
    with pytest.raises(type(error)) as caught, refusing("x", "y"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (KeyError("vocab"), "KeyError: 'vocab'"),
        (ValueError("one\ntwo"), "one"),
        (ValueError("field 'a':\n    TypeError: b"), "field 'a': TypeError: b"),
        (OSError(), "OSError"),
        (Exception("from Rust"), "from Rust"),
        (PANIC("index out of bounds"), "index out of bounds"),
    ],
)
def test_the_reason_is_the_first_line_that_says_it(error, why):
    with pytest.raises(ModelError) as caught, refusing("what", "fix"):
        raise error
    assert (caught.value.what, caught.value.why, caught.value.fix) == ("what", why, "fix")


@pytest.mark.parametrize(
    ("odd", "refused"),
    [
        ({"num_hidden_layers": 10**12}, True),
        ({"n_layer": 10**6}, True),
        ({"text_config": {"num_hidden_layers": 10**6}}, True),
        ({"intermediate_size": 1 << 40}, True),
        ({"hidden_size": 0}, True),
        ({"num_hidden_layers": 2}, False),
        ({"attention_window_size": -1, "num_key_value_heads": None, "vocab_size": None}, False),
    ],
    ids=str,
)
def test_a_config_that_would_be_built_without_end_is_refused_and_an_odd_one_is_not(
    tmp_path, odd, refused
):
    import torch
    from safetensors.torch import save_file

    from tunesmith.config import ModelConfig
    from tunesmith.models.load import resolve_base

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | odd))
    weights = {f"layers.{number}.weight": torch.zeros(1) for number in range(2)}
    save_file(weights, tmp_path / "model.safetensors")
    if refused:
        with pytest.raises(ModelError, match=r"no model can be built by .*config\.json") as caught:
            resolve_base(ModelConfig(base=str(tmp_path)))
        assert caught.value.fix
    else:
        assert resolve_base(ModelConfig(base=str(tmp_path))).dir == tmp_path
