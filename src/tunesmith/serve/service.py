"""One served model: its renderer, its engine, and who may use it when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from tunesmith.engine import Chunk, Sampling
from tunesmith.errors import ModelError
from tunesmith.models.chat import ChatRenderer
from tunesmith.serve.admission import Admission
from tunesmith.serve.meters import Meters
from tunesmith.serve.refusals import RequestError
from tunesmith.serve.request import ChatRequest

__all__ = ["Engine", "Limits", "ServedModel", "Service"]


class Engine(Protocol):
    """What the gateway needs of an inference engine; `LlamaBackend` is one."""

    @property
    def restarts(self) -> int:
        """How often it was started again after a crash."""
        ...

    def astream(self, prompt: Sequence[int], sampling: Sampling) -> AsyncIterator[Chunk]:
        """An answer piece by piece; closing the iterator ends the work."""
        ...

    async def ahealthy(self) -> bool:
        """Whether it answers now."""
        ...


@dataclass(frozen=True)
class Limits:
    """How long prompts and answers may be.

    Attributes:
        context_tokens: prompt and answer together.
        max_answer_tokens: the answer, when the request does not say.
    """

    context_tokens: int
    max_answer_tokens: int


@dataclass(frozen=True)
class ServedModel:
    """What is served.

    Attributes:
        name: what requests call it.
        fingerprint: first digits of the bundle's key; `system_fingerprint` of every answer.
        created: when the bundle was sealed, in seconds since 1970.
        renderer: the one chat renderer, with the bundle's tokenizer.
        limits: how long prompts and answers may be.
    """

    name: str
    fingerprint: str
    created: int
    renderer: ChatRenderer
    limits: Limits


class Service:
    """The state behind the routes. It belongs to one event loop."""

    def __init__(self, model: ServedModel, engine: Engine, admission: Admission) -> None:
        self.model = model
        self.engine = engine
        self.admission = admission
        self.meters = Meters()
        self.draining = False
        self.aborting = False
        self.answering: set[asyncio.Task[None]] = set()
        vocabulary = model.renderer.tokenizer.get_vocab()
        self._most_characters = model.limits.context_tokens * max(
            len(token) for token in vocabulary
        )
        self._restarts_seen = 0
        # One thread: a tokenizer must not be used by two at once.
        self._renderer_thread = ThreadPoolExecutor(1, thread_name_prefix="renderer")

    def drain(self) -> None:
        """Refuse new and waiting requests; running answers go on."""
        self.draining = True
        self.admission.close()

    def abort(self) -> None:
        """End running answers with an error."""
        self.aborting = True
        for task in self.answering:
            task.cancel()

    def close(self) -> None:
        """End the renderer's thread."""
        self._renderer_thread.shutdown(cancel_futures=True)

    async def ready(self) -> bool:
        """Whether a request would be answered now."""
        return not self.draining and await self.engine.ahealthy()

    async def metrics(self) -> bytes:
        """What `/metrics` answers."""
        restarts = self.engine.restarts
        self.meters.restarted(restarts - self._restarts_seen)
        self._restarts_seen = restarts
        self.meters.set(
            {
                "requests_running": self.admission.running,
                "requests_waiting": self.admission.waiting,
                "engine_up": int(await self.engine.ahealthy()),
            }
        )
        return self.meters.text()

    async def prompt_ids(self, turns: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Tokens of a conversation, up to the opening of the answer.

        Raises:
            RequestError: it is longer than the context, or the model's template refuses it.
        """
        characters = sum(len(turn["content"]) for turn in turns)
        if characters > self._most_characters:
            raise self._too_long(f"the messages have {characters} characters")
        loop = asyncio.get_running_loop()
        render = self.model.renderer.prompt_ids
        try:
            prompt = await loop.run_in_executor(self._renderer_thread, render, turns)
        except ModelError as error:
            raise RequestError(
                error.what, why=error.why, fix=error.fix, param="messages", code="invalid_messages"
            ) from error
        if len(prompt) >= self.model.limits.context_tokens:
            raise self._too_long(f"the messages have {len(prompt)} tokens")
        return prompt

    def sampling(self, request: ChatRequest, prompt_tokens: int) -> Sampling:
        """How the answer to a prompt of this length is drawn.

        Raises:
            RequestError: prompt and the answer that is asked for do not fit into the context.
        """
        room = self.model.limits.context_tokens - prompt_tokens
        if request.limit is None:
            return request.sampling(min(room, self.model.limits.max_answer_tokens))
        if request.limit > room:
            param = "max_tokens" if request.max_completion_tokens is None else None
            raise self._too_long(
                f"the messages have {prompt_tokens} tokens and the answer may have {request.limit}",
                param=param or "max_completion_tokens",
            )
        return request.sampling(request.limit)

    def _too_long(self, what: str, param: str = "messages") -> RequestError:
        return RequestError(
            f"{what}, but the context holds {self.model.limits.context_tokens} tokens, answer included",
            fix="send less, ask for a shorter answer, or raise serve.context_tokens",
            param=param,
            code="context_length_exceeded",
        )
