"""Answers of a model to all rows, kept as they come so that an interrupted evaluation goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunesmith.engine import Backend, Generation, Sampling
from tunesmith.errors import DataError, listed
from tunesmith.evaluate.result import Answer
from tunesmith.store import storage_errors
from tunesmith.telemetry import progress

__all__ = ["AnswerLog", "Prompt", "answer_all"]


@dataclass(frozen=True)
class Prompt:
    """A row's prompt as tokens; `line` names the row."""

    line: int
    token_ids: tuple[int, ...]


class AnswerLog:
    """A file of answers, one JSON object a line, appended to while they come.

    Args:
        path: the file. A last line that was cut off by a crash is dropped.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.answers: dict[int, Answer] = {}
        if path.is_file():
            with storage_errors(path):
                self._read_back()

    def _read_back(self) -> None:
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            self._path.write_bytes(whole)
        for text in whole.decode("utf-8").splitlines():
            raw = json.loads(text)
            line = raw.pop("line")
            self.answers[line] = Answer(**raw)

    def append(self, answers: Mapping[int, Answer]) -> None:
        """Add answers, by row, and flush them.

        Raises:
            StorageError: the disk refuses.
        """
        lines = [json.dumps({"line": line, **asdict(a)}) + "\n" for line, a in answers.items()]
        with storage_errors(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.writelines(lines)
        self.answers.update(answers)


def answer_all(
    backend: Backend,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    log: AnswerLog,
    *,
    title: str,
    chunk_rows: int,
) -> None:
    """Have every prompt answered that `log` does not hold yet, and put the answers there.

    Prompts that start alike are asked together, as the engine reads a common beginning only once.

    Args:
        title: of the progress bar.
        chunk_rows: prompts between two writes to the log.

    Raises:
        DataError: prompts that leave no room for an answer.
        EngineError: the engine failed.
        StorageError: the log cannot be written.
    """
    refuse_long_prompts(prompts, backend.context_tokens, sampling.max_tokens)
    waiting = [prompt for prompt in prompts if prompt.line not in log.answers]
    waiting.sort(key=lambda prompt: prompt.token_ids)
    done = len(prompts) - len(waiting)
    with progress(title, len(prompts), start=done, unit="rows") as bar:
        for first in range(0, len(waiting), chunk_rows):
            chunk = waiting[first : first + chunk_rows]
            began = time.monotonic()
            generations = backend.generate(
                [prompt.token_ids for prompt in chunk],
                sampling,
                on_done=lambda _index: bar.advance(),
            )
            each = (time.monotonic() - began) / len(chunk)
            log.append(
                {
                    prompt.line: _answer(generation, each)
                    for prompt, generation in zip(chunk, generations, strict=True)
                }
            )


def refuse_long_prompts(prompts: Sequence[Prompt], context: int, answer: int) -> None:
    """Refuse rows whose prompt and longest answer together do not fit into the context.

    Raises:
        DataError: names each such row.
    """
    long = [
        f"test.jsonl:{prompt.line}: {len(prompt.token_ids)} tokens"
        for prompt in prompts
        if len(prompt.token_ids) + answer > context
    ]
    if long:
        raise DataError(
            f"{len(long)} test rows leave no room for an answer:\n{listed(long)}",
            why=f"the model's context holds {context} tokens, {answer} of them for the answer",
            fix="shorten the prompts, or lower evaluate.max_answer_tokens",
        )


def _answer(generation: Generation, seconds: float) -> Answer:
    return Answer(
        text=generation.text,
        tokens=len(generation.token_ids),
        cut=generation.finish_reason == "length",
        seconds=seconds,
    )
