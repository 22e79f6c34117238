"""What is asked of a model and what comes back; how much may be spent on it."""

from __future__ import annotations

import hashlib
import string
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunesmith.errors import ConfigError, listed

__all__ = ["Ask", "Budget", "Engine", "Refused", "Reply", "Spent", "seed_of"]

_LETTERS = f"{string.ascii_letters} \n".encode()
_WIDE = bytes(range(0x80, 0x100))


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        id: unique within a run, and the same when the run is resumed.
        messages: the conversation to answer.
        temperature, max_answer_tokens, seed: how the answer is drawn.
        notes: what the method needs to understand the reply, as JSON values.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    temperature: float
    max_answer_tokens: int
    seed: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def most_tokens(self) -> int:
        """An upper estimate of what it costs: the prompt, and the longest answer.

        A token has 3 letters or spaces of ASCII, one digit or sign, or 2 bytes of anything else: Chinese has about
        one token a character.
        """
        said = "".join(turn["content"] for turn in self.messages).encode("utf-8", "surrogatepass")
        others = said.translate(None, _LETTERS)
        n_letters, n_signs = len(said) - len(others), len(others.translate(None, _WIDE))
        n_wide = len(others) - n_signs
        prompt = n_letters // 3 + n_signs + n_wide // 2 + 6 * len(self.messages)
        return prompt + self.max_answer_tokens


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        finish: `stop`, `length`, or what else the endpoint gave.
        tokens: prompt and answer together, as the endpoint counted them; else estimated.
        n_attempts: requests that it took.
        time: when it came, UTC, to the second.
    """

    text: str
    finish: str
    tokens: int
    n_attempts: int
    time: str


@dataclass(frozen=True)
class Refused:
    """The endpoint did not answer this request, and asking again would not help."""

    reason: str
    n_attempts: int
    time: str


class Spent(Exception):
    """A limit is reached; the message says which."""


class Engine(Protocol):
    """Something that answers. Safe for use from several threads."""

    def ask(self, ask: Ask, budget: Budget) -> Reply | Refused:
        """The answer to one request.

        Raises:
            Spent: a limit was reached before there was an answer.
            EngineError: it cannot be reached, or keeps failing.
            ConfigError: it does not let us in, or has no such model.
        """
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Endpoint and model, for provenance. No keys."""
        ...

    def close(self) -> None:
        """Give back processes. A second call does nothing."""
        ...


@dataclass
class Budget:
    """Limits on requests (each retry is one), tokens and seconds; None means no limit.

    Tokens are set aside before a request and settled after it, so that requests side by side do not
    pass the limit together. Safe for use from several threads.

    Raises:
        ConfigError: a limit is not positive.
    """

    max_requests: int | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None
    n_requests: int = 0
    n_tokens: int = 0
    clock: Callable[[], float] = time.monotonic
    stopped: threading.Event = field(default_factory=threading.Event)
    _set_aside: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        named = {
            "--max-requests": self.max_requests,
            "--max-tokens": self.max_tokens,
            "--max-seconds": self.max_seconds,
        }
        wrong = [
            f"{name} is {n}; it must be above 0"
            for name, n in named.items()
            if n is not None and not n > 0  # nan is above nothing
        ]
        if wrong:
            raise ConfigError(f"the limits cannot be kept:\n{listed(wrong)}")
        self._end = None if self.max_seconds is None else self.clock() + self.max_seconds

    @property
    def seconds_left(self) -> float | None:
        """None without a limit."""
        return None if self._end is None else max(0.0, self._end - self.clock())

    def reserve(self, ask: Ask) -> None:
        """Set aside what a request may cost.

        Raises:
            Spent: it may pass a limit.
        """
        with self._lock:
            self._refuse_late()
            expected = self.n_tokens + self._set_aside + ask.most_tokens
            if self.max_tokens is not None and expected > self.max_tokens:
                raise Spent(f"the limit of {self.max_tokens:,} tokens (--max-tokens)")
            if self.max_requests is not None and self.n_requests >= self.max_requests:
                raise Spent(f"the limit of {self.max_requests:,} requests (--max-requests)")
            self._set_aside += ask.most_tokens

    def settle(self, ask: Ask, tokens: int) -> None:
        """Replace what was set aside by what it did cost."""
        with self._lock:
            self._set_aside -= ask.most_tokens
            self.n_tokens += tokens

    def count_request(self) -> None:
        """To be called before every attempt.

        Raises:
            Spent: a limit is reached, or the run is being stopped.
        """
        with self._lock:
            self._refuse_late()
            if self.max_requests is not None and self.n_requests >= self.max_requests:
                raise Spent(f"the limit of {self.max_requests:,} requests (--max-requests)")
            self.n_requests += 1

    def pause(self, seconds: float) -> None:
        """Wait before another attempt.

        Raises:
            Spent: the time is up first, or the run is being stopped.
        """
        left = self.seconds_left
        if left is not None and left <= seconds:
            raise Spent(f"the limit of {self.max_seconds:g} s (--max-seconds)")
        if self.stopped.wait(seconds):
            raise Spent("the run is being stopped")

    def _refuse_late(self) -> None:
        if self.stopped.is_set():
            raise Spent("the run is being stopped")
        if self.seconds_left == 0:
            raise Spent(f"the limit of {self.max_seconds:g} s (--max-seconds)")


def seed_of(seed: int, ask_id: str) -> int:
    """A 31-bit seed for one request: endpoints take no larger ones."""
    digest = hashlib.sha256(f"{seed}/{ask_id}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1
