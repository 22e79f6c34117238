"""What a row's mask trains, held against what the assistant said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunesmith.models.chat import ChatRenderer

if TYPE_CHECKING:
    from tunesmith.train.rows import TokenRow

__all__ = ["MIN_STOPPED_SHARE", "MaskFigures", "Verdict", "judge"]

MIN_STOPPED_SHARE = 0.99
"""Least share of rows whose answers all end with a trained stop token."""

SHOWN = 60


@dataclass(frozen=True)
class Verdict:
    """One row's mask.

    Attributes:
        wrong: what is trained that is not the assistant's text, or why nothing can be learned;
            empty when the mask is right.
        cut: which answer lost its end; empty when all are whole.
        stopped: each answer's stop token is trained.
    """

    wrong: str = ""
    cut: str = ""
    stopped: bool = True

    @property
    def right(self) -> bool:
        """Whether the row teaches its answers, whole, and nothing else."""
        return not self.wrong and not self.cut


@dataclass(frozen=True)
class MaskFigures:
    """A split whose masks were proved right.

    Attributes:
        rows: rows that were checked, all of the split.
        trained_tokens: tokens that the loss counts.
        stopped_rows: rows in which every answer's stop token is trained.
    """

    rows: int
    trained_tokens: int
    stopped_rows: int


def judge(row: TokenRow, answers: Sequence[str], renderer: ChatRenderer) -> Verdict:
    """Decode what a row trains and compare it with the assistant's turns, white space aside.

    Args:
        row: the row as it will be trained.
        answers: contents of its assistant turns, in order.
        renderer: the one that made the row.
    """
    learned = [token for token, on in zip(row.tokens, row.trained, strict=True) if on]
    if not learned:
        return Verdict("no token is trained", stopped=False)
    if all(row.trained):
        return Verdict("every token is trained, the prompt too")
    stops = sum(token in renderer.stop_ids for token in learned)
    stopped = learned[-1] in renderer.stop_ids and stops >= len(answers)
    decoded = _text(learned, renderer)
    spoken = "".join(answer.strip() for answer in answers)
    if _bare(decoded) == _bare(spoken):
        return Verdict(stopped=stopped)
    if "\ufffd" in decoded:
        lost = (
            f"the model's tokenizer cannot spell the answer {spoken[:SHOWN]!r}: some of it is lost"
        )
        return Verdict(lost, stopped=stopped)
    if _lacks_only_its_end(row, answers, renderer):
        kept, whole = len(_bare(decoded)), len(_bare(spoken))
        cut = f"{kept} of {whole} characters are left of the answer {spoken[:SHOWN]!r}"
        return Verdict(cut=cut, stopped=stopped)
    wrong = f"trained text {decoded[:SHOWN]!r} is not the assistant's {spoken[:SHOWN]!r}"
    return Verdict(wrong, stopped=stopped)


def _lacks_only_its_end(row: TokenRow, answers: Sequence[str], renderer: ChatRenderer) -> bool:
    """Whether each stretch of trained tokens is the beginning of the answer that it stands for."""
    stretches = [_bare(_text(ids, renderer)) for ids in _stretches(row)]
    if len(stretches) > len(answers):
        return False
    pairs = zip(stretches, answers, strict=False)
    return all(_bare(answer).startswith(text) for text, answer in pairs)


def _stretches(row: TokenRow) -> list[list[int]]:
    found: list[list[int]] = []
    before = False
    for token, on in zip(row.tokens, row.trained, strict=True):
        if on and not before:
            found.append([])
        if on:
            found[-1].append(token)
        before = on
    return found


def _text(learned: Sequence[int], renderer: ChatRenderer) -> str:
    return renderer.decode([token for token in learned if token not in renderer.stop_ids])


def _bare(text: str) -> str:
    return "".join(text.split())
