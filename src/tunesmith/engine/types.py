"""What goes into a backend and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self

from tunesmith.errors import ConfigError, listed

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Backend", "Chunk", "FinishReason", "Generation", "NextTokenLogprobs", "Sampling"]

FinishReason = Literal["stop", "length"]
"""`stop`: a stop token or a stop string came. `length`: `max_tokens` or the context was used up."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_tokens: longest answer, the stop token included.
        temperature: 0 takes the most likely token; 1 samples from the model's own distribution.
        top_p: keep the most likely tokens that together have at least this probability.
        top_k: keep this many most likely tokens; 0 keeps all. Applied before `top_p`.
        seed: the same seed and prompt give the same answer, in any batch (see `sampling_seeds`).
        stop: texts that end the answer; they are not part of its text.

    Raises:
        ConfigError: a value is out of its range; all such values are named.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (self.max_tokens < 1, f"max_tokens is {self.max_tokens}; it must be at least 1"),
                (
                    not 0 <= self.temperature <= 100,
                    f"temperature is {self.temperature}; it must lie in 0..100",
                ),
                (not 0 < self.top_p <= 1, f"top_p is {self.top_p}; it must be above 0, at most 1"),
                (self.top_k < 0, f"top_k is {self.top_k}; it must not be negative"),
                ("" in self.stop, "stop holds an empty text, which would end every answer"),
            )
            if wrong
        ]
        if problems:
            raise ConfigError(f"sampling cannot be done as asked:\n{listed(problems)}")


@dataclass(frozen=True)
class Generation:
    """A whole answer.

    Attributes:
        token_ids: what the model generated; a stop token, if one came, is the last.
        text: its text, without the stop token, the stop string, and a character cut in half.
        finish_reason: see `FinishReason`.
        prompt_tokens: length of the prompt.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer. The texts of all chunks together are `Generation.text`.

    Attributes:
        text: whole characters; empty in the last chunk when nothing was held back.
        answer_tokens: tokens generated so far, the stop token included.
        finish_reason: set in the last chunk only.
    """

    text: str
    answer_tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class NextTokenLogprobs:
    """The most likely next tokens at consecutive positions of one row, before any sampling setting.

    Attributes:
        token_ids: (positions, top) int64, most likely first.
        logprobs: (positions, top) float32, natural logarithms of the softmax over all tokens.
            llama.cpp sums the softmax in float32: its probabilities add up to 1 within 2e-4.
    """

    token_ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]


class Backend(Protocol):
    """An inference engine with one model in it. Not safe for use from several threads at once,
    unless the class says so."""

    name: str
    context_tokens: int
    """Longest prompt and answer together."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """One answer a prompt, in the prompts' order.

        Args:
            prompts: token ids; none may be empty.
            sampling: for all of them; each gets its own seed by `sampling_seeds`.
            on_done: called with the index of each prompt as soon as its answer is complete.

        Raises:
            DataError: prompts that are empty or leave no room for an answer; all are named.
            EngineError: the engine failed.
        """
        ...

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[Chunk]:
        """The same answer as `generate([prompt], sampling)`, piece by piece."""
        ...

    def next_token_logprobs(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int], *, top: int = 256
    ) -> list[NextTokenLogprobs]:
        """What the model expects at each position of given rows (teacher forcing).

        Args:
            rows: token ids, prompt and answer together.
            starts: index of each row's first position to report, at least 1; the entry for
                position p is the distribution of `row[p]` given `row[:p]`, up to the row's end.
            top: how many most likely tokens to report; at most the vocabulary's size.

        Raises:
            DataError: a start outside its row, or a row longer than the context.
            EngineError: the engine failed.
        """
        ...

    def close(self) -> None:
        """Give back processes and memory. A second call does nothing."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
