"""llama.cpp in a supervised child process, asked over loopback HTTP with token ids.

Prompts travel as token ids, so that the one chat renderer decides what the model reads, never
llama.cpp's own template. The requests are written once, for asyncio; the synchronous calls run the
same coroutines on an event loop in a thread of the backend's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tunesmith.engine import sampling_seeds
from tunesmith.engine.answer import whole_characters
from tunesmith.engine.backends.event_loop import LoopThread, side_by_side
from tunesmith.engine.backends.llama_process import Endpoint, LlamaProcess, LlamaSettings
from tunesmith.engine.prompts import check_prompts, check_rows
from tunesmith.engine.types import Chunk, FinishReason, Generation, NextTokenLogprobs, Sampling
from tunesmith.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from types import TracebackType

    import aiohttp
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LlamaBackend", "LlamaSettings"]

POLL_SECONDS = 0.05
MANY = 1_024, 1 << 30
"""Likeliest tokens among which one is looked for that llama.cpp gives no probability of: some, then all."""
FIELDS = ["content", "tokens", "stop_type", "tokens_predicted", "completion_probabilities"]


class LlamaBackend:
    """One GGUF model in llama.cpp. Safe for use from several threads and event loops.

    After a crash of the child the running requests fail with `EngineError`, the child is started
    again, and later requests wait for it.

    Args:
        model_path: a GGUF file.
        settings: slots, context, threads, log.

    Raises:
        MissingError, ModelError, EnvironmentProblem, EngineError, StorageError: as `LlamaProcess`.
    """

    name = "llama_cpp"

    def __init__(self, model_path: Path, settings: LlamaSettings | None = None) -> None:
        self.settings = settings or LlamaSettings()
        self.context_tokens = self.settings.context_tokens
        self._process = LlamaProcess(Path(model_path), self.settings)
        self._sessions: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, aiohttp.ClientSession
        ] = weakref.WeakKeyDictionary()
        self._thread = LoopThread()

    @property
    def pid(self) -> int | None:
        """The child's process id; None while it starts."""
        endpoint = self._process.endpoint
        return None if endpoint is None else endpoint.pid

    @property
    def restarts(self) -> int:
        """How often the child was started again after a crash."""
        return self._process.restarts

    def log_tail(self) -> str:
        """The last lines that llama.cpp logged."""
        return self._process.log_tail()

    # -- asyncio ---------------------------------------------------------------------------------

    async def agenerate(self, prompt: Sequence[int], sampling: Sampling) -> Generation:
        """The whole answer to one prompt; cancelling frees the slot.

        Raises:
            DataError: the prompt is empty or leaves no room for an answer.
            EngineError: the child died or hangs.
        """
        check_prompts([prompt], self.context_tokens)
        return await self._agenerate(prompt, sampling, sampling_seeds([prompt], sampling.seed)[0])

    async def astream(self, prompt: Sequence[int], sampling: Sampling) -> AsyncIterator[Chunk]:
        """The same answer piece by piece. Wrap it in `contextlib.aclosing`: closing it, as well as
        cancelling the task, closes the connection, and llama.cpp frees the slot.

        Raises:
            DataError, EngineError: as `agenerate`.
        """
        check_prompts([prompt], self.context_tokens)
        seed = sampling_seeds([prompt], sampling.seed)[0]
        body = self._body(prompt, sampling, seed) | {"stream": True}
        async with self._post(body) as response:
            async for event in _events(response):
                if "error" in event:
                    raise self._refused(event["error"])
                text, answer_tokens = str(event["content"]), int(event["tokens_predicted"])
                if event["stop"]:
                    yield Chunk(text, answer_tokens, _finish_reason(event))
                    return
                if text:
                    yield Chunk(text, answer_tokens)
        raise self._died("the stream ended without a finish")

    async def ahealthy(self) -> bool:
        """Whether the child runs and answers now."""
        import aiohttp

        endpoint = self._process.endpoint
        if endpoint is None:
            return False
        timeout = aiohttp.ClientTimeout(total=2)
        try:
            async with self._session().get(f"{endpoint.url}/health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def aclose_session(self) -> None:
        """Close this event loop's connections; call it before the loop ends."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    # -- synchronous -----------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """See `Backend.generate`; as many prompts at once as there are slots. `on_done` is called
        from another thread."""
        check_prompts(prompts, self.context_tokens)
        seeds = sampling_seeds(prompts, sampling.seed)

        async def one(index: int, slot: int) -> Generation:
            answer = await self._agenerate(prompts[index], sampling, seeds[index])
            if on_done is not None:
                on_done(index)
            return answer

        return self._thread.run(side_by_side(one, len(prompts), self.settings.slots))

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[Chunk]:
        """See `Backend.stream`; closing the iterator frees the slot."""
        chunks = self.astream(prompt, sampling)
        try:
            while True:
                chunk = self._thread.run(_next(chunks))
                if chunk is None:
                    return
                yield chunk
        finally:
            if self._thread.alive:
                self._thread.run(_close(chunks))

    def next_token_logprobs(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int], *, top: int = 256
    ) -> list[NextTokenLogprobs]:
        """See `Backend.next_token_logprobs`.

        One request a position: each row stays in one slot, whose cache holds the row so far, so
        that only the newest token is evaluated, as in a served answer.
        """
        check_rows(rows, starts, self.context_tokens)

        async def one(index: int, slot: int) -> NextTokenLogprobs:
            return await self._row_logprobs(rows[index], starts[index], top, slot)

        return self._thread.run(side_by_side(one, len(rows), self.settings.slots))

    def own_logprobs(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[NDArray[np.float64]]:
        """Log probability that the model gives to each row's own tokens, (tokens,), from its start on.

        Raises:
            DataError: a row is empty, starts at its first token, or is longer than the context.
            EngineError: the child died or hangs.
        """
        check_rows(rows, starts, self.context_tokens)

        async def one(index: int, slot: int) -> NDArray[np.float64]:
            return await self._own_logprobs(rows[index], starts[index], slot)

        return self._thread.run(side_by_side(one, len(rows), self.settings.slots))

    def close(self) -> None:
        """Stop the child. Close other event loops' sessions first with `aclose_session`."""
        self._process.close()
        if self._thread.alive:
            self._thread.run(self.aclose_session())
        self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- requests --------------------------------------------------------------------------------

    def _body(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> dict[str, Any]:
        return {
            "prompt": list(prompt),
            "n_predict": min(sampling.max_tokens, self.context_tokens - len(prompt)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            # Only these, in this order: llama.cpp's defaults add min_p and more.
            "samplers": ["temperature", "top_k", "top_p"],
            "seed": seed,
            "stop": list(sampling.stop),
            "cache_prompt": True,
            "return_tokens": True,
        }

    async def _agenerate(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> Generation:
        # Not a stream: in one, llama.cpp leaves out the tokens that end inside a character.
        body = self._body(prompt, sampling, seed) | {"response_fields": FIELDS}
        answer = await self._answer(body)
        text = whole_characters(str(answer["content"]))
        return Generation(tuple(answer["tokens"]), text, _finish_reason(answer), len(prompt))

    async def _own_logprobs(self, row: Sequence[int], start: int, slot: int) -> NDArray[np.float64]:
        import numpy as np

        found = []
        for position in range(start, len(row)):
            token = row[position]
            # The drawn token comes with its log probability of before the bias, however unlikely.
            answer = await self._answer(self._probe(row[:position], 1, token, slot))
            drawn = answer.get("completion_probabilities")
            if drawn and drawn[0]["id"] == token:
                found.append(float(drawn[0]["logprob"]))
            else:
                # A token that ends inside a character comes without: look for it among the others.
                found.append(await self._named_logprob(row[:position], token, slot))
        return np.array(found, np.float64)

    async def _named_logprob(self, past: Sequence[int], token: int, slot: int) -> float:
        for top in MANY:
            answer = await self._answer(self._probe(past, top, "a", slot))
            for entry in answer["completion_probabilities"][0]["top_logprobs"]:
                if entry["id"] == token:
                    return float(entry["logprob"])
        raise EngineError(f"llama.cpp does not know the token {token}")

    def _probe(self, past: Sequence[int], top: int, drawn: int | str, slot: int) -> dict[str, Any]:
        """A request for the next token's log probabilities, in which `drawn` is drawn."""
        return {
            "prompt": list(past),
            "n_predict": 1,
            "n_probs": top,
            "post_sampling_probs": False,
            "temperature": 0.0,
            "samplers": ["temperature"],
            "logit_bias": [[drawn, 1e9]],
            "id_slot": slot,
            "cache_prompt": True,
            "response_fields": FIELDS,
        }

    async def _row_logprobs(
        self, row: Sequence[int], start: int, top: int, slot: int
    ) -> NextTokenLogprobs:
        import numpy as np

        ids, logprobs = [], []
        for position in range(start, len(row)):
            # llama.cpp leaves the logprobs out when the token that it draws ends inside a
            # character. So it must draw this one; the logprobs are taken before the bias.
            body = self._probe(row[:position], top, "a", slot)
            answer = await self._answer(body)
            best = answer["completion_probabilities"][0]["top_logprobs"]
            ids.append([entry["id"] for entry in best])
            logprobs.append([entry["logprob"] for entry in best])
        return NextTokenLogprobs(np.array(ids, np.int64), np.array(logprobs, np.float32))

    async def _answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        async with self._post(body) as response:
            answer: dict[str, Any] = json.loads(await response.read())
        return answer

    @contextlib.asynccontextmanager
    async def _post(self, body: Mapping[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
        import aiohttp

        try:
            response = await self._send(body)
            try:
                if response.status != 200:
                    raise self._refused(_error_of(await response.read()))
                yield response
            finally:
                # An answer that was not read to its end must not keep its slot.
                response.close()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise self._died(str(error) or type(error).__name__) from error

    async def _send(self, body: Mapping[str, Any]) -> aiohttp.ClientResponse:
        import aiohttp

        gone: Endpoint | None = None
        while True:
            endpoint = await self._ready(gone)
            headers = {"Authorization": f"Bearer {endpoint.api_key}"}
            try:
                return await self._session().post(
                    f"{endpoint.url}/completion", json=body, headers=headers
                )
            except aiohttp.ClientConnectorError:
                # The child died, and the supervision has not seen it yet. Nothing was sent.
                gone = endpoint

    async def _ready(self, gone: Endpoint | None) -> Endpoint:
        """Wait for a child other than `gone`."""
        deadline = asyncio.get_running_loop().time() + self.settings.start_seconds
        while (endpoint := self._process.endpoint) is None or endpoint == gone:
            failure = self._process.failure()
            if failure is not None:
                raise failure
            if asyncio.get_running_loop().time() > deadline:
                raise self._died("it is still starting")
            await asyncio.sleep(POLL_SECONDS)
        return endpoint

    def _session(self) -> aiohttp.ClientSession:
        import aiohttp

        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None or session.closed:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=5, sock_read=self.settings.silence_seconds
            )
            # No limit: slots and the caller's queue limit the requests. No keep-alive: llama.cpp
            # promises it after a stream, and then closes; a reused connection would fail.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            session = aiohttp.ClientSession(connector=connector, timeout=timeout)
            self._sessions[loop] = session
        return session

    def _died(self, reason: str) -> EngineError:
        return EngineError(
            f"llama.cpp stopped while it answered: {reason}",
            why=f"its last log lines are:\n{self.log_tail() or '(none)'}",
            fix="send the request again; the engine is started again by itself",
        )

    def _refused(self, error: Mapping[str, Any]) -> ConfigError | EngineError:
        message = f"llama.cpp refused the request: {error.get('message', error)}"
        return ConfigError(message) if error.get("code") == 400 else EngineError(message)


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {"message": body.decode("utf-8", "replace")[:500]}
    return error if isinstance(error, dict) else {"message": str(error)}


def _finish_reason(answer: Mapping[str, Any]) -> FinishReason:
    return "length" if answer["stop_type"] == "limit" else "stop"


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events; split here because aiohttp's lines are limited to 64 KiB."""
    buffer = b""
    async for data in response.content.iter_any():
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            if line.startswith((b"data: ", b"error: ")):
                event = json.loads(line.partition(b": ")[2])
                yield event if line.startswith(b"data: ") else {"error": event}


async def _next(chunks: AsyncIterator[Chunk]) -> Chunk | None:
    return await anext(chunks, None)


async def _close(chunks: AsyncIterator[Chunk]) -> None:
    await chunks.aclose()  # type: ignore[attr-defined]
