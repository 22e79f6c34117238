"""What a rule of augmentation is: a row to one new row, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from tunesmith.data.rows import Row

__all__ = ["Draw", "Made", "Rule", "Unfit"]


@dataclass(frozen=True)
class Draw:
    """The chance of one new row: equal for equal row, rule, seed and number.

    Attributes:
        number: which of the new rows of this row and rule, from 1.
        rng: decides everything else.
    """

    number: int
    rng: Random


@dataclass(frozen=True)
class Made:
    """A new row, without its origin yet, and what its origin says beside rule and seed."""

    row: Row
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Unfit:
    """Why a rule made nothing of a row."""

    reason: str


class Rule(Protocol):
    """One way to change the prompt of a row so that its answer still holds."""

    name: str

    def make(self, row: Row, draw: Draw) -> Made | Unfit:
        """One new row, or why there is none."""
        ...

    def close(self) -> None:
        """Give back files. A second call does nothing."""
        ...
