"""An answer is right when it is the reference, up to white space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tunesmith.config import ExactMatchTask
from tunesmith.evaluate.tasks.judgement import Example, Judgement, Unusable

__all__ = ["ExactMatch"]


class ExactMatch:
    """Compares texts after runs of white space became one space and the ends were trimmed.

    Args:
        config: whether case counts.
        databases: not used by this task.
    """

    name = "exact_match"

    def __init__(self, config: ExactMatchTask, databases: Mapping[str, Path]) -> None:
        del databases
        self._ignore_case = config.ignore_case
        case = "Case is ignored." if self._ignore_case else "Case counts."
        self.how = (
            "An answer is right when it is the reference, word for word. Before they are compared, "
            f"each run of white space becomes one space and both ends are trimmed. {case}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def prepare(self, examples: Sequence[Example]) -> tuple[list[Unusable], list[str]]:
        """A row with an empty reference cannot be judged."""
        empty = [e.line for e in examples if not self._normalised(e.reference)]
        return [Unusable(line, "its reference is empty") for line in empty], []

    def judge(self, example: Example, answer: str) -> Judgement:
        """Right when both normalised texts are equal."""
        given, wanted = self._normalised(answer), self._normalised(example.reference)
        if given == wanted:
            return Judgement(True)
        return Judgement(False, note="another text" if given else "an empty answer")

    def reference_shown(self, example: Example) -> str:
        """Nothing: the reference itself is all there is."""
        return ""

    def _normalised(self, text: str) -> str:
        joined = " ".join(text.split())
        return joined.casefold() if self._ignore_case else joined
