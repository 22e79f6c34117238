"""What stands before every route: host check, key check, request id, counting, one log line."""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunesmith.serve.meters import Meters
from tunesmith.serve.refusals import RequestError, error_body

__all__ = ["OPEN_PATHS", "Guard", "KeyCheck", "error_response"]

LOG = logging.getLogger("tunesmith.serve")
OPEN_PATHS = ("/healthz", "/readyz")
"""Paths that need no key: a supervisor asks them. They tell nothing but up or down."""

_NO_KEY = RequestError(
    "no valid API key came with the request",
    why="every path but /healthz and /readyz needs one",
    fix="send the header `Authorization: Bearer sk-...` with the key that the gateway printed",
    status=401,
    code="invalid_api_key",
    headers={"www-authenticate": "Bearer"},
)


class KeyCheck(Protocol):
    """Who is let in."""

    def admit(self, secret: str) -> bool:
        """Whether this key is known."""
        ...


def error_response(error: RequestError) -> JSONResponse:
    """A refusal as an HTTP response."""
    return JSONResponse(error_body(error), status_code=error.http_status, headers=error.headers)


@dataclass(frozen=True)
class Guard:
    """ASGI middleware around the whole application.

    Attributes:
        app: what is guarded.
        keys: who is let in.
        hosts: names that the Host header may have, or None for any. On loopback they are
            limited, because a web page can point a name of its own at 127.0.0.1.
        meters: where requests are counted.
    """

    app: ASGIApp
    keys: KeyCheck
    hosts: frozenset[str] | None
    meters: Meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        started = time.monotonic()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["cache-control"] = "no-store"
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        refusal = self._refusal(scope)
        app = self.app if refusal is None else error_response(refusal)
        try:
            await app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            # A client that left before its answer began is counted as nginx does.
            self.meters.request(route, status or 499)
            seconds = time.monotonic() - started
            LOG.info("%s %s %s %d %.3f s", request_id, scope["method"], route, status, seconds)

    def _refusal(self, scope: Scope) -> RequestError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return RequestError(
                f"the Host header {host[:80]!r} is not one of this gateway's names",
                why="it listens on loopback, where another name can be a web page's attack",
                fix=f"use one of: {', '.join(sorted(self.hosts))}",
                status=403,
                code="host_not_allowed",
            )
        if scope["path"] in OPEN_PATHS:
            return None
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        admitted = scheme.lower() == "bearer" and self.keys.admit(secret.strip())
        return None if admitted else _NO_KEY


def _name(host: str) -> str:
    """The name in a Host header, without the port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
