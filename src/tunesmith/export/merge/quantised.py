"""What becomes of an adapter that was trained on a quantised base and is put on the original one."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TunesmithError
from tunesmith.export.reference import answer_logits
from tunesmith.models.adapters import put_adapter
from tunesmith.models.chat import ChatRenderer, turns_of
from tunesmith.models.load import BaseModel, load_model
from tunesmith.store import Artifact, Parent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BaseEffect", "asked_rows", "quantised_base_effect"]

ROWS = 8
LONGEST = 512
"""Tokens of a row; longer rows are left out, as they cost time and tell no more."""
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Count from one to five.",
    "Translate to German: good morning.",
)
"""Asked when the training rows are not there any more."""
ANSWER = "I can help with that. Here is what I know about it."


@dataclass(frozen=True)
class BaseEffect:
    """The adapter on the base in its original precision against the adapter on the quantised base.

    Attributes:
        kind: how the base was quantised, such as "nf4".
        rows, positions: rows, and answer tokens in them, at which both were asked.
        of: which rows: "test.jsonl", or "questions" that come with tunesmith.
        mean_kl_nats: KL(quantised || original), averaged over positions.
        max_abs_dlogit: largest difference of one logit.
        greedy_agreement: share of positions with the same most likely token.
        nats_on_original, nats_on_quantised: mean loss of the rows' own answers.
    """

    kind: str
    block: int
    double_quant: bool
    rows: int
    positions: int
    of: str
    mean_kl_nats: float
    max_kl_nats: float
    max_abs_dlogit: float
    greedy_agreement: float
    nats_on_original: float
    nats_on_quantised: float

    def as_dict(self) -> dict[str, Any]:
        """For facts and certificates."""
        return asdict(self)

    @property
    def told(self) -> str:
        """One line for people."""
        return (
            f"trained on a base in {self.kind}, now on the original one: mean KL {self.mean_kl_nats:.3g} "
            f"nats, same next token at {self.greedy_agreement:.1%} of {self.positions} positions, loss "
            f"{self.nats_on_quantised:.3f} -> {self.nats_on_original:.3f} nats"
        )


def asked_rows(
    parents: Sequence[Parent], renderer: ChatRenderer
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...], str]:
    """Rows as token ids, where each one's answer starts, and where the rows come from.

    They are the first rows of the sealed dataset that a run was trained on, while it is there
    unchanged; else a few questions of our own.

    Args:
        parents: of the run.
    """
    for parent in parents:
        if parent.kind == "data":
            found = _dataset_rows(parent)
            rows, starts = _rendered(found[0], renderer) if found else ((), ())
            if rows and found:
                return rows, starts, found[1]
    turns = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWER}]
        for question in QUESTIONS
    ]
    return (*_rendered(turns, renderer), "questions")


def _dataset_rows(parent: Parent) -> tuple[list[list[Mapping[str, Any]]], str] | None:
    try:
        dataset = Artifact.open(parent.path, "data")
        if dataset.sha256 != parent.sha256:
            return None
        for name in ("test.jsonl", "validation.jsonl"):
            if name in dataset.files:
                text = dataset.path(name).read_text(encoding="utf-8")
                lines = [line for line in text.split("\n") if line.strip()][: 4 * ROWS]
                if lines:
                    return [turns_of(json.loads(line)) for line in lines], name
    except TunesmithError:
        return None  # It was moved or changed: then there are the questions of our own.
    return None


def _rendered(
    conversations: Sequence[Sequence[Mapping[str, Any]]], renderer: ChatRenderer
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    starts: list[int] = []
    for turns in conversations:
        found = renderer.render(turns)
        if True in found.trained and len(found.token_ids) <= LONGEST and len(rows) < ROWS:
            rows.append(found.token_ids)
            starts.append(found.trained.index(True))
    return tuple(rows), tuple(starts)


def quantised_base_effect(
    base: BaseModel,
    adapter: Path,
    quantised: Mapping[str, Any],
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    of: str = "test.jsonl",
) -> BaseEffect:
    """Ask an adapter the same rows on the original base and on the base it was trained on, both in fp32.

    One model is in memory at a time.

    Args:
        base: in its original precision.
        adapter: folder in PEFT's format.
        quantised: the run's fact `quantised_base`.
        rows: token ids, prompt and answer.
        starts: where each answer starts.
        of: where the rows come from.

    Raises:
        ModelError: base or adapter cannot be loaded, or the base not be quantised.
        ValueError: no rows, or a way of quantising that is not known here.
    """
    import torch

    from tunesmith.models.quantised import Nf4Format, load_nf4

    if quantised["kind"] != "nf4" or not rows:
        raise ValueError(f"{len(rows)} rows on a base in {quantised['kind']!r}")
    form = Nf4Format(int(quantised["block"]), bool(quantised["double_quant"]))
    model = put_adapter(load_model(base, torch.float32), adapter)
    original = list(answer_logits(model, rows, starts))
    del model
    gc.collect()
    model = put_adapter(load_nf4(base, torch.float32, form), adapter)
    answers = [row[start:] for row, start in zip(rows, starts, strict=True)]
    pairs = zip(answer_logits(model, rows, starts), original, answers, strict=True)
    parts = [_compared(*pair) for pair in pairs]
    return _summed(quantised, parts, len(rows), of)


def _compared(
    quantised: NDArray[np.float32], original: NDArray[np.float32], answer: Sequence[int]
) -> NDArray[np.float64]:
    """(positions, 5): KL, largest difference of a logit, same best token, and the two losses."""
    import numpy as np

    p, q = _log_softmax(quantised), _log_softmax(original)
    at, tokens = np.arange(len(answer)), np.asarray(answer)
    return np.stack(
        [
            (np.exp(p) * (p - q)).sum(axis=1),
            np.abs(quantised - original).max(axis=1),
            (quantised.argmax(axis=1) == original.argmax(axis=1)).astype(np.float64),
            -q[at, tokens],
            -p[at, tokens],
        ],
        axis=1,
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _summed(
    quantised: Mapping[str, Any], parts: Sequence[NDArray[np.float64]], rows: int, of: str
) -> BaseEffect:
    import numpy as np

    table = np.concatenate(list(parts))
    mean, most = table.mean(axis=0), table.max(axis=0)
    return BaseEffect(
        kind=str(quantised["kind"]),
        block=int(quantised["block"]),
        double_quant=bool(quantised["double_quant"]),
        rows=rows,
        positions=len(table),
        of=of,
        mean_kl_nats=max(0.0, float(mean[0])),
        max_kl_nats=max(0.0, float(most[0])),
        max_abs_dlogit=float(most[1]),
        greedy_agreement=float(mean[2]),
        nats_on_original=float(mean[3]),
        nats_on_quantised=float(mean[4]),
    )
