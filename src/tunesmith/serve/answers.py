"""The bodies of answers, whole and streamed, as OpenAI's clients read them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from tunesmith.engine.types import FinishReason

__all__ = ["DONE", "AnswerFrame", "ChatCompletion", "ErrorBody", "Model", "ModelList", "event"]

DONE = b"data: [DONE]\n\n"


class Usage(BaseModel):
    """Token counts, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(BaseModel):
    """The one answer."""

    index: Literal[0]
    message: AnswerMessage
    logprobs: None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"]
    data: list[Model]


class ErrorDetails(BaseModel):
    """What is wrong, why, and how to mend it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """A refusal."""

    error: ErrorDetails


def event(body: Any) -> bytes:
    """A server-sent event. The JSON is ASCII without line ends, so no text can break the framing."""
    return b"data: " + _json(body) + b"\n\n"


@dataclass(frozen=True)
class AnswerFrame:
    """What all parts of one answer have in common.

    Attributes:
        id: the answer's id.
        created: seconds since 1970.
        model: name of the model.
        fingerprint: `system_fingerprint`: which bundle answered.
        with_usage: each chunk says `"usage": null`, and one more has the counts.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    with_usage: bool = False

    def whole(
        self, text: str, reason: FinishReason, prompt_tokens: int, answer_tokens: int
    ) -> bytes:
        """The body of an answer that is not streamed."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        usage = _usage(prompt_tokens, answer_tokens)
        return _json({**self._head("chat.completion"), "choices": [choice], "usage": usage})

    def opening(self) -> bytes:
        """The first event: the role."""
        return self._delta({"role": "assistant", "content": "", "refusal": None}, None)

    def piece(self, text: str) -> bytes:
        """An event with a piece of the answer."""
        return self._delta({"content": text}, None)

    def closing(self, reason: FinishReason, prompt_tokens: int, answer_tokens: int) -> bytes:
        """The last events: finish reason, usage when it was asked for, and `[DONE]`."""
        events = self._delta({}, reason)
        if self.with_usage:
            usage = _usage(prompt_tokens, answer_tokens)
            head = self._head("chat.completion.chunk")
            events += event({**head, "choices": [], "usage": usage})
        return events + DONE

    def _delta(self, delta: dict[str, Any], reason: FinishReason | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        body = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.with_usage:
            body["usage"] = None
        return event(body)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def _usage(prompt_tokens: int, answer_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
    }


def _json(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode("ascii")
