from __future__ import annotations

import numpy as np
import pytest
import torch

from tunesmith.engine import Sampling
from tunesmith.engine.backends.transformers import TransformersBackend
from tunesmith.errors import ConfigError, DataError
from tunesmith.models.load import load_model, resolve_base

STOP_ID = 2


def expected(model, prompt, max_tokens, stop_ids):
    """What the library's own greedy generation answers to one prompt."""
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(stop_ids),
            pad_token_id=STOP_ID,
        )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.fixture
def backend(tiny_model, tokenizer):
    return TransformersBackend(tiny_model, tokenizer, stop_ids=[STOP_ID], batch_rows=4)


@pytest.mark.parametrize("batch_rows", [1, 3, 4, 32])
def test_greedy_answers_equal_the_librarys_row_by_row(backend, prompts, greedy, batch_rows):
    backend.batch_rows = batch_rows
    answers = backend.generate(prompts, greedy)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == expected(backend.model, prompt, 16, backend.stop_ids)
        assert answer.prompt_tokens == len(prompt)


def test_answers_vary_with_the_prompt(backend, prompts, greedy):
    assert len({answer.token_ids for answer in backend.generate(prompts, greedy)}) >= 7


def test_rows_that_stop_early_make_room_and_change_nothing(backend, prompts, greedy):
    whole = backend.generate(prompts, greedy)
    backend.stop_ids = frozenset(answer.token_ids[5] for answer in whole[::2])
    stopped = backend.generate(prompts, greedy)
    assert {len(answer.token_ids) for answer in stopped} > {16}
    for before, after in zip(whole, stopped, strict=True):
        stops = [i for i, token in enumerate(before.token_ids) if token in backend.stop_ids]
        length = stops[0] + 1 if stops else 16
        assert after.token_ids == before.token_ids[:length]
        assert after.finish_reason == ("stop" if stops else "length")


def test_the_stop_token_is_no_part_of_the_text(backend, prompts, greedy):
    first = backend.generate(prompts[:1], greedy)[0]
    backend.stop_ids = frozenset([first.token_ids[3]])
    stopped = backend.generate(prompts[:1], greedy)[0]
    assert stopped.text == backend.tokenizer.decode(list(first.token_ids[:3])).rstrip("\ufffd")


def test_the_company_of_a_prompt_does_not_change_its_sample(backend, prompts):
    sampling = Sampling(max_tokens=12, temperature=0.7, top_p=0.95, top_k=40, seed=11)
    distinct = list(dict.fromkeys(prompts))
    together = dict(zip(distinct, backend.generate(distinct, sampling), strict=True))
    backend.batch_rows = 3
    reversed_order = backend.generate(distinct[::-1], sampling)
    assert reversed_order == [together[prompt] for prompt in distinct[::-1]]
    assert backend.generate(distinct[2:3], sampling) == [together[distinct[2]]]


def test_another_seed_gives_another_sample_and_the_same_seed_the_same(backend, prompts):
    def ask(seed):
        return backend.generate(prompts[:3], Sampling(max_tokens=12, temperature=1.0, seed=seed))

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_equal_prompts_get_different_samples(backend, prompts):
    sampling = Sampling(max_tokens=12, temperature=1.5)
    answers = backend.generate([prompts[0]] * 6, sampling)
    assert len({answer.token_ids for answer in answers}) == 6


def test_a_stream_says_what_generate_says(backend, prompts):
    for sampling in (Sampling(max_tokens=20), Sampling(max_tokens=20, temperature=1.0, seed=3)):
        for prompt in prompts[:3]:
            whole = backend.generate([prompt], sampling)[0]
            chunks = list(backend.stream(prompt, sampling))
            assert "".join(chunk.text for chunk in chunks) == whole.text
            assert chunks[-1].finish_reason == whole.finish_reason
            assert chunks[-1].answer_tokens == len(whole.token_ids)
            assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_a_stop_string_ends_the_answer(backend, prompts, greedy):
    text = backend.generate(prompts[:1], greedy)[0].text
    stop = text[8:11]
    stopped = backend.generate(prompts[:1], Sampling(max_tokens=16, stop=(stop,)))[0]
    assert stopped.finish_reason == "stop"
    assert stopped.text == text[: text.index(stop)]


def test_an_answer_ends_where_the_context_ends(backend):
    prompt = [5] * 250
    answer = backend.generate([prompt], Sampling(max_tokens=100))[0]
    assert len(answer.token_ids) <= 6
    assert answer.finish_reason == "length"


def test_each_prompt_is_reported_done_once(backend, prompts, greedy):
    done = []
    backend.generate(prompts, greedy, on_done=done.append)
    assert sorted(done) == list(range(len(prompts)))


def test_no_prompts_give_no_answers(backend, greedy):
    assert backend.generate([], greedy) == []


def test_all_bad_prompts_are_named_at_once(backend, greedy):
    with pytest.raises(DataError) as error:
        backend.generate([[], [1], [1] * 300], greedy)
    assert "prompt 0 is empty" in error.value.what
    assert "prompt 2 has 300 tokens" in error.value.what
    assert "prompt 1" not in error.value.what


def test_bad_starts_are_refused(backend):
    with pytest.raises(DataError, match="row 1 has 3 tokens and cannot start at 3"):
        backend.next_token_logprobs([[1, 2, 3], [1, 2, 3]], [1, 3])
    with pytest.raises(ConfigError, match="one a row"):
        backend.answer_logprobs([[1, 2]], [])


def test_logprobs_are_those_of_a_plain_forward_pass(backend, prompts):
    rows, starts = prompts[:2], [3, 1]
    scores = backend.answer_logprobs(rows, starts)
    best = backend.next_token_logprobs(rows, starts, top=5)
    for row, start, score, top in zip(rows, starts, scores, best, strict=True):
        with torch.inference_mode():
            logprobs = backend.model(torch.tensor([row])).logits[0].log_softmax(-1)
        own = [float(logprobs[p - 1, row[p]]) for p in range(start, len(row))]
        np.testing.assert_allclose(score, own, atol=1e-4)
        want = logprobs[start - 1 : -1].topk(5)
        np.testing.assert_array_equal(top.token_ids, want.indices.numpy())
        np.testing.assert_allclose(top.logprobs, want.values.numpy(), atol=1e-4)
        assert top.logprobs.dtype == np.float32


def test_the_whole_vocabulary_has_probability_one(backend, prompts):
    result = backend.next_token_logprobs(prompts[:1], [5], top=10**9)[0]
    assert result.token_ids.shape[1] == backend.model.config.vocab_size
    np.testing.assert_allclose(np.exp(result.logprobs.astype(np.float64)).sum(-1), 1, atol=1e-4)


def test_sliding_window_models_are_answered_by_the_librarys_cache(tokenizer, prompts, greedy):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=8,
        initializer_range=0.5,
        max_position_embeddings=256,
    )
    model = MistralForCausalLM(config).eval()
    backend = TransformersBackend(model, tokenizer, stop_ids=[STOP_ID])
    answers = backend.generate(prompts[:4], greedy)
    for prompt, answer in zip(prompts, answers, strict=False):
        assert answer.token_ids == expected(model, prompt, 16, backend.stop_ids)


# peft still asks transformers by the old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_an_adapter_is_used_unless_it_is_switched_off(tiny_model, tokenizer, prompts, greedy):
    from peft import LoraConfig, get_peft_model

    base = TransformersBackend(tiny_model, tokenizer, stop_ids=[STOP_ID]).generate(prompts, greedy)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.9)
    config.init_lora_weights = False
    torch.manual_seed(2)
    model = get_peft_model(tiny_model, config)
    model.train()
    try:
        backend = TransformersBackend(model, tokenizer, stop_ids=[STOP_ID])
        tuned = backend.generate(prompts, greedy)
        assert tuned == backend.generate(prompts, greedy), "dropout was on"
        assert model.training
        with model.disable_adapter():
            assert backend.generate(prompts, greedy) == base
        assert tuned != base
    finally:
        model.unload().eval()


def test_the_batch_shrinks_when_memory_is_short(backend, prompts, greedy, monkeypatch):
    whole = backend.generate(prompts, greedy)
    monkeypatch.setattr("tunesmith.engine.backends.transformers.MOST_CACHE_BYTES", 60_000)
    assert backend._slot_cache(backend._rows(prompts, greedy), greedy).slots < 4
    assert backend.generate(prompts, greedy) == whole


@pytest.mark.slow
def test_greedy_answers_of_the_real_model_equal_the_librarys(tokenizer, prompts):
    from tunesmith.config import ModelConfig

    model = load_model(resolve_base(ModelConfig()), torch.float32)
    backend = TransformersBackend(model, tokenizer, stop_ids=[STOP_ID], batch_rows=4)
    answers = backend.generate(prompts[:5], Sampling(max_tokens=12))
    for prompt, answer in zip(prompts, answers, strict=False):
        assert answer.token_ids == expected(model, prompt, 12, backend.stop_ids)
