"""Any endpoint that speaks the OpenAI protocol's chat completions."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from tunesmith.data.grow.ask import Ask, Budget, Refused, Reply, Spent
from tunesmith.errors import ConfigError, EngineError

__all__ = ["Endpoint"]

MAX_ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
MAX_REPLY_BYTES = 16 * 2**20
_NEW_LIMIT = "max_completion_tokens"
"""What some endpoints want `max_tokens` to be called; they say so when they refuse it."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WORTH_ANOTHER_TRY = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another place, and the question not at all."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class _Again:
    """An attempt that failed in a way that may pass."""

    reason: str
    after_seconds: float | None = None


class Endpoint:
    """A chat endpoint over HTTP. Safe for use from several threads.

    After the answers of `_WORTH_ANOTHER_TRY`, connections that break, and bodies that are cut off a request is
    tried again, up to six times in all, after 1, 2, 4 ... seconds (with jitter), or after what
    `Retry-After` says, at most 60.

    Args:
        url: up to and including `/v1`; without a user, a password or a query.
        model: its name there.
        key_variable: environment variable that holds the key; it need not be set for servers that
            want none. The key goes into the Authorization header and nowhere else.
        timeout_seconds: longest silence.
        first_pause_seconds: before the second attempt.

    Raises:
        ConfigError: the URL is none, or holds a secret.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        timeout_seconds: float = 120.0,
        first_pause_seconds: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        _check_url(url)
        self._url = url.rstrip("/")
        self._model = model
        self._key_variable = key_variable
        self._key = os.environ.get(key_variable, "").strip()
        if any(not "!" <= letter <= "~" for letter in self._key):
            raise ConfigError(
                f"the key in ${key_variable} holds characters that no header may hold",
                fix=f"set {key_variable} again, without spaces and line ends",
            )
        self._timeout = timeout_seconds
        self._first_pause = first_pause_seconds
        self._odd: frozenset[str] = frozenset()
        handlers: list[Any] = [_NoRedirects]
        if urlsplit(url).hostname in _LOOPBACK:
            # A proxy that the environment names could not reach this machine's own servers.
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    @property
    def about(self) -> Mapping[str, Any]:
        """URL and model."""
        return {"endpoint": self._url, "model": self._model}

    def close(self) -> None:
        """Nothing to give back: each request has a connection of its own."""

    def ask(self, ask: Ask, budget: Budget) -> Reply | Refused:
        """See `Engine.ask`."""
        last = ""
        try:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                budget.count_request()
                found = self._attempt(ask, budget, attempt)
                if not isinstance(found, _Again):
                    return found
                last = found.reason
                if attempt < MAX_ATTEMPTS:
                    pause = self._first_pause * 2 ** (attempt - 1) * (1 + random.random() / 4)
                    asked_for = found.after_seconds
                    wanted = pause if asked_for is None else asked_for
                    budget.pause(min(LONGEST_PAUSE_SECONDS, wanted))
        except Spent as spent:
            # A limit that ends the tries of one request must not hide why they were needed.
            raise Spent(f"{spent}; the last try failed: {last}" if last else str(spent)) from spent
        raise EngineError(
            f"{self._url} failed {MAX_ATTEMPTS} times in a row: {last}",
            fix="look at the server's state; what was made is kept, and the same command goes on",
        )

    def _attempt(self, ask: Ask, budget: Budget, attempt: int) -> Reply | Refused | _Again:
        left = budget.seconds_left
        timeout = self._timeout if left is None else max(1.0, min(self._timeout, left))
        try:
            with self._opener.open(self._request(ask), timeout=timeout) as response:
                body = response.read(MAX_REPLY_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                return self._failed(error, attempt)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            return _Again(self._safe(f"{type(error).__name__}: {reason}"))
        if len(body) > MAX_REPLY_BYTES:
            return _Again(f"the reply is larger than {MAX_REPLY_BYTES // 2**20} MiB")
        return self._reply(body, ask, attempt)

    def _request(self, ask: Ask) -> urllib.request.Request:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [dict(turn) for turn in ask.messages],
            "temperature": ask.temperature,
        }
        body[_NEW_LIMIT if _NEW_LIMIT in self._odd else "max_tokens"] = ask.max_answer_tokens
        if "seed" not in self._odd:
            body["seed"] = ask.seed
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = json.dumps(body).encode()
        return urllib.request.Request(f"{self._url}/chat/completions", data, headers, method="POST")

    def _failed(self, error: urllib.error.HTTPError, attempt: int) -> Refused | _Again:
        said = self._safe(_said(error))
        reason = f"HTTP {error.code}: {said}"
        if error.code in _WORTH_ANOTHER_TRY:
            return _Again(reason, _retry_after(error.headers.get("Retry-After")))
        if error.code == 400 and (odd := _odd_field(said)) and odd not in self._odd:
            self._odd |= {odd}
            return _Again(reason, 0.0)
        if error.code in (401, 403):
            raise ConfigError(
                f"{self._url} does not let us in: {reason}",
                why=f"${self._key_variable} is {'not accepted' if self._key else 'not set'}",
                fix=f"export {self._key_variable}=..., or name another variable with --key-env",
            )
        if error.code in (404, 405) or 300 <= error.code < 400:
            raise ConfigError(
                f"{self._url}/chat/completions is not there, or has no model {self._model!r}: "
                f"{reason}",
                fix="give the URL up to and including /v1, and a model that the server lists",
            )
        return Refused(reason, attempt, _now())

    def _reply(self, body: bytes, ask: Ask, attempt: int) -> Reply | _Again:
        try:
            value = json.loads(body)
            choice = value["choices"][0]
            text, finish = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            shown = self._safe(body[:200].decode("utf-8", "replace"))
            return _Again(f"the reply is no chat completion: {shown!r}")
        if text is None:
            text = ""
        if not isinstance(text, str):
            return _Again(f"the reply's content is {type(text).__name__}, not text")
        usage = value.get("usage")
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        if isinstance(total, bool) or not isinstance(total, int) or total < 0:
            total = ask.most_tokens - ask.max_answer_tokens + len(text) // 3 + 1
        return Reply(text, str(finish or "unknown"), total, attempt, _now())

    def _safe(self, text: str) -> str:
        """Some servers repeat the key that they refuse."""
        return text.replace(self._key, "[key]") if self._key else text


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        port_is_wrong = parts.port is not None and not parts.port
    except ValueError:
        parts, port_is_wrong = urlsplit(""), True
    if port_is_wrong or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"no endpoint is at {url!r}", fix="give a URL such as http://127.0.0.1:8000/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"the URL of {parts.hostname} holds a user, a password or a query",
            why="it is written into every row's origin, and a secret would be, too",
            fix="give the URL without them, and the key in an environment variable (--key-env)",
        )


def _said(error: urllib.error.HTTPError) -> str:
    """The error's message, on one line."""
    try:
        body = error.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        value = json.loads(body)
        inner = value.get("error", value) if isinstance(value, dict) else value
        message = inner.get("message", inner) if isinstance(inner, dict) else inner
    except (ValueError, RecursionError):
        message = body
    return " ".join(str(message).split())[:300] or str(error.reason)


def _odd_field(said: str) -> str:
    """The field of our request that an endpoint does not take, when it can be said otherwise."""
    if _NEW_LIMIT in said:
        return _NEW_LIMIT
    is_about_seed = re.search(r"\bseed\b", said) and re.search(
        r"(?i)unsupported|not supported|unknown|unrecognized|unexpected|extra|not permitted", said
    )
    return "seed" if is_about_seed else ""


def _retry_after(value: str | None) -> float | None:
    """Seconds from the header `Retry-After` (RFC 9110, 10.2.3): a number or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
