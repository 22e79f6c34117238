"""HF -> GGUF -> llama.cpp for tiny random models of the families: logits equal to transformers'.

All figures are of float32 files, asked with float32 attention: what differs is no rounding.
The table in docs/export/families.md is made from these cases.
"""

from __future__ import annotations

import json
import shutil
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("xllamacpp")
pytest.importorskip("conversion")
sys.path.insert(0, str(Path(__file__).parent))
import gguf_families as tiny
import torch

from tunesmith.engine.backends.llama_process import LlamaProcess, LlamaSettings
from tunesmith.errors import ConfigError, ModelError, ParityError, TunesmithError
from tunesmith.export.convert import check_convertible, to_gguf
from tunesmith.export.gguf_tokenizer import rule_of
from tunesmith.export.metadata import read_facts, read_metadata
from tunesmith.export.settings import check_vocabulary
from tunesmith.models.load import load_model, load_tokenizer

CASES = {
    "Llama tied": tiny.LLAMA.has(tie_word_embeddings=True),
    "Llama untied": tiny.LLAMA.has(tie_word_embeddings=False),
    "Llama biases": tiny.LLAMA.has(attention_bias=True, mlp_bias=True),
    "Llama head_dim 24": tiny.LLAMA.has(head_dim=24),
    "Llama without GQA": tiny.LLAMA.has(num_key_value_heads=4),
    "Llama rope llama3": tiny.LLAMA.has(rope_parameters=tiny.LLAMA3),
    "Llama rope yarn": tiny.LLAMA.has(rope_parameters=tiny.YARN),
    "Llama rope linear": tiny.LLAMA.has(rope_parameters=tiny.LINEAR),
    "Llama rope theta 5e5, eps 1e-2": tiny.LLAMA.has(
        rope_parameters=tiny.rope("default") | {"rope_theta": 5e5}, rms_norm_eps=1e-2
    ),
    "Llama padded vocabulary": tiny.LLAMA.has(vocab_size=1_024),
    "Llama added tokens": tiny.Case("Llama", "llama-bpe+", {"tie_word_embeddings": True}),
    "SmolLM2": tiny.Case("Llama", "smollm", {"tie_word_embeddings": True}),
    "SmolLM3": tiny.SMOLLM3,
    "SmolLM3 rope yarn": tiny.SMOLLM3.has(rope_parameters=tiny.YARN),
    "Mistral": tiny.MISTRAL,
    "Mistral head_dim 24": tiny.MISTRAL.has(head_dim=24),
    "Mistral window": tiny.MISTRAL.has(sliding_window=64),
    "Qwen2 untied": tiny.QWEN2.has(tie_word_embeddings=False),
    "Qwen2 tied": tiny.QWEN2.has(tie_word_embeddings=True),
    "Qwen2.5 rope yarn": tiny.QWEN2.has(rope_parameters=tiny.YARN),
    "Qwen3 untied": tiny.QWEN3.has(tie_word_embeddings=False),
    "Qwen3 tied": tiny.QWEN3.has(tie_word_embeddings=True),
    "Qwen3 rope yarn": tiny.QWEN3.has(rope_parameters=tiny.YARN),
    "Phi-3": tiny.PHI,
    "Phi-3 partial rotary": tiny.PHI.has(
        rope_parameters=tiny.rope("default", partial_rotary_factor=0.5)
    ),
    "Phi-3 longrope": tiny.PHI.has(rope_parameters=tiny.LONG, original_max_position_embeddings=256),
    "Phi-4": tiny.PHI4,
    "Gemma 2 window 8": tiny.G2,
    "Gemma 2 tight caps": tiny.G2.has(attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "Gemma 3 window 8": tiny.G3,
    "Gemma 3 rope linear": tiny.G3.has(
        rope_parameters={
            "full_attention": tiny.LINEAR | {"rope_theta": 1e6},
            "sliding_attention": tiny.rope("default"),
        }
    ),
    "Gemma 3 untied": tiny.G3.has(tie_word_embeddings=False),
}


def measured(case: tiny.Case, folder: Path) -> tuple[Path, tiny.Gap]:
    base = tiny.save_case(case, folder / "model")
    gguf = folder / "model.gguf"
    check_convertible(base)
    to_gguf(base, gguf, "f32", "tiny")
    return gguf, gap_of(base, gguf)


def gap_of(base: Path, gguf: Path) -> tiny.Gap:
    model = load_model(base, torch.float32)
    row = tiny.row_of(model.config.vocab_size)
    return tiny.gap(gguf, tiny.logprobs_of(model, row), row)


def test_llama_answers_as_in_transformers(tmp_path):
    _, found = measured(tiny.LLAMA, tmp_path)
    assert found.largest < tiny.LLAMA.tolerance
    assert found.agreement == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_family_answers_as_in_transformers(tmp_path, case):
    _, found = measured(case, tmp_path)
    assert found.largest < case.tolerance
    assert found.agreement == 1


MUTATIONS = {
    "rope theta": ("Llama", tiny.LLAMA, "llama.rope.freq_base", 9_000.0),
    "norm eps": ("Llama", tiny.LLAMA, "llama.attention.layer_norm_rms_epsilon", 1e-2),
    "heads": ("Llama", tiny.LLAMA, "llama.attention.head_count", 2),
    "yarn factor": (
        "Llama",
        tiny.LLAMA.has(rope_parameters=tiny.YARN),
        "llama.rope.scaling.factor",
        4.5,
    ),
    "window": ("Gemma 2", tiny.G2, "gemma2.attention.sliding_window", 9),
    "score cap": ("Gemma 2", tiny.G2, "gemma2.attn_logit_softcapping", 5.0),
    "head's cap": ("Gemma 2", tiny.G2, "gemma2.final_logit_softcapping", 20.0),
    "theta of sliding layers": ("Gemma 3", tiny.G3, "gemma3.rope.freq_base_swa", 20_000.0),
    "rotary dimensions": ("Phi-3", tiny.PHI, "phi3.rope.dimension_count", 8),
}


@pytest.mark.slow
@pytest.mark.parametrize(("_family", "case", "key", "value"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_wrong_setting_in_the_file_is_seen(tmp_path, _family, case, key, value):
    gguf, _ = measured(case, tmp_path)
    tiny.replace_value(gguf, key, value)
    try:
        found = gap_of(tmp_path / "model", gguf)
    except TunesmithError:
        return  # llama.cpp refuses the file: seen, too.
    assert found.largest > 3 * case.tolerance


REFUSED = {
    "Llama gelu": (tiny.LLAMA.has(hidden_act="gelu"), "activation 'gelu'"),
    "Llama yarn attention_factor": (
        tiny.LLAMA.has(rope_parameters=tiny.YARN | {"attention_factor": 1.7}),
        "attention_factor 1.7",
    ),
    "Llama yarn betas": (
        tiny.LLAMA.has(rope_parameters=tiny.YARN | {"beta_fast": 16.0, "beta_slow": 2.0}),
        "beta_fast 16.0",
    ),
    "Llama yarn mscale": (
        tiny.LLAMA.has(rope_parameters=tiny.YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}),
        "mscale_all_dim 0.5",
    ),
    "Qwen2 rope llama3": (tiny.QWEN2.has(rope_parameters=tiny.LLAMA3), "rope_type 'llama3'"),
    "Qwen3 bias": (tiny.QWEN3.has(attention_bias=True), "attention_bias"),
    "SmolLM3 own layers": (tiny.SMOLLM3.has(no_rope_layers=[1, 0, 1, 0]), "no_rope_layers"),
    "SmolLM3 bias": (tiny.SMOLLM3.has(attention_bias=True), "attention_bias"),
    "Gemma 2 scalar": (tiny.G2.has(query_pre_attn_scalar=24), "query_pre_attn_scalar 24"),
    "Gemma 2 layers": (
        tiny.G2.has(layer_types=["full_attention", "sliding_attention"] * 2),
        "layer_types",
    ),
    "Gemma 2 untied": (tiny.G2.has(tie_word_embeddings=False), "tie_word_embeddings"),
    "Gemma 2 without cap": (tiny.G2.has(attn_logit_softcapping=None), "attn_logit_softcapping"),
    "Gemma 2 rope linear": (tiny.G2.has(rope_parameters=tiny.LINEAR), "rope_type 'linear'"),
    "Gemma 2 bias": (tiny.G2.has(attention_bias=True), "attention_bias"),
    "Gemma 3 scalar": (tiny.G3.has(query_pre_attn_scalar=24), "query_pre_attn_scalar 24"),
    "Gemma 3 layers": (
        tiny.G3.has(num_hidden_layers=4, layer_types=tiny.TURNS),
        "layer_types",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "told"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_lost_is_refused_and_would_be_lost(tmp_path, case, told):
    base = tiny.save_case(case, tmp_path / "model")
    gguf = tmp_path / "model.gguf"
    for attempt in (check_convertible, lambda folder: to_gguf(folder, gguf, "f32", "tiny")):
        with pytest.raises(ModelError) as caught:
            attempt(base)
        assert told in caught.value.what
    assert not gguf.exists()
    # llama.cpp's own converter writes it, or breaks; what it writes answers otherwise, or is no model.
    try:
        tiny.convert_as_it_is(base, gguf)
        found = gap_of(base, gguf)
    except (TunesmithError, ArithmeticError, TypeError, ValueError, OSError, tiny.StructError):
        return
    assert found.largest > 0.05


WINDOWS = {
    "Mistral": tiny.MISTRAL.has(sliding_window=16),
    "Qwen2": tiny.QWEN2.has(use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "Qwen3": tiny.QWEN3.has(use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "SmolLM3": tiny.SMOLLM3.has(use_sliding_window=True, sliding_window=16),
    "Phi-3": tiny.PHI.has(sliding_window=16),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WINDOWS.values(), ids=WINDOWS)
def test_a_window_that_llama_cpp_ignores_becomes_the_files_context(tmp_path, case):
    base = tiny.save_case(case, tmp_path / "model")
    gguf = tmp_path / "model.gguf"
    tiny.convert_as_it_is(base, gguf)
    assert gap_of(base, gguf).largest > 0.05  # 48 tokens, of which a window shows 16
    to_gguf(base, gguf, "f32", "tiny")
    facts = read_metadata(gguf)
    assert facts[f"{facts['general.architecture']}.context_length"] == 16
    model = load_model(base, torch.float32)
    row = tiny.row_of(model.config.vocab_size)
    wanted = tiny.logprobs_of(model, row)
    assert tiny.gap(gguf, wanted[:14], row[:15]).largest < case.tolerance
    with pytest.raises(ConfigError, match="exceeds the available context size"):
        tiny.gap(gguf, wanted, row)


@pytest.mark.slow
def test_long_rope_is_exact_up_to_the_original_context(tmp_path):
    case = tiny.PHI.has(rope_parameters=tiny.LONG, original_max_position_embeddings=256)
    gguf, _ = measured(case, tmp_path)
    assert read_metadata(gguf)["phi3.context_length"] == 256


TOKENIZERS = {
    "llama-bpe": (tiny.LLAMA, "llama-bpe"),
    "gpt-2": (tiny.Case("Llama", "gpt-2"), "gpt-2"),
    "smollm": (tiny.Case("Llama", "smollm"), "smollm"),
    "qwen2": (tiny.QWEN2, "qwen2"),
    "Phi-4": (tiny.PHI4, "llama-bpe"),
    "Phi-3": (tiny.Case("Phi3", "phi", tiny.PHI3), None),
    "Gemma": (tiny.G2, None),
    "Mistral, SentencePiece": (tiny.MISTRAL, None),
    "Llama, added tokens": (tiny.Case("Llama", "llama-bpe+"), "llama-bpe"),
    "Qwen3, added tokens": (tiny.Case("Qwen3", "qwen2+", {"head_dim": 24}), "qwen2"),
    "Mistral, added tokens": (tiny.Case("Mistral", "spm+", {"sliding_window": None}), None),
    "Gemma 3, added tokens": (tiny.Case("Gemma3Text", "gemma+", tiny.GEMMA3), None),
}


@pytest.mark.slow
@pytest.mark.parametrize(("case", "rule"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_text_becomes_the_same_tokens(tmp_path, case, rule):
    base = tiny.save_case(case, tmp_path / "model")
    assert not (base / "tokenizer.model").exists()  # transformers does not save it again
    assert rule_of(base) == rule
    # llama.cpp looks for "phi3" in a model's name, and treats its tokens accordingly.
    name = "base" if case.tokenizer == "phi" else "Phi3 look-alike"
    to_gguf(base, tmp_path / "model.gguf", "f16", name)
    tokenizer = load_tokenizer(base)
    wanted = [tokenizer.encode(text, add_special_tokens=False) for text in tiny.PROBES]
    assert tokens_in_llama_cpp(tmp_path / "model.gguf") == wanted
    check_texts(tmp_path / "model.gguf", tokenizer)


def check_texts(gguf: Path, tokenizer) -> None:
    """The certificate finds the file's vocabulary right, and any two tokens of it swapped."""
    facts, renderer = read_facts(gguf), SimpleNamespace(tokenizer=tokenizer)
    check_vocabulary(facts, gguf, renderer)
    added = sorted(tokenizer.get_added_vocab().values())
    plain = [number for number in range(300, 320) if number not in added]
    for first, second in (added[-2:], plain[:2]):
        tokens = list(facts.tokens)
        tokens[first], tokens[second] = tokens[second], tokens[first]
        with pytest.raises(ParityError, match=r"vocabulary .* 2 differ"):
            check_vocabulary(replace(facts, tokens=tuple(tokens)), gguf, renderer)
    if facts.model == "gpt2":
        with pytest.raises(ParityError, match="splits text as 'falcon'"):
            check_vocabulary(replace(facts, pre="falcon"), gguf, renderer)


@pytest.mark.slow
def test_a_sentencepiece_file_that_is_there_is_used(tmp_path):
    base = tiny.save_case(tiny.G3, tmp_path / "model")
    shutil.copy(tiny.sentencepiece_model(tmp_path / "own"), base)
    to_gguf(base, tmp_path / "model.gguf", "f32", "tiny")
    tokenizer = load_tokenizer(base)
    wanted = [tokenizer.encode(text, add_special_tokens=False) for text in tiny.PROBES]
    assert tokens_in_llama_cpp(tmp_path / "model.gguf") == wanted
    assert gap_of(base, tmp_path / "model.gguf").largest < tiny.G3.tolerance
    check_texts(tmp_path / "model.gguf", tokenizer)


@pytest.mark.slow
def test_an_unknown_splitting_rule_is_refused(tmp_path):
    base = tiny.save_case(tiny.LLAMA, tmp_path / "model")
    path = base / "tokenizer.json"
    words = json.loads(path.read_text())
    words["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"
    path.write_text(json.dumps(words))
    with pytest.raises(ModelError, match="cannot be converted to GGUF"):
        to_gguf(base, tmp_path / "model.gguf", "f32", "tiny")


@pytest.mark.slow
def test_merges_that_scores_cannot_express_are_refused(tmp_path):
    base = tiny.save_case(tiny.MISTRAL, tmp_path / "model")
    path = base / "tokenizer.json"
    words = json.loads(path.read_text())
    del words["model"]["merges"][0]
    path.write_text(json.dumps(words))
    with pytest.raises(ModelError, match="cannot be written as GGUF"):
        to_gguf(base, tmp_path / "model.gguf", "f32", "tiny")


def tokens_in_llama_cpp(gguf: Path) -> list[list[int]]:
    process = LlamaProcess(gguf, LlamaSettings(context_tokens=64, slots=1, threads=1))
    try:
        endpoint = process.wait_ready(60)
        return [_tokenize(endpoint, text) for text in tiny.PROBES]
    finally:
        process.close()


def _tokenize(endpoint, text: str) -> list[int]:
    body = {"content": text, "add_special": False, "parse_special": True}
    request = urllib.request.Request(
        f"{endpoint.url}/tokenize",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {endpoint.api_key}"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())["tokens"]
