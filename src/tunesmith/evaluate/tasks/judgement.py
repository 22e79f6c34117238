"""What a task is: it checks the references before anything is generated, then judges answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

__all__ = ["Example", "Judgement", "Task", "Unusable"]


@dataclass(frozen=True)
class Example:
    """A held-out row.

    Attributes:
        line: its line in the dataset's `test.jsonl`, from 1.
        prompt: the messages before the answer.
        reference: the answer that the row holds.
        meta: the row's `meta`.
    """

    line: int
    prompt: tuple[Mapping[str, str], ...]
    reference: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What was found about one answer.

    Attributes:
        correct: whether it counts as right.
        valid: whether it could be used at all (a query that runs); None when the task has no such
            notion.
        note: why it is wrong, in a few words; empty when it is right.
        shown: what it led to, for the reader of the report: the first result rows, as text.
    """

    correct: bool
    valid: bool | None = None
    note: str = ""
    shown: str = ""


@dataclass(frozen=True)
class Unusable:
    """A row whose own reference cannot be judged.

    Attributes:
        line: its line in `test.jsonl`.
        why: what is wrong with it.
    """

    line: int
    why: str


class Task(Protocol):
    """How answers are judged. Used as a context manager; what it opens is closed at its end."""

    name: str
    how: str
    """Two or three plain sentences for the report."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def prepare(self, examples: Sequence[Example]) -> tuple[list[Unusable], list[str]]:
        """Check every reference. Returns the rows that cannot be judged, and warnings.

        Raises:
            DataError: something that makes the whole set useless.
        """
        ...

    def judge(self, example: Example, answer: str) -> Judgement:
        """Judge an answer to a prepared example. Never raises for what stands in `answer`."""
        ...

    def reference_shown(self, example: Example) -> str:
        """What the reference leads to, for the reader of the report."""
        ...
