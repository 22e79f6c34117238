"""The model that every form must equal: base + adapter in float32, its answers and its logits.

It is asked twice: for its own greedy answers, on which expectations are compared, and for how likely
the user's answers to the same prompts are, which is perplexity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.engine import Sampling
from tunesmith.store import Run, sha256_of_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.models.chat import ChatRenderer

__all__ = [
    "Given",
    "Reference",
    "answer_logits",
    "given_rows",
    "open_reference",
    "own_logprobs",
    "record_reference",
]

ROWS = "scratch/reference.json"
LOGITS = "scratch/reference.npy"


@dataclass(frozen=True)
class Given:
    """The user's answers to the prompts.

    Attributes:
        rows: prompt and answer of each row that has one, as token ids.
        starts: where each row's answer starts.
    """

    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(map(len, self.rows)) - sum(self.starts)


@dataclass(frozen=True)
class Reference:
    """The trained model's own greedy answers, and what it expected at each of their tokens.

    Attributes:
        given: the user's answers to the same prompts.
        given_logprob: mean log probability that the trained model gives to their tokens, in nats;
            None when no row has an answer.
        rows: prompt and answer of each row, as token ids; a stop token, if one came, is the last.
        starts: where each row's answer starts.
        logits: (positions, vocabulary) float32, of all rows' answer tokens in order: the entry for
            `row[p]` is computed from `row[:p]`.
        answer_tokens: longest answer; a shorter one ended with a stop token.
    """

    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    logits: NDArray[np.float32]
    given: Given = Given((), ())
    given_logprob: float | None = None
    answer_tokens: int = 0

    @property
    def ended(self) -> tuple[bool, ...]:
        """For each answer, whether it ended by itself."""
        return tuple(len(answer) < self.answer_tokens for answer in self.answers)

    @property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        """The answers' token ids."""
        return tuple(row[start:] for row, start in zip(self.rows, self.starts, strict=True))

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """The prompts' token ids."""
        return tuple(row[:start] for row, start in zip(self.rows, self.starts, strict=True))

    @property
    def identity(self) -> str:
        """Hash of prompts, answers and how likely the trained model finds the user's: figures that were
        measured against another reference are of no use."""
        asked = [self.rows, self.starts, self.given.rows, self.given.starts, self.given_logprob]
        return sha256_of_json(asked)

    def by_row(self) -> Iterator[NDArray[np.float32]]:
        """The logits of each row's answer, (tokens, vocabulary)."""
        position = 0
        for answer in self.answers:
            yield self.logits[position : position + len(answer)]
            position += len(answer)


def record_reference(
    model: Any,
    renderer: ChatRenderer,
    prompts: Sequence[Sequence[int]],
    given: Given,
    answer_tokens: int,
    at: Run,
    on_row: Callable[[], None],
) -> Reference:
    """Let the model answer greedily, and keep its logits on the disk below `scratch/`.

    Args:
        model: in evaluation mode and float32.
        given: the user's answers, of which the log probability is kept.
        answer_tokens: longest answer, the stop token included.
        on_row: called for each row that is done; twice a row.

    Raises:
        DataError: a prompt is longer than the model's context.
        StorageError: the disk refuses.
    """
    import numpy as np

    from tunesmith.engine.backends.transformers import TransformersBackend

    backend = TransformersBackend(model, renderer.tokenizer, stop_ids=renderer.stop_ids)
    answers = backend.generate(
        prompts, Sampling(max_tokens=answer_tokens), on_done=lambda _index: on_row()
    )
    starts = [len(prompt) for prompt in prompts]
    rows = [[*p, *answer.token_ids] for p, answer in zip(prompts, answers, strict=True)]
    positions = sum(len(answer.token_ids) for answer in answers)
    done = 0
    with at.writing(LOGITS) as temporary:
        logits: Any = None
        for block in answer_logits(model, rows, starts):
            if logits is None:
                shape = (positions, block.shape[1])
                logits = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
            logits[done : done + len(block)] = block
            done += len(block)
            on_row()
        logits.flush()
        del logits
    total = sum(
        own_logprobs(block, row[start:]).sum()
        for block, row, start in zip(
            answer_logits(model, given.rows, given.starts), given.rows, given.starts, strict=True
        )
    )
    logprob = float(total) / given.n_tokens if given.rows else None
    kept = {"rows": rows, "starts": starts, "given_rows": given.rows, "given_starts": given.starts}
    at.write_json(ROWS, kept | {"given_logprob": logprob, "answer_tokens": answer_tokens})
    return _read(at.dir)


def given_rows(
    renderer: ChatRenderer, conversations: Sequence[Sequence[Mapping[str, Any]]], longest: int
) -> Given:
    """The user's last answers, as training reads them, cut after `longest` tokens each.

    A conversation whose prompt is not how the whole one begins is left out.
    """
    rows, starts = [], []
    for messages in conversations:
        prompt = renderer.prompt_ids(messages[:-1])
        whole = renderer.render(messages)
        learned = [i for i, trained in enumerate(whole.trained) if trained and i >= len(prompt)]
        if whole.token_ids[: len(prompt)] == prompt and learned:
            rows.append(whole.token_ids[: min(learned[-1] + 1, len(prompt) + longest)])
            starts.append(len(prompt))
    return Given(tuple(rows), tuple(starts))


def own_logprobs(logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float64]:
    """Log probability of each token, (tokens,), from logits of (tokens, vocabulary)."""
    import numpy as np

    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(exact, np.array(tokens, np.int64)[:, None], axis=1)[:, 0]
    result: NDArray[np.float64] = chosen - np.log(np.exp(exact).sum(axis=1))
    return result


def open_reference(
    at: Run, prompts: Sequence[Sequence[int]], given: Given, answer_tokens: int
) -> Reference | None:
    """What an interrupted export of these prompts recorded; None when there is nothing whole.

    Args:
        answer_tokens: longest answer; answers up to another length are others.
    """
    if not (at.dir / ROWS).is_file() or not (at.dir / LOGITS).is_file():
        return None
    reference = _read(at.dir)
    recorded = json.loads((at.dir / ROWS).read_text(encoding="utf-8")).get("answer_tokens")
    same = reference.prompts == tuple(map(tuple, prompts)) and reference.given == given
    return reference if same and recorded == answer_tokens else None


def _read(folder: Path) -> Reference:
    import numpy as np

    found = json.loads((folder / ROWS).read_text(encoding="utf-8"))
    return Reference(
        tuple(map(tuple, found["rows"])),
        tuple(found["starts"]),
        np.load(folder / LOGITS, mmap_mode="r"),
        Given(tuple(map(tuple, found["given_rows"])), tuple(found["given_starts"])),
        found["given_logprob"],
        found["answer_tokens"],
    )


def answer_logits(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """Logits of each row's tokens from its start on, (tokens, vocabulary), one forward pass a row.

    Rows are not batched: without padding the result depends on the row alone.
    """
    import torch

    for row, start in zip(rows, starts, strict=True):
        inputs = torch.tensor([list(row[:-1])])
        with torch.inference_mode():
            out = model(input_ids=inputs, use_cache=False, logits_to_keep=len(row) - start)
        yield out.logits[0].float().numpy()
