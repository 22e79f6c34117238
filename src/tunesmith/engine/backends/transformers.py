"""A Hugging Face causal language model, with or without a PEFT adapter, in this process.

Our own decoding loop: a finished row's place is taken by the next prompt (see `slots`), prompts
that start alike are read once, and every row draws from a generator of its own, so that the company
a prompt is in changes nothing but rounding.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import DynamicCache

from tunesmith.engine import sampling_seeds
from tunesmith.engine.answer import Answer
from tunesmith.engine.draw import draw
from tunesmith.engine.prompts import check_prompts, check_rows
from tunesmith.engine.slots import SlotCache, common_length, fits_slots, take_group
from tunesmith.engine.types import Chunk, Generation, NextTokenLogprobs, Sampling

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

__all__ = ["TransformersBackend"]

DEFAULT_CONTEXT_TOKENS = 2_048
MOST_CACHE_BYTES = 4 << 30
"""Keys and values of a batch; also at most a third of the memory that is free."""
SUFFIX_TOKENS = 8
"""Prompts read together are padded to a multiple of this: fewer shapes, so fewer kernels to build."""
ALSO_STOP = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>")
"""Where a tokenizer has these as control tokens, llama.cpp ends an answer at them; so do we."""


@dataclass
class _Row:
    """A prompt that is being answered."""

    index: int
    prompt: tuple[int, ...]
    answer: Answer
    random: random.Random

    @property
    def position(self) -> int:
        """Where the token goes that is read next: the newest one."""
        return len(self.prompt) + len(self.answer.token_ids) - 1

    @property
    def newest(self) -> int:
        return self.answer.token_ids[-1] if self.answer.token_ids else self.prompt[-1]


class TransformersBackend:
    """Answers with `model` as it stands at the moment of the call.

    To ask the base of a PEFT model, call inside `with model.disable_adapter():`.

    Args:
        model: a causal language model; its device and number format are kept.
        tokenizer: its tokenizer.
        stop_ids: tokens that end an answer, from the chat renderer.
        batch_rows: prompts that are decoded side by side; fewer where memory is short.
    """

    name = "transformers"

    def __init__(
        self, model: Any, tokenizer: Any, *, stop_ids: Sequence[int], batch_rows: int = 32
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_rows = batch_rows
        self._config = model.config.get_text_config()
        self.context_tokens = int(
            getattr(self._config, "max_position_embeddings", None) or DEFAULT_CONTEXT_TOKENS
        )
        added = tokenizer.get_added_vocab()
        self.stop_ids = frozenset(
            [*map(int, stop_ids), *(added[name] for name in ALSO_STOP if name in added)]
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """See `Backend.generate`."""
        check_prompts(prompts, self.context_tokens)
        rows = self._rows(prompts, sampling)
        for row in self._decode(rows, sampling):
            if on_done is not None and row.answer.finish_reason is not None:
                on_done(row.index)
        return [row.answer.generation(len(row.prompt)) for row in rows]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[Chunk]:
        """See `Backend.stream`."""
        check_prompts([prompt], self.context_tokens)
        for row in self._decode(self._rows([prompt], sampling), sampling):
            chunk = row.answer.chunk()
            if chunk.text or chunk.finish_reason is not None:
                yield chunk

    def next_token_logprobs(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int], *, top: int = 256
    ) -> list[NextTokenLogprobs]:
        """See `Backend.next_token_logprobs`."""
        results = []
        for logprobs, _ in self._logprobs(rows, starts):
            best, ids = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
            results.append(NextTokenLogprobs(ids.cpu().numpy(), best.cpu().numpy()))
        return results

    def answer_logprobs(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> list[NDArray[np.float32]]:
        """Log-probability of each row's own tokens from its start on, in nats.

        Args:
            rows: token ids, prompt and answer together.
            starts: index of each row's first answer token, at least 1.

        Returns:
            One array of `len(row) - start` values a row.

        Raises:
            DataError: a start outside its row, or a row longer than the context.
        """
        return [
            logprobs.gather(-1, tokens[:, None])[:, 0].cpu().numpy()
            for logprobs, tokens in self._logprobs(rows, starts)
        ]

    def close(self) -> None:
        """Nothing to give back: the model is the caller's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- decoding --------------------------------------------------------------------------------

    def _rows(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[_Row]:
        def row(index: int, seed: int) -> _Row:
            prompt = tuple(prompts[index])
            answer = Answer(
                self._text,
                stop_ids=self.stop_ids,
                stop=sampling.stop,
                max_tokens=min(sampling.max_tokens, self.context_tokens - len(prompt)),
            )
            return _Row(index, prompt, answer, random.Random(seed))

        return [
            row(index, seed) for index, seed in enumerate(sampling_seeds(prompts, sampling.seed))
        ]

    def _text(self, token_ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _decode(self, rows: Sequence[_Row], sampling: Sampling) -> Iterator[_Row]:
        """Answer all rows; yields a row each time it has a new token."""
        way = self._decode_in_slots if fits_slots(self.model.config) else self._decode_one_by_one
        with _evaluating(self.model):
            yield from way(rows, sampling)

    def _decode_in_slots(self, rows: Sequence[_Row], sampling: Sampling) -> Iterator[_Row]:
        # Neighbours in this order share the longest beginnings, so those are read once.
        waiting = deque(sorted(rows, key=lambda row: row.prompt))
        cache = self._slot_cache(rows, sampling)
        reader = _PromptReader(self.model, cache)
        active: list[_Row] = []
        while waiting or active:
            # A few free places are filled at once: reading one prompt alone takes about as long.
            if waiting and len(active) <= cache.slots - max(1, cache.slots // 4):
                active += reader.admit(waiting, len(active))
            self._step(active, cache, sampling)
            yield from active
            _drop_finished(active, cache)

    def _slot_cache(self, rows: Sequence[_Row], sampling: Sampling) -> SlotCache:
        longest = max((len(row.prompt) for row in rows), default=0) + sampling.max_tokens
        capacity = min(longest, self.context_tokens)
        free = min(MOST_CACHE_BYTES, psutil.virtual_memory().available // 3)
        fits = free // (capacity * self._cache_bytes_a_token())
        return SlotCache(int(max(1, min(self.batch_rows, len(rows), fits))), capacity)

    def _cache_bytes_a_token(self) -> int:
        config = self._config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * self.model.dtype.itemsize)

    def _step(self, active: Sequence[_Row], cache: SlotCache, sampling: Sampling) -> None:
        """One token for each active row; row i lies in slot i."""
        rows = _batch_shape(len(active), cache.slots)
        unused = [0] * (rows - len(active))
        device = self.model.device
        with torch.inference_mode():
            ids = torch.tensor([row.newest for row in active] + unused, device=device)
            positions = torch.tensor([row.position for row in active] + unused, device=device)
            logits = self.model(
                input_ids=ids[:, None],
                attention_mask=cache.decode(positions),
                position_ids=positions[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[: len(active), -1]
            drawn = draw(logits, sampling, [row.random.random() for row in active]).tolist()
        for row, token in zip(active, drawn, strict=True):
            row.answer.add(token)

    def _decode_one_by_one(self, rows: Sequence[_Row], sampling: Sampling) -> Iterator[_Row]:
        """For architectures whose cache is not one key and value a token: the library's own."""
        for row in rows:
            cache = DynamicCache(config=self._config)
            ids: tuple[int, ...] = row.prompt
            while row.answer.finish_reason is None:
                with torch.inference_mode():
                    logits = self.model(
                        input_ids=torch.tensor([ids], device=self.model.device),
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=1,
                    ).logits[:, -1]
                    token = int(draw(logits, sampling, [row.random.random()])[0])
                row.answer.add(token)
                ids = (token,)
                yield row

    # -- scoring ---------------------------------------------------------------------------------

    def _logprobs(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each row: (n, vocabulary) float32 log-probabilities and the (n,) tokens that came."""
        check_rows(rows, starts, self.context_tokens)
        device = self.model.device
        with _evaluating(self.model):
            for row, start in zip(rows, starts, strict=True):
                with torch.inference_mode():
                    logits = self.model(
                        input_ids=torch.tensor([list(row[:-1])], device=device),
                        use_cache=False,
                        logits_to_keep=torch.arange(start - 1, len(row) - 1, device=device),
                    ).logits[0]
                    result = logits.float().log_softmax(-1)
                yield result, torch.tensor(list(row[start:]), device=device)


class _PromptReader:
    """Reads prompts into free slots, and what neighbouring prompts share only once.

    All but a prompt's last token is read here; the last one is read by the first decoding step,
    which so gives the logits of the first answer token.
    """

    def __init__(self, model: Any, cache: SlotCache) -> None:
        self._model = model
        self._cache = cache
        self._prefix_ids: tuple[int, ...] = ()
        self._prefix = DynamicCache()

    def admit(self, waiting: deque[_Row], first: int) -> list[_Row]:
        """Take prompts until the slots from `first` on are full; row i of them lies in `first + i`."""
        admitted: list[_Row] = []
        while waiting and first + len(admitted) < self._cache.slots:
            free = self._cache.slots - first - len(admitted)
            heads = [row.prompt[:-1] for row, _ in zip(waiting, range(free), strict=False)]
            count, shared = take_group(heads, free)
            if count == 1:
                shared = common_length(heads[0], self._prefix_ids)
            with torch.inference_mode():
                self._read(heads[:count], shared, first + len(admitted))
            admitted += [waiting.popleft() for _ in range(count)]
        return admitted

    def _read(self, heads: Sequence[tuple[int, ...]], shared: int, first: int) -> None:
        self._read_prefix(heads[0][:shared])
        self._cache.adopt(first, len(heads), self._prefix)
        longest = max(len(head) for head in heads) - shared
        if longest == 0:
            return
        room = self._cache.capacity - shared
        tokens = min(-(-longest // SUFFIX_TOKENS) * SUFFIX_TOKENS, room)
        # Padding stands on the right: no earlier token sees it, and decoding overwrites it.
        ids = [[*head[shared:], *[0] * (tokens + shared - len(head))] for head in heads]
        device = self._model.device
        mask = self._cache.prefill(first, len(heads), shared, tokens).to(device)
        self._model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=mask,
            position_ids=torch.arange(shared, shared + tokens, device=device)[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def _read_prefix(self, ids: tuple[int, ...]) -> None:
        """Make the kept prefix equal `ids`, reading only what it lacks."""
        known = common_length(ids, self._prefix_ids)
        if known == 0:
            self._prefix = DynamicCache()
        elif known < len(self._prefix_ids):
            self._prefix.crop(known - len(self._prefix_ids))
        self._prefix_ids = ids
        if known < len(ids):
            device = self._model.device
            self._model(
                input_ids=torch.tensor([ids[known:]], device=device),
                past_key_values=self._prefix,
                use_cache=True,
                logits_to_keep=1,
            )


def _drop_finished(active: list[_Row], cache: SlotCache) -> None:
    """Fill the place of each finished row with the last one, so that active rows stay together."""
    place = 0
    while place < len(active):
        if active[place].answer.finish_reason is None:
            place += 1
            continue
        last = active.pop()
        if place < len(active):
            active[place] = last
            cache.move(len(active), place, last.position)


def _batch_shape(rows: int, slots: int) -> int:
    """Rows of a pass for so many active ones: few shapes, so few kernels to build."""
    return rows if rows <= 4 else min(-(-rows // 4) * 4, slots)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """No dropout meanwhile."""
    training = bool(model.training)
    model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
