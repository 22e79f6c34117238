"""Where something private stands in a text, and which of several overlapping findings counts."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Span", "resolve"]


@dataclass(frozen=True, slots=True)
class Span:
    """One finding: `text[start:end]` of the text that was searched.

    Attributes:
        start: first character, counted in characters (code points) from 0.
        end: the character after the last one.
        kind: "email", "phone" and so on; "secret" for every secret.
        text: what stands there.
        detail: the format that it has, such as "github-token" or "es.dni"; may be empty.
    """

    start: int
    end: int
    kind: str
    text: str
    detail: str = ""

    @classmethod
    def of(cls, text: str, start: int, end: int, kind: str, detail: str = "") -> Span:
        """The finding `text[start:end]`."""
        return cls(start, end, kind, text[start:end], detail)


_RANK = (
    "secret",
    "iban",
    "card",
    "email",
    "mac",
    "ip",
    "national_id",
    "birth_date",
    "phone",
    "address",
    "name",
)
"""Which kind counts where two overlap: the one with the stronger evidence first."""


def resolve(spans: Iterable[Span]) -> list[Span]:
    """Findings that do not overlap, in the order of the text.

    A kind with stronger evidence wins over a weaker one, then the longer finding, then the earlier.
    """
    ranked = sorted(
        spans, key=lambda span: (_RANK.index(span.kind), span.start - span.end, span.start)
    )
    kept: list[Span] = []
    for span in ranked:
        # What is kept lies apart and in order: only the two neighbours can overlap.
        at = bisect(kept, span.start, key=lambda other: other.start)
        is_after = at == 0 or kept[at - 1].end <= span.start
        if is_after and (at == len(kept) or span.end <= kept[at].start):
            kept.insert(at, span)
    return kept
