"""One answer as it grows, token by token: stop tokens, stop strings, and text that may be shown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from tunesmith.engine.types import Chunk, FinishReason, Generation

__all__ = ["HALF_CHARACTER", "Answer", "whole_characters"]

HALF_CHARACTER = "\ufffd"
"""What decoders write for bytes that are no complete UTF-8 character."""


def whole_characters(text: str) -> str:
    """The text without a character at its end whose other bytes have not come (yet)."""
    return text.rstrip(HALF_CHARACTER)


class Answer:
    """Collects an answer's tokens and says when it is complete.

    Args:
        decode: text of token ids, without control tokens.
        stop_ids: tokens that end the answer.
        stop: texts that end the answer.
        max_tokens: its longest length, the stop token included.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        stop_ids: Collection[int],
        stop: Sequence[str],
        max_tokens: int,
    ) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._decode = decode
        self._stop_ids = stop_ids
        self._stop = tuple(stop)
        self._max_tokens = max_tokens
        self._shown = 0
        self._cut: str | None = None

    def add(self, token_id: int) -> None:
        """Take the next token.

        Raises:
            ValueError: the answer is complete.
        """
        if self.finish_reason is not None:
            raise ValueError("a token after the end of the answer")
        self.token_ids.append(token_id)
        if token_id in self._stop_ids or self._meets_stop_text():
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._max_tokens:
            self.finish_reason = "length"

    @property
    def text(self) -> str:
        """All text so far, cut before a stop string, in whole characters."""
        return whole_characters(self._whole()) if self._cut is None else self._cut

    def chunk(self) -> Chunk:
        """The text that was not shown yet, without an end that may turn out to open a stop string."""
        text = self.text
        if self.finish_reason is None:
            text = text[: len(text) - self._held_back(text)]
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        return Chunk(new, len(self.token_ids), self.finish_reason)

    def generation(self, prompt_tokens: int) -> Generation:
        """The complete answer.

        Raises:
            ValueError: it is not complete.
        """
        if self.finish_reason is None:
            raise ValueError("the answer is not complete")
        return Generation(tuple(self.token_ids), self.text, self.finish_reason, prompt_tokens)

    def _whole(self) -> str:
        ids = self.token_ids
        return self._decode(ids[:-1] if ids and ids[-1] in self._stop_ids else ids)

    def _meets_stop_text(self) -> bool:
        if not self._stop:
            return False
        text = self._whole()
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self._cut = text[: min(places)]
        return bool(places)

    def _held_back(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string starts."""
        longest = max((len(stop) for stop in self._stop), default=0)
        for length in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
