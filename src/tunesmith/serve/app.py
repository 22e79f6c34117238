"""The gateway's routes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tunesmith import __version__
from tunesmith.registry import nearest
from tunesmith.serve.answers import ChatCompletion, ErrorBody, Model, ModelList
from tunesmith.serve.chat import ChatAnswer
from tunesmith.serve.guard import error_response
from tunesmith.serve.meters import CONTENT_TYPE
from tunesmith.serve.refusals import RequestError
from tunesmith.serve.request import MAX_BODY_BYTES, ChatRequest, parse_chat
from tunesmith.serve.service import Service

__all__ = ["make_app", "openapi"]

BODY_SECONDS = 30.0
REFERENCE = "#/components/schemas/{model}"

Responses = dict[int | str, dict[str, Any]]


class Status(BaseModel):
    """Up."""

    status: str


def _errors(**statuses: str) -> Responses:
    return {
        int(status[1:]): {"model": ErrorBody, "description": text}
        for status, text in statuses.items()
    }


_KEY = _errors(_401="No valid key.", _403="The Host header is not one of the gateway's names.")
_CHAT: Responses = {
    200: {
        "description": "The answer: JSON, or a stream of server-sent events when `stream` is true.",
        "content": {"text/event-stream": {}},
    },
    **_KEY,
    **_errors(
        _400="The request is wrong; the message names all problems.",
        _404="No such model.",
        _408="The body did not arrive in time.",
        _413="The body is too large.",
        _415="The body is not JSON.",
        _429="The queue is full; `retry-after` and `retry-after-ms` say when to come back.",
        _502="The engine failed.",
        _503="The gateway is shutting down.",
    ),
}


def make_app() -> FastAPI:
    """The application, without a service: set `app.state.service` before the first request.

    It publishes no documentation of itself; `docs/serve/reference.md` is generated from it.
    """
    app = FastAPI(
        title="tunesmith gateway",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    _add_probes(app)
    _add_models(app)
    _add_chat(app)
    app.add_exception_handler(RequestError, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    return app


def openapi() -> dict[str, Any]:
    """The OpenAPI description of the gateway."""
    schema = make_app().openapi()
    chat = ChatRequest.model_json_schema(ref_template=REFERENCE)
    parts = chat.pop("$defs")
    schema["components"]["schemas"].update({**parts, "ChatRequest": chat})
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return schema


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _add_probes(app: FastAPI) -> None:
    @app.get("/healthz", response_model=Status)
    async def healthz() -> Response:
        """The process is up."""
        return JSONResponse({"status": "up"})

    @app.get("/readyz", response_model=Status, responses=_errors(_503="It would not be answered."))
    async def readyz(request: Request) -> Response:
        """The engine answers, so a request would be answered now."""
        if await _service(request).ready():
            return JSONResponse({"status": "ready"})
        raise RequestError(
            "the gateway is not ready",
            why="the inference engine does not answer, or the gateway is shutting down",
            fix="ask again; a crashed engine is started again by itself",
            status=503,
            kind="server_error",
            code="not_ready",
        )

    @app.get("/metrics", response_class=PlainTextResponse, responses=_KEY)
    async def metrics(request: Request) -> Response:
        """Counts for Prometheus. A key is needed, on loopback too: behind a reverse proxy every
        request comes from loopback."""
        return Response(await _service(request).metrics(), media_type=CONTENT_TYPE)


def _add_models(app: FastAPI) -> None:
    @app.get("/v1/models", response_model=ModelList, responses=_KEY)
    async def models(request: Request) -> Response:
        """The served models."""
        return JSONResponse({"object": "list", "data": [_model(_service(request))]})

    @app.get("/v1/models/{model}", response_model=Model, responses=_KEY | _errors(_404="Unknown."))
    async def one_model(request: Request, model: str) -> Response:
        """One served model."""
        _check_model(_service(request), model)
        return JSONResponse(_model(_service(request)))


def _add_chat(app: FastAPI) -> None:
    body = {"application/json": {"schema": {"$ref": REFERENCE.format(model="ChatRequest")}}}

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=_CHAT,
        openapi_extra={"requestBody": {"required": True, "content": body}},
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        arrived = time.monotonic()
        service = _service(request)
        chat = parse_chat(await _body(request))
        _check_model(service, chat.model)
        return ChatAnswer(service, chat, arrived)


def _model(service: Service) -> dict[str, Any]:
    model = service.model
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "tunesmith",
    }


def _check_model(service: Service, name: str) -> None:
    served = service.model.name
    if name != served:
        raise RequestError(
            f"no model is called {name[:80]!r}{nearest(name[:80], [served])}",
            fix=f"use {served!r}, the model that is served here",
            status=404,
            param="model",
            code="model_not_found",
        )


async def _body(request: Request) -> bytes:
    """The whole body, refused when it is too large, too slow, compressed or not JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if kind != "application/json" or encoding != "identity":
        raise RequestError(
            f"the body is {kind[:60] or 'of no stated type'}, encoded as {encoding[:60]}",
            why="only plain JSON is read",
            fix="send the header `Content-Type: application/json`, uncompressed",
            status=415,
            code="unsupported_media_type",
        )
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > MAX_BODY_BYTES:
        raise _too_large()
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                parts.append(part)
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {BODY_SECONDS:.0f} s",
            fix="send the request again",
            status=408,
            code="body_timeout",
        ) from None
    except ClientDisconnect:
        raise RequestError("the client left before its request was complete", status=400) from None
    return b"".join(parts)


def _too_large() -> RequestError:
    return RequestError(
        f"the body has more than {MAX_BODY_BYTES:,} bytes",
        fix="send less",
        status=413,
        code="body_too_large",
    )


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = RequestError(
        f"{request.method} {request.url.path[:200]}: {error.detail}",
        fix="docs/serve/reference.md lists the paths and methods",
        status=error.status_code,
        code="not_found" if error.status_code == 404 else "not_allowed",
        headers=error.headers,
    )
    return error_response(refusal)


async def _on_bug(request: Request, error: Exception) -> Response:
    """A bug of ours: the traceback goes to the log, and nothing of it to the client."""
    refusal = RequestError(
        "the gateway failed in an unexpected way",
        fix="its log has the traceback; please report it",
        status=500,
        kind="server_error",
        code="internal_error",
    )
    return error_response(refusal)
