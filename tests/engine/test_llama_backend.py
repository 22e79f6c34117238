"""llama.cpp on the embedded model: answers, streams, cancellation, scores."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import urllib.error
import urllib.request
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from tunesmith.engine import Sampling
from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings
from tunesmith.errors import DataError

pytestmark = pytest.mark.timeout(300)

LLAMAS = "🦙漢🎉🦙漢🎉🦙漢🎉🦙漢🎉🦙漢🎉"


@pytest.fixture(scope="module")
def backend(gguf):
    with LlamaBackend(gguf, LlamaSettings(context_tokens=512, slots=2)) as backend:
        yield backend


@pytest.fixture(scope="module")
def ask(tokenizer):
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return lambda text: tuple(tokenizer.encode(turn.format(text)))


def slots_in_use(backend):
    """How many slots work now, as llama.cpp itself says."""
    endpoint = backend._process.endpoint
    request = urllib.request.Request(
        f"{endpoint.url}/slots", headers={"Authorization": f"Bearer {endpoint.api_key}"}
    )
    with urllib.request.urlopen(request) as response:
        return sum(slot["is_processing"] for slot in json.load(response))


async def until_idle(backend):
    while await asyncio.to_thread(slots_in_use, backend):
        await asyncio.sleep(0.05)


def test_it_answers_and_stops(backend, ask, greedy):
    answer = backend.generate([ask("What is the capital of France?")], greedy)[0]
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == 2


@pytest.mark.slow
def test_answers_come_in_the_order_of_the_prompts(backend, ask):
    prompts = [ask(f"What is the capital of {name}?") for name in ("France", "Italy", "Japan")]
    done = []
    answers = backend.generate(prompts, Sampling(max_tokens=12), on_done=done.append)
    assert [answer.prompt_tokens for answer in answers] == [len(prompt) for prompt in prompts]
    for answer, name in zip(answers, ("France", "Italy", "Japan"), strict=True):
        assert name in answer.text
    assert sorted(done) == [0, 1, 2]


def test_tokens_decode_to_the_text(backend, tokenizer, ask):
    answer = backend.generate([ask("Name three colours.")], Sampling(max_tokens=24))[0]
    assert tokenizer.decode(list(answer.token_ids), skip_special_tokens=True) == answer.text


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=17), Sampling(17, 1.0, 0.95, seed=5)])
def test_a_stream_says_what_generate_says(backend, ask, sampling):
    prompt = ask("Tell me about llamas.")
    whole = backend.generate([prompt], sampling)[0]
    chunks = list(backend.stream(prompt, sampling))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].finish_reason == whole.finish_reason
    assert chunks[-1].answer_tokens == len(whole.token_ids)
    assert len(chunks) > 5


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [4, 5, 6, 17])
def test_no_piece_of_a_stream_holds_half_a_character(backend, tokenizer, max_tokens):
    prompt = tokenizer.encode(LLAMAS)
    chunks = list(backend.stream(prompt, Sampling(max_tokens=max_tokens)))
    text = "".join(chunk.text for chunk in chunks)
    assert text
    assert set(text) <= set(LLAMAS)
    assert backend.generate([prompt], Sampling(max_tokens=max_tokens))[0].text == text


def test_a_stop_string_ends_the_answer(backend, ask):
    sampling = Sampling(max_tokens=20, stop=(" France",))
    prompt = ask("What is the capital of France?")
    answer = backend.generate([prompt], sampling)[0]
    assert answer.text == "The capital of"
    assert answer.finish_reason == "stop"
    assert "".join(chunk.text for chunk in backend.stream(prompt, sampling)) == answer.text


@pytest.mark.slow
def test_seeds_decide_the_sample(backend, ask):
    prompt = ask("Tell me a story.")

    def tell(seed):
        return backend.generate([prompt], Sampling(max_tokens=10, temperature=1.0, seed=seed))

    assert tell(1) == tell(1)
    assert tell(1) != tell(2)
    twins = backend.generate([prompt] * 2, Sampling(max_tokens=10, temperature=1.0))
    assert twins[0] != twins[1]


def test_all_bad_prompts_are_named_at_once(backend, greedy):
    with pytest.raises(DataError, match=r"2 of 3 prompts(.|\n)*prompt 0 is empty(.|\n)*prompt 2"):
        backend.generate([[], [1], [1] * 512], greedy)


def test_a_token_outside_the_vocabulary_is_refused_with_llama_cpps_words(backend, greedy):
    with pytest.raises(Exception, match="invalid tokens") as error:
        backend.generate([[10_000_000]], greedy)
    assert error.value.http_status == 400


@pytest.mark.slow
def test_closing_a_stream_frees_the_slot(backend, ask):
    async def leave_early():
        prompt = ask("Count from one to one thousand.")
        async with aclosing(backend.astream(prompt, Sampling(max_tokens=400))) as chunks:
            async for chunk in chunks:
                if chunk.answer_tokens >= 3:
                    break
            assert await asyncio.to_thread(slots_in_use, backend) == 1
        await until_idle(backend)
        await backend.aclose_session()

    asyncio.run(leave_early())
    stream = backend.stream(ask("Count from one to one thousand."), Sampling(max_tokens=400))
    next(stream)
    stream.close()
    asyncio.run(until_idle(backend))


@pytest.mark.slow
def test_cancelling_a_waiting_caller_frees_the_slot(backend, ask):
    async def cancel():
        work = asyncio.create_task(
            backend.agenerate(ask("Count from one to one thousand."), Sampling(max_tokens=400))
        )
        while not await asyncio.to_thread(slots_in_use, backend):
            await asyncio.sleep(0.02)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        await until_idle(backend)
        await backend.aclose_session()

    asyncio.run(cancel())


@pytest.mark.slow
def test_more_callers_than_slots_all_get_their_answer(backend, ask):
    async def crowd():
        prompts = [ask(f"What is {n} plus {n}?") for n in range(6)]
        answers = await asyncio.gather(
            *(backend.agenerate(prompt, Sampling(max_tokens=8)) for prompt in prompts)
        )
        assert await backend.ahealthy()
        await backend.aclose_session()
        return answers

    assert all(answer.text for answer in asyncio.run(crowd()))


@pytest.mark.slow
def test_threads_may_share_a_backend(backend, ask, greedy):
    prompt = ask("What is the capital of France?")
    texts = []
    threads = [
        threading.Thread(target=lambda: texts.append(backend.generate([prompt], greedy)[0].text))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [texts[0]] * 3


@pytest.mark.slow
def test_scores_are_a_softmax_over_the_whole_vocabulary(backend, tokenizer):
    row = tokenizer.encode(LLAMAS)[:12]
    result = backend.next_token_logprobs([row], [9], top=len(tokenizer))[0]
    assert result.token_ids.shape == (3, len(tokenizer))
    np.testing.assert_allclose(np.exp(result.logprobs.astype(np.float64)).sum(-1), 1, atol=2e-3)
    assert (np.diff(result.logprobs, axis=1) <= 0).all()


@pytest.mark.slow
def test_scores_do_not_depend_on_what_the_slot_holds(backend, ask):
    rows = [ask("What is the capital of France?"), ask("Hi"), ask("What is the capital of Spain?")]
    starts = [len(row) - 4 for row in rows]
    before = backend.next_token_logprobs(rows, starts, top=8)
    backend.generate([ask("Something else.")] * 2, Sampling(max_tokens=4))
    after = backend.next_token_logprobs(rows[::-1], starts[::-1], top=8)[::-1]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=0.05)
        assert one.token_ids[0, 0] == other.token_ids[0, 0]


def test_without_the_key_nothing_is_answered(backend):
    endpoint = backend._process.endpoint
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{endpoint.url}/slots")
    assert error.value.code == 401
    error.value.close()


def test_its_threads_spin_for_a_moment_at_barriers_and_then_sleep(backend):
    # Without the one, two threads are slower than one; without the other, any load stops them.
    environ = Path(f"/proc/{backend.pid}/environ").read_text().split("\0")
    found = dict(entry.split("=", 1) for entry in environ if "OMP_" in entry)
    wanted = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    assert {name: found[name] for name in wanted} == wanted | {
        name: os.environ[name] for name in wanted if name in os.environ
    }


def test_the_key_shows_neither_in_the_command_line_nor_in_the_environment(backend):
    key = backend._process.endpoint.api_key.encode()
    for name in ("cmdline", "environ"):
        assert key not in Path(f"/proc/{backend.pid}/{name}").read_bytes()
