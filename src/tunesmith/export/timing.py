"""Load one form in a process of its own, time it, and let it answer: `python -m tunesmith.export.timing SPEC`.

A process a form, so that memory is the form's own and nothing is warm from another. Prints nothing;
what it measured is written beside the specification.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import Form, ModelConfig
from tunesmith.errors import TunesmithError
from tunesmith.export.forms import KINDS
from tunesmith.store import write_atomically
from tunesmith.telemetry import peak_rss_bytes

if TYPE_CHECKING:
    from tunesmith.engine import Backend

__all__ = ["Spec", "Timing", "main"]

TIMED_PROMPTS = 8
"""Prompts that are asked one at a time, for the latency."""
_ANSWERS_A_CHUNK = 16


@dataclass(frozen=True)
class Spec:
    """What a child is to do.

    Attributes:
        form: which.
        place: its file or folder.
        tokenizer: folder of the bundle's tokenizer.
        base: the recipe's model section, or the GGUF file in its place, for forms that need the base.
        prompts: line -> token ids.
        max_tokens: longest answer.
        result: file to write.
        versions: of what computes; figures of others are not used again.
    """

    form: Form
    place: str
    tokenizer: str
    base: Mapping[str, Any]
    prompts: Mapping[int, Sequence[int]]
    max_tokens: int
    result: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Timing:
    """What a form did. Seconds of wall clock; one request at a time unless said otherwise.

    Attributes:
        load_seconds: from the opening of its files to ready, packages imported before.
        first_token_seconds: median over the timed prompts after one that warms up; llama.cpp does not
            read again what a prompt shares with the one before.
        tokens_per_second: of the answers after their first token.
        peak_rss_bytes: largest resident memory of the process that computes.
        answers_seconds: all prompts, as many side by side as the engine likes.
        answers: line -> text.
    """

    load_seconds: float
    first_token_seconds: float
    tokens_per_second: float | None
    peak_rss_bytes: int
    answers_seconds: float
    engine: str
    answers: Mapping[int, str]


def main(path: Path) -> None:
    """Do what the specification says; what a user can mend is told on stderr, without a traceback."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    spec = Spec(**raw | {"prompts": {int(line): ids for line, ids in raw["prompts"].items()}})
    try:
        timing = _timed(spec)
    except TunesmithError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    write_atomically(Path(spec.result), json.dumps(asdict(timing)))


def _timed(spec: Spec) -> Timing:
    from tunesmith.engine import Sampling
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_tokenizer

    kind, sampling = KINDS[spec.form], Sampling(max_tokens=spec.max_tokens)
    renderer = ChatRenderer(load_tokenizer(Path(spec.tokenizer)))
    opener = kind.opener()
    context = max(map(len, spec.prompts.values())) + spec.max_tokens
    began = time.monotonic()
    backend = opener(Path(spec.place), ModelConfig(**spec.base), renderer, context)
    load_seconds = time.monotonic() - began
    with backend:
        firsts, rate = _latency(backend, list(spec.prompts.values()), sampling)
        began = time.monotonic()
        answers = _answers(backend, spec.prompts, sampling)
        answers_seconds = time.monotonic() - began
        peak = _peak(backend)
    return Timing(
        load_seconds=round(load_seconds, 4),
        first_token_seconds=round(statistics.median(firsts), 5),
        tokens_per_second=None if rate is None else round(rate, 2),
        peak_rss_bytes=peak,
        answers_seconds=round(answers_seconds, 3),
        engine=kind.engine(),
        answers=answers,
    )


def _latency(
    backend: Backend, prompts: Sequence[Sequence[int]], sampling: Any
) -> tuple[list[float], float | None]:
    """Seconds to each first token, and tokens a second after it; None when no answer has two."""
    step = max(1, len(prompts) // TIMED_PROMPTS)
    chosen = prompts[::step][:TIMED_PROMPTS]
    firsts, seconds, tokens = [], 0.0, 0
    for prompt in [chosen[-1], *chosen]:
        began = time.monotonic()
        first = 0.0
        last = 0
        for chunk in backend.stream(prompt, sampling):
            first = first or time.monotonic()
            last = chunk.answer_tokens
        firsts.append(first - began)
        if last > 1:
            seconds += time.monotonic() - first
            tokens += last - 1
    # A first chunk may hold more than one token where a character needs several: the rate is then
    # a little high, for all forms alike.
    return firsts[1:], tokens / seconds if tokens and seconds > 0 else None


def _answers(
    backend: Backend, prompts: Mapping[int, Sequence[int]], sampling: Any
) -> dict[int, str]:
    """All answers; prompts that start alike are asked together. A line on stdout for each chunk."""
    order = sorted(prompts, key=lambda line: tuple(prompts[line]))
    answers: dict[int, str] = {}
    for first in range(0, len(order), _ANSWERS_A_CHUNK):
        lines = order[first : first + _ANSWERS_A_CHUNK]
        found = backend.generate([prompts[line] for line in lines], sampling)
        answers |= {line: answer.text for line, answer in zip(lines, found, strict=True)}
        sys.stdout.write(f"{len(answers)}\n")
        sys.stdout.flush()
    return answers


def _peak(backend: Backend) -> int:
    """Largest resident memory of the process with the model: llama.cpp's child, or this one."""
    child = getattr(backend, "pid", None)
    return peak_rss_bytes(child) if child else peak_rss_bytes()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
