"""The model that every form must equal: base + adapter in float32, its answers and its logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.engine import Sampling
from tunesmith.store import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.models.chat import ChatRenderer

__all__ = ["Reference", "answer_logits", "open_reference", "record_reference"]

ROWS = "scratch/reference.json"
LOGITS = "scratch/reference.npy"


@dataclass(frozen=True)
class Reference:
    """The trained model's own greedy answers, and what it expected at each of their tokens.

    Attributes:
        rows: prompt and answer of each row, as token ids; a stop token, if one came, is the last.
        starts: where each row's answer starts.
        logits: (positions, vocabulary) float32, of all rows' answer tokens in order: the entry for
            `row[p]` is computed from `row[:p]`.
    """

    rows: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    logits: NDArray[np.float32]

    @property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        """The answers' token ids."""
        return tuple(row[start:] for row, start in zip(self.rows, self.starts, strict=True))

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """The prompts' token ids."""
        return tuple(row[:start] for row, start in zip(self.rows, self.starts, strict=True))

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
    answer_tokens: int,
    at: Run,
    on_row: Callable[[], None],
) -> Reference:
    """Let the model answer greedily, and keep its logits on the disk below `scratch/`.

    Args:
        model: in evaluation mode and float32.
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
    at.write_json(ROWS, {"rows": rows, "starts": starts})
    return _read(at.dir)


def open_reference(at: Run, prompts: Sequence[Sequence[int]]) -> Reference | None:
    """What an interrupted export of these prompts recorded; None when there is nothing whole."""
    if not (at.dir / ROWS).is_file() or not (at.dir / LOGITS).is_file():
        return None
    reference = _read(at.dir)
    return reference if reference.prompts == tuple(map(tuple, prompts)) else None


def _read(folder: Path) -> Reference:
    import numpy as np

    found = json.loads((folder / ROWS).read_text(encoding="utf-8"))
    return Reference(
        tuple(map(tuple, found["rows"])),
        tuple(found["starts"]),
        np.load(folder / LOGITS, mmap_mode="r"),
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
