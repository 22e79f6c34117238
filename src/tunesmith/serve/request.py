"""What a chat request may hold: parsed from bytes, checked, every problem reported at once.

A parameter that this gateway cannot honour is refused by its name, never ignored in silence.
"""

from __future__ import annotations

import reprlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json

from tunesmith.engine import Sampling
from tunesmith.errors import listed
from tunesmith.registry import nearest
from tunesmith.serve.refusals import RequestError

__all__ = [
    "IGNORED",
    "MAX_BODY_BYTES",
    "MAX_MESSAGES",
    "REFUSED",
    "ChatRequest",
    "Message",
    "StreamOptions",
    "TextPart",
    "parse_chat",
]

MAX_BODY_BYTES = 1 << 20
MAX_MESSAGES = 256
MAX_STOP_CHARACTERS = 256
MAX_PARTS = 64
MAX_PARAMETERS = 64
PROBLEMS_SHOWN = 20
SHOWN_CHARACTERS = 60

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = SHOWN_CHARACTERS


@dataclass(frozen=True)
class Refused:
    """A parameter of OpenAI's that cannot be honoured; `harmless` values mean "off" and pass."""

    harmless: tuple[Any, ...]
    why: str


_TOOLS = "tools are not supported"
_LOGPROBS = "log-probabilities are not returned"
_PENALTY = "penalties are not supported: the answer is drawn from the model as it was judged"

REFUSED: dict[str, Refused] = {
    "n": Refused((1,), "one answer a request is given; send the request again for more"),
    "tools": Refused(([],), _TOOLS),
    "tool_choice": Refused(("none",), _TOOLS),
    "parallel_tool_calls": Refused((), _TOOLS),
    "functions": Refused(([],), _TOOLS),
    "function_call": Refused(("none",), _TOOLS),
    "logprobs": Refused((False,), _LOGPROBS),
    "top_logprobs": Refused((0,), _LOGPROBS),
    "logit_bias": Refused(({},), "tokens cannot be favoured one by one"),
    "frequency_penalty": Refused((0,), _PENALTY),
    "presence_penalty": Refused((0,), _PENALTY),
    "response_format": Refused(({"type": "text"},), "only plain text is generated"),
    "modalities": Refused((["text"],), "only text is generated"),
    "audio": Refused((), "only text is generated"),
    "prediction": Refused((), "predicted outputs are not supported"),
    "reasoning_effort": Refused(("none",), "the model does not reason before it answers"),
    "verbosity": Refused((), "the model has no such control; say it in a message"),
    "service_tier": Refused(("auto", "default"), "there is one tier"),
    "web_search_options": Refused((), "the gateway never goes to the network"),
    "store": Refused((False,), "requests and answers are never kept"),
}
"""OpenAI's parameters that are refused by name, unless their value means "off"."""

IGNORED = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
"""Parameters that are accepted and have no effect: they label a request and change no answer."""

_INERT_IN_MESSAGES = ("refusal", "annotations", "audio", "function_call", "tool_calls", "name")
"""Fields of messages that are dropped when null or empty, as in an answer that is sent back."""


def _clean(text: str) -> str:
    if "\0" in text:
        raise ValueError("it holds a NUL character")
    return text


Text = Annotated[str, AfterValidator(_clean)]


class _Strict(BaseModel):
    """No conversions and no unknown fields; a flood of fields is not even looked through."""

    model_config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) > MAX_PARAMETERS:
            raise ValueError(f"it has {len(value)} fields; at most {MAX_PARAMETERS} are read")
        return value


class TextPart(_Strict):
    """A piece of a message's content."""

    type: Literal["text"]
    """Only text; images, audio and files are refused."""
    text: Text
    """The text. Several parts are joined without anything between them."""


def _form_of(content: object) -> str | None:
    if isinstance(content, str):
        return "string"
    return "parts" if isinstance(content, list) else None


Content = Annotated[
    Annotated[Text, Tag("string")]
    | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS), Tag("parts")],
    Discriminator(
        _form_of,
        custom_error_type="content_form",
        custom_error_message="it must be a string or a list of parts of type text",
    ),
]


class Message(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is read as `system`. The last message is from the user or the system."""
    content: Content
    """Text, or parts of type text."""

    @model_validator(mode="before")
    @classmethod
    def _drop_inert(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {
            name: content
            for name, content in value.items()
            if not (name in _INERT_IN_MESSAGES and content in (None, []))
        }

    def as_turn(self) -> dict[str, str]:
        """The message as the chat renderer takes it."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        return {"role": role, "content": "".join(part.text for part in self.content)}


class StreamOptions(_Strict):
    """What a stream also carries."""

    include_usage: bool | None = None
    """Send one more chunk with the token counts before `[DONE]`."""
    include_obfuscation: Literal[False] | None = None
    """Padding against traffic analysis is not supported."""


StopText = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stop = Annotated[
    Annotated[StopText, Tag("string")]
    | Annotated[list[StopText], Field(max_length=4), Tag("parts")],
    Discriminator(
        _form_of,
        custom_error_type="stop_form",
        custom_error_message="it must be a string or a list of at most 4 strings",
    ),
]


class ChatRequest(_Strict):
    """A request for one answer."""

    model: str
    """Name of the served model, as `/v1/models` lists it."""
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    """The conversation so far."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Longest answer, the stop token included. `serve.max_answer_tokens` when not set."""
    max_tokens: int | None = Field(None, ge=1)
    """The older name of `max_completion_tokens`."""
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    """0, the default, takes the most likely token each time, which is how the model was judged;
    1 samples from the model's own distribution."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability. Default 1."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """The same seed and request give the same answer. Random when not set."""
    stop: Stop | None = None
    """Text, or up to 4 texts, that end the answer; they are not part of it."""
    stream: bool | None = None
    """Send the answer token by token, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only together with `stream`."""

    @property
    def limit(self) -> int | None:
        """Longest answer that the request asks for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation as the chat renderer takes it."""
        return [message.as_turn() for message in self.messages]

    def sampling(self, max_tokens: int) -> Sampling:
        """How the answer is drawn, with at most `max_tokens` tokens."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            stop=stop,
        )


@dataclass(frozen=True)
class _Problem:
    """One thing that is wrong with a request."""

    param: str | None
    text: str
    code: str


def parse_chat(body: bytes) -> ChatRequest:
    """A checked chat request.

    Raises:
        RequestError: everything that is wrong with it; `param` and `code` are the first's.
    """
    raw = _json_object(body)
    problems = list(_refused(raw))
    known = {k: v for k, v in raw.items() if k not in REFUSED and k not in IGNORED}
    request: ChatRequest | None = None
    try:
        request = ChatRequest.model_validate(known)
    except ValidationError as error:
        found = error.errors(include_url=False)[:PROBLEMS_SHOWN]
        problems += [_problem(details) for details in found]
    if request is not None:
        problems += _contradictions(request)
    if problems or request is None:
        raise _refusal(problems)
    return request


def _json_object(body: bytes) -> dict[str, Any]:
    """The body as JSON. pydantic's parser refuses NaN, lone surrogates, bytes that are not UTF-8,
    numbers of thousands of digits, and values nested deeper than 200 levels."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(
            f"the body is not valid JSON: {error}",
            why="it must be one JSON object in UTF-8",
            fix="send it as a JSON library writes it",
            code="invalid_json",
        ) from error
    if not isinstance(value, dict):
        raise RequestError(
            f"the body is a JSON {type(value).__name__}, not an object",
            fix='send {"model": ..., "messages": [...]}',
            code="invalid_json",
        )
    if len(value) > MAX_PARAMETERS:
        raise RequestError(
            f"the body has {len(value)} parameters; at most {MAX_PARAMETERS} are read",
            fix="send only the parameters that docs/serve/reference.md lists",
            code="unknown_parameter",
        )
    return value


def _refused(raw: Mapping[str, Any]) -> list[_Problem]:
    return [
        _Problem(name, f"{name} = {_shown(raw[name])}: {rule.why}", "unsupported_parameter")
        for name, rule in REFUSED.items()
        if name in raw and raw[name] is not None and not _is_one_of(raw[name], rule.harmless)
    ]


def _is_one_of(value: object, allowed: Sequence[object]) -> bool:
    """Equal to one of them; but true is not 1, nor false 0."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)


def _problem(details: Any) -> _Problem:
    param = _param(details["loc"])
    name = str(details["loc"][-1]) if details["loc"] else "body"
    if details["type"] == "extra_forbidden":
        if len(details["loc"]) > 1:
            return _Problem(param, f"{param}: not supported here", "unsupported_parameter")
        names = [*ChatRequest.model_fields, *REFUSED, *IGNORED]
        return _Problem(
            param,
            f"{param}: unknown parameter{nearest(name[:SHOWN_CHARACTERS], names)}",
            "unknown_parameter",
        )
    if details["type"] == "missing":
        return _Problem(param, f"{param}: it is missing", "missing_required_parameter")
    message = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return _Problem(param, f"{param} = {_shown(details['input'])}: {message}", "invalid_value")


def _param(loc: Sequence[int | str]) -> str:
    """`messages[0].content[1].text`, without the tags of unions."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("string", "parts"):
            path += f".{part}" if path else part
    return path if len(path) <= SHOWN_CHARACTERS else f"{path[:SHOWN_CHARACTERS]}..."


def _contradictions(request: ChatRequest) -> list[_Problem]:
    problems = []
    if request.messages[-1].role == "assistant":
        at = f"messages[{len(request.messages) - 1}].role"
        text = f"{at} = 'assistant': the last message must be from the user or the system"
        problems.append(_Problem(at, text, "invalid_value"))
    both = (request.max_tokens, request.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        text = f"max_tokens = {both[0]} contradicts max_completion_tokens = {both[1]}; send one"
        problems.append(_Problem("max_tokens", text, "invalid_value"))
    if request.stream_options is not None and not request.stream:
        text = "stream_options: only allowed when stream is true"
        problems.append(_Problem("stream_options", text, "invalid_value"))
    return problems


def _refusal(problems: Sequence[_Problem]) -> RequestError:
    if len(problems) == 1:
        what = problems[0].text
    else:
        what = f"{len(problems)} problems in the request:\n" + listed(p.text for p in problems)
    return RequestError(
        what,
        fix="mend or leave out what is named; docs/serve/reference.md lists what is accepted",
        param=problems[0].param,
        code=problems[0].code,
    )


def _shown(value: object) -> str:
    return _BRIEF.repr(value)
