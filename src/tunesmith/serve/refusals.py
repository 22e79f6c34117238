"""Refused requests, as the OpenAI error body that official clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tunesmith.errors import TunesmithError

__all__ = ["ErrorKind", "RequestError", "error_body", "refusal_of"]

ErrorKind = Literal["invalid_request_error", "rate_limit_error", "server_error"]


class RequestError(TunesmithError):
    """A request that is not answered, with the HTTP status and OpenAI's fields.

    Args:
        what, why, fix: as in every error; together they are the body's `message`.
        status: HTTP status.
        kind: the body's `type`.
        param: the offending parameter, such as `messages[0].role`.
        code: one word for programs, such as `context_length_exceeded`.
        headers: more response headers, such as `retry-after`.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        fix: str = "",
        status: int = 400,
        kind: ErrorKind = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what, why=why, fix=fix)
        self.http_status = status
        self.kind: ErrorKind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def refusal_of(error: TunesmithError) -> RequestError:
    """Any error of the tree as a refusal. A server error's details stay in the server's log."""
    if isinstance(error, RequestError):
        return error
    if error.http_status < 500:
        return RequestError(error.what, why=error.why, fix=error.fix, status=error.http_status)
    return RequestError(
        "the inference engine failed while it answered",
        why="it stopped or refused the work; the gateway's log says more",
        fix="send the request again; the engine is started again by itself",
        status=error.http_status,
        kind="server_error",
        code="engine_failed",
    )


def error_body(error: RequestError) -> dict[str, Any]:
    """The JSON body `{"error": {...}}`."""
    return {
        "error": {
            "message": str(error),
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }
