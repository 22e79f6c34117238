"""Answering one chat request: queue, generation, stream or whole body, and every way to fail."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Protocol, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tunesmith.engine import Chunk, Sampling
from tunesmith.engine.types import FinishReason
from tunesmith.errors import TunesmithError
from tunesmith.serve.answers import AnswerFrame, event
from tunesmith.serve.guard import error_response
from tunesmith.serve.refusals import RequestError, error_body, refusal_of
from tunesmith.serve.request import ChatRequest
from tunesmith.serve.service import Service

__all__ = ["ChatAnswer"]

LOG = logging.getLogger("tunesmith.serve")
SEND_SECONDS = 30.0


class _StuckClient(Exception):
    """The client reads nothing any more, and its buffer is full."""


class ChatAnswer(Response):
    """An ASGI response that generates while it is sent, and stops when the client leaves.

    Args:
        service: the served model.
        request: what is asked.
        arrived: `time.monotonic()` when the request came.
    """

    def __init__(self, service: Service, request: ChatRequest, arrived: float) -> None:
        super().__init__()
        self._service = service
        self._request = request
        self._arrived = arrived

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Queue, generate, send."""
        model, options = self._service.model, self._request.stream_options
        frame = AnswerFrame(
            id=f"chatcmpl-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=model.name,
            fingerprint=model.fingerprint,
            with_usage=options is not None and bool(options.include_usage),
        )
        made = _StreamedReply if self._request.stream else _WholeReply
        reply: _Reply = made(frame, scope, receive, send)
        await _until_gone(self._answer(reply), receive, self._service.answering)

    async def _answer(self, reply: _Reply) -> None:
        service = self._service
        try:
            prompt = await service.prompt_ids(self._request.turns)
            sampling = service.sampling(self._request, len(prompt))
            async with service.admission.slot():
                await self._generate(prompt, sampling, reply)
        except TunesmithError as error:
            refusal = refusal_of(error)
            if refusal is not error:
                LOG.error("%s: %s", reply.frame.id, error)
            await reply.fail(refusal)
        except asyncio.CancelledError:
            if not service.aborting:
                raise
            await reply.fail(_shut_down())
        except _StuckClient:
            LOG.warning("%s: the client read nothing for %.0f s", reply.frame.id, SEND_SECONDS)

    async def _generate(self, prompt: tuple[int, ...], sampling: Sampling, reply: _Reply) -> None:
        service, answer_tokens = self._service, 0
        reason: FinishReason | None = None
        try:
            answer = cast("AsyncGenerator[Chunk]", service.engine.astream(prompt, sampling))
            async with aclosing(answer) as chunks:
                async for chunk in chunks:
                    if answer_tokens == 0:
                        service.meters.first_token(time.monotonic() - self._arrived)
                    answer_tokens, reason = chunk.answer_tokens, chunk.finish_reason
                    if chunk.text:
                        await reply.piece(chunk.text)
        finally:
            service.meters.generated(answer_tokens)
        if reason is None:
            raise _cut_off()
        await reply.finish(reason, len(prompt), answer_tokens)
        service.meters.finished(time.monotonic() - self._arrived, len(prompt))


class _Reply(Protocol):
    """How an answer goes to the client."""

    frame: AnswerFrame

    async def piece(self, text: str) -> None: ...

    async def finish(
        self, reason: FinishReason, prompt_tokens: int, answer_tokens: int
    ) -> None: ...

    async def fail(self, error: RequestError) -> None: ...


class _WholeReply:
    """One JSON body at the end."""

    def __init__(self, frame: AnswerFrame, scope: Scope, receive: Receive, send: Send) -> None:
        self.frame = frame
        self._connection = (scope, receive, send)
        self._pieces: list[str] = []

    async def piece(self, text: str) -> None:
        self._pieces.append(text)

    async def finish(self, reason: FinishReason, prompt_tokens: int, answer_tokens: int) -> None:
        text = "".join(self._pieces)
        body = self.frame.whole(text, reason, prompt_tokens, answer_tokens)
        await Response(body, media_type="application/json")(*self._connection)

    async def fail(self, error: RequestError) -> None:
        await error_response(error)(*self._connection)


class _StreamedReply:
    """Server-sent events. The status line waits for the first token, so that what fails before it
    has a status of its own; what fails later ends the stream with an error event."""

    def __init__(self, frame: AnswerFrame, scope: Scope, receive: Receive, send: Send) -> None:
        self.frame = frame
        self._connection = (scope, receive, send)
        self._started = False

    async def piece(self, text: str) -> None:
        await self._send(self.frame.piece(text))

    async def finish(self, reason: FinishReason, prompt_tokens: int, answer_tokens: int) -> None:
        await self._send(self.frame.closing(reason, prompt_tokens, answer_tokens), more=False)

    async def fail(self, error: RequestError) -> None:
        if self._started:
            await self._send(event(error_body(error)), more=False)
        else:
            await error_response(error)(*self._connection)

    async def _send(self, body: bytes, *, more: bool = True) -> None:
        send = self._connection[2]
        try:
            async with asyncio.timeout(SEND_SECONDS):
                if not self._started:
                    self._started = True
                    await send(_stream_start())
                    body = self.frame.opening() + body
                await send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise _StuckClient from None


def _stream_start() -> dict[str, Any]:
    # A reverse proxy that buffers would turn the stream into one late block.
    buffering = (b"x-accel-buffering", b"no")
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), buffering]
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def _until_gone(
    work: Coroutine[Any, Any, None], receive: Receive, answering: set[asyncio.Task[None]]
) -> None:
    """Run `work` to its end, or cancel it as soon as the client has left."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_gone(receive))
    answering.add(working)
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        answering.discard(working)
        working.cancel()
        watching.cancel()
        await asyncio.wait((working, watching))
    if not working.cancelled():
        working.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def _cut_off() -> RequestError:
    return RequestError(
        "the inference engine ended the answer without a reason",
        fix="send the request again",
        status=502,
        kind="server_error",
        code="engine_failed",
    )


def _shut_down() -> RequestError:
    return RequestError(
        "the gateway shut down before the answer was complete",
        fix="send the request again when it is up",
        status=503,
        kind="server_error",
        code="shutting_down",
    )
