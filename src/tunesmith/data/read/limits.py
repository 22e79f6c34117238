"""How much a file may ask of the machine that reads it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULTS", "Limits", "in_words"]

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of reading. Memory is a few times `max_row_bytes` at worst, whatever the file holds.

    Attributes:
        max_row_bytes: a longer line, record, list element or paragraph is a problem.
        max_depth: JSON nested deeper is a problem.
        max_ratio: compressed data may expand to this many times its size, once it has expanded to
            `free_bytes`; more is refused as a bomb.
        free_bytes: expanded bytes before `max_ratio` counts.
        max_expanded_bytes: the most that one compressed file may expand to.
        chunk_bytes: size of the pieces that a file is divided into for parallel parsing.
    """

    max_row_bytes: int = 32 * MIB
    max_depth: int = 256
    max_ratio: float = 250.0
    free_bytes: int = 16 * MIB
    max_expanded_bytes: int = 256 * 2**30
    chunk_bytes: int = MIB

    def __post_init__(self) -> None:
        """Refuse bounds that nothing could meet.

        Raises:
            ValueError: a bound is not positive, or JSON may nest deeper than Python's parser can.
        """
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is not positive: {getattr(self, name)}")
        if self.max_depth > 500:
            raise ValueError(f"max_depth is over 500, what Python's parser can: {self.max_depth}")


DEFAULTS = Limits()


def in_words(n_bytes: int) -> str:
    """ "32 MiB", or bytes where that would be 0."""
    return f"{n_bytes // MIB} MiB" if n_bytes >= MIB else f"{n_bytes} bytes"
