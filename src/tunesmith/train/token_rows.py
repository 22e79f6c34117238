"""Rows as tokens, and the arrays that a cache keeps of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EncodedRows", "TokenRow", "from_arrays", "to_arrays"]


@dataclass(frozen=True)
class TokenRow:
    """One conversation as tokens.

    Attributes:
        line: line of the dataset file it came from, from 1.
        tokens: ids.
        trained: for each token, whether it is learned.
        answers: contents of the assistant's turns that are learned, in order.
    """

    line: int
    tokens: tuple[int, ...]
    trained: tuple[bool, ...]
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedRows:
    """All rows of a split, and the lines that were dropped or cut because they were too long.

    `groups` holds the rows of each line when a line is a pair (chosen, rejected), else None. `origin`
    says where the tokens come from: "from cache", or why they were made.
    """

    rows: tuple[TokenRow, ...]
    dropped_lines: tuple[int, ...]
    cut_lines: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] | None = None
    origin: str = field(default="", compare=False)

    @property
    def leading(self) -> tuple[TokenRow, ...]:
        """One row of each line: all rows, or the chosen ones."""
        return self.rows if self.groups is None else tuple(self.rows[g[0]] for g in self.groups)

    def first(self, count: int) -> EncodedRows:
        """At most so many rows from the start, in whole groups."""
        if self.groups is None:
            return replace(self, rows=self.rows[:count])
        groups = tuple(group for group in self.groups if group[-1] < count)
        return replace(self, rows=self.rows[: sum(map(len, groups))], groups=groups)


def to_arrays(found: EncodedRows) -> dict[str, NDArray[Any]]:
    """All of it, as arrays that `from_arrays` reads back equal."""
    rows = found.rows
    texts = [answer.encode("utf-8", "surrogatepass") for row in rows for answer in row.answers]
    sizes = [len(group) for group in found.groups or ()]
    return {
        "lines": _whole(row.line for row in rows),
        "lengths": _whole(len(row.tokens) for row in rows),
        "tokens": np.fromiter((t for row in rows for t in row.tokens), dtype=np.int32),
        "trained": np.fromiter((t for row in rows for t in row.trained), dtype=np.uint8),
        "answers": _whole(len(row.answers) for row in rows),
        "answer_bytes": _whole(map(len, texts)),
        "texts": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "dropped": _whole(found.dropped_lines),
        "cut": _whole(found.cut_lines),
        "group_sizes": _whole(sizes),
        "paired": _whole([found.groups is not None]),
    }


def _whole(values: Any) -> NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> EncodedRows:
    """What `to_arrays` took apart."""
    ends = np.cumsum(arrays["answer_bytes"]).tolist()
    data = arrays["texts"].tobytes()
    starts = [0, *ends[:-1]]
    answers = [
        data[start:end].decode("utf-8", "surrogatepass")
        for start, end in zip(starts, ends, strict=False)
    ]
    lengths = arrays["lengths"].tolist()
    rows = tuple(
        TokenRow(*parts)
        for parts in zip(
            arrays["lines"].tolist(),
            _cut(arrays["tokens"].tolist(), lengths),
            _cut(arrays["trained"].astype(bool).tolist(), lengths),
            _cut(answers, arrays["answers"].tolist()),
            strict=True,
        )
    )
    groups = tuple(_cut(range(len(rows)), arrays["group_sizes"].tolist()))
    return EncodedRows(
        rows,
        tuple(arrays["dropped"].tolist()),
        tuple(arrays["cut"].tolist()),
        groups if arrays["paired"][0] else None,
    )


def _cut(values: Sequence[Any], lengths: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    at = 0
    for length in lengths:
        yield tuple(values[at : at + length])
        at += length
