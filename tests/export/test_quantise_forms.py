"""The GGUF forms of a bundle: one conversion and one importance matrix for all of them."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from tunesmith.errors import ModelError
from tunesmith.export.quantise import forms
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.files.gguf import look_at_gguf

pytestmark = pytest.mark.slow
KINDS = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")


@pytest.fixture(scope="module")
def merged(tmp_path_factory, short_tokenizer):
    """A Llama whose rows are whole blocks of 256, with real K-quants."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.models.load import save_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(short_tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=short_tokenizer.bos_token_id,
        eos_token_id=short_tokenizer.eos_token_id,
    )
    folder = tmp_path_factory.mktemp("merged")
    save_model(LlamaForCausalLM(config), short_tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def sources(merged, short_tokenizer, tmp_path_factory):
    renderer = ChatRenderer(short_tokenizer)
    texts = ("How many states are there?", "Name a city.", "Which river is the longest of all?")
    rows = tuple(tuple(short_tokenizer(text).input_ids) for text in texts)
    return SimpleNamespace(
        merged=merged,
        renderer=renderer,
        name="tiny",
        scratch=tmp_path_factory.mktemp("scratch"),
        calibration=rows,
        config=SimpleNamespace(importance=True),
    )


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory):
    """Form -> its file and its facts."""
    place = tmp_path_factory.mktemp("forms")
    return {
        kind: (
            place / f"{kind}.gguf",
            getattr(forms, f"write_{kind}")(sources, place / f"{kind}.gguf"),
        )
        for kind in KINDS
    }


def test_every_form_is_sound_and_says_what_it_holds(made):
    for kind, (path, facts) in made.items():
        header = look_at_gguf(path)
        assert header.findings == [], kind
        assert facts["file_type"] == kind.upper()
        assert sum(facts["tensors"].values()) == len(header.tensors)
        assert facts["fallbacks"] == []
    sizes = [made[kind][0].stat().st_size for kind in KINDS[1:]]
    assert sizes == sorted(sizes, reverse=True)


def test_only_formats_that_can_use_it_have_the_importance_matrix(made, sources):
    with_matrix = {kind for kind, (_, facts) in made.items() if facts["importance"]}
    assert with_matrix == {"q6_k", "q5_k_m", "q4_k_m", "q4_0"}
    facts = made["q4_k_m"][1]["importance"]
    tokens = sum(map(len, sources.calibration))
    assert facts == {"rows": 3, "tokens": tokens, "tensors": 28, "tensors_without": 1}
    header = look_at_gguf(made["q4_k_m"][0])
    assert header.get("quantize.imatrix.entries_count") == 28
    assert look_at_gguf(made["q8_0"][0]).get("quantize.imatrix.entries_count") is None


def test_the_model_is_converted_and_measured_once(made, sources, tmp_path):
    kept = {path.name: path.stat().st_mtime_ns for path in sources.scratch.iterdir()}
    assert set(kept) == {"model-f32.gguf", "importance.gguf"}
    forms.write_q4_0(sources, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == made["q4_0"][0].read_bytes()
    assert {path.name: path.stat().st_mtime_ns for path in sources.scratch.iterdir()} == kept


@pytest.mark.parametrize("switch", ["setting", "rows"])
def test_without_setting_or_rows_there_is_no_matrix(switch, made, sources, tmp_path):
    other = SimpleNamespace(**vars(sources))
    if switch == "setting":
        other.config = SimpleNamespace(importance=False)
    else:
        other.calibration = ()
    facts = forms.write_q4_k_m(other, tmp_path / "plain.gguf")
    assert facts["importance"] is None
    assert (tmp_path / "plain.gguf").read_bytes() != made["q4_k_m"][0].read_bytes()


def test_llama_cpp_answers_from_every_form_as_the_model_does(made, merged, sources):
    import torch

    from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings
    from tunesmith.export.parity import Tally
    from tunesmith.export.reference import answer_logits
    from tunesmith.models.load import load_model

    rows, starts = [list(row) for row in sources.calibration], [1] * 3
    wanted = list(answer_logits(load_model(merged, torch.float32), rows, starts))
    divergence = {}
    for kind, (path, _) in made.items():
        with LlamaBackend(path, LlamaSettings(context_tokens=64)) as backend:
            found = backend.next_token_logprobs(rows, starts, top=64)
        tally = Tally()
        for logits, top in zip(wanted, found, strict=True):
            tally.add_top(logits, top)
        divergence[kind] = tally.figures()["mean_kl"]
    assert divergence["f16"] < 1e-4
    assert divergence["q8_0"] < 1e-3
    assert divergence["q6_k"] < 5e-3
    assert divergence["q5_k_m"] < 2e-2
    assert divergence["q4_k_m"] < 0.1
    assert divergence["q4_0"] < 0.3
    assert divergence["q6_k"] < divergence["q4_k_m"] < divergence["q4_0"]


def test_a_weight_that_is_not_finite_leaves_no_form(merged, sources, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(merged, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "scratch").mkdir()
    other = SimpleNamespace(**{**vars(sources), "merged": broken, "scratch": tmp_path / "scratch"})
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_down\.weight holds weights that are no"):
        forms.write_q8_0(other, tmp_path / "never.gguf")
