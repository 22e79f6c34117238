"""Rule `shuffle`: context in another order, when its order says nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

from tunesmith.data.grow.rule import Draw, Made, Unfit
from tunesmith.data.grow.schema_text import statements
from tunesmith.data.grow.turns import asks, context_paths, question_path, remade
from tunesmith.data.rows import Row

__all__ = ["Shuffle", "shuffled"]

_TABLE_LINE = re.compile(r"[ \t]*[\"`\[]?\w+[\"`\]]?[ \t]*\(([^()\n]*)\)[ \t]*[;,]?")
_NAMES = re.compile(r"\w+(?:[ \t]+\w+)*|\w+(?:[ \t]+\w+)*(?:,[ \t]*\w+(?:[ \t]+\w+)*)+")
_DOCUMENT = re.compile(
    r"(?im)^(?:#{1,4}[ \t]+)?(?:\[?(?:document|doc|passage|context|source|snippet|chunk)[ \t]*"
    r"(?:\d+|[a-z])?\]?[ \t]*[:.)]|\[\d+\]|<(?:document|doc|passage|context)\b[^>\n]*>)"
)
_EXAMPLE = re.compile(r"(?im)^(?:q|question|input|example(?:[ \t]+\d+)?)[ \t]*:")
_LABELLED = re.compile(r"(?i)(?:question|query|q|task|instruction)[ \t]*:")
_ANSWERED = re.compile(r"(?im)^(?:a|answer|output|label|sql|response)[ \t]*:[ \t]*\S")
_SQL = re.compile(r"\s*(?:```\w*\s*)?(?:select|with|insert|update|delete|values)\b", re.IGNORECASE)
_INSERT = re.compile(r"\binsert\b", re.IGNORECASE)
_ORDER_WORDS = re.compile(
    r"(?i)\b(?:first|second|third|last|above|below|previous|next|following|preceding|former|latter|"
    r"earlier|later|order(?:ed)?|latest|newest|beginning|end)\b"
)


@dataclass(frozen=True)
class _Part:
    """A stretch of a text that is made of pieces whose order says nothing.

    `pieces` and `gaps` alternate: piece, gap, piece ... piece.
    """

    start: int
    end: int
    pieces: tuple[str, ...]
    gaps: tuple[str, ...]
    what: str


def shuffled(text: str, *, is_sql: bool, refers: bool, rng: Random) -> tuple[str, list[str]]:
    """A text with its tables, columns, documents and solved examples in another order.

    Args:
        text: a system message or a user's turn.
        is_sql: the row's answer is SQL, so that lines such as `city(name state)` describe tables.
        refers: the question speaks of an order ("the first document"): documents and examples stay.
        rng: decides the order.

    Returns:
        The text and the names of what was moved; the same text when nothing can be moved. Pieces
        are moved whole: the text is made of the same pieces, each as often.
    """
    finders: list[Callable[[str], _Part | None]] = [_compact_tables, _statements] if is_sql else []
    if not refers:
        finders += [_documents, _examples]
    moved: list[str] = []
    for find in finders:
        part = find(text)
        if part is None:
            continue
        order = list(range(len(part.pieces)))
        rng.shuffle(order)
        pieces = [part.pieces[index] for index in order]
        if part.what == "tables":
            pieces = [_columns_moved(piece, rng) for piece in pieces]
        new = "".join(a + b for a, b in zip(pieces, (*part.gaps, ""), strict=True))
        if new != text[part.start : part.end]:
            moved.append(part.what)
            text = f"{text[: part.start]}{new}{text[part.end :]}"
    return text, moved


def _compact_tables(text: str) -> _Part | None:
    """The longest run of at least two lines such as `city(name state population)`."""
    lines = text.split("\n")
    best: tuple[int, int] = (0, 0)
    start = None
    for index, line in enumerate([*lines, ""]):
        if _is_table(line):
            start = index if start is None else start
        elif start is not None:
            best = max(best, (start, index), key=lambda run: run[1] - run[0])
            start = None
    first, last = best
    if last - first < 2:
        return None
    offset = sum(len(line) + 1 for line in lines[:first])
    pieces = tuple(lines[first:last])
    end = offset + len("\n".join(pieces))
    return _Part(offset, end, pieces, ("\n",) * (len(pieces) - 1), "tables")


def _is_table(line: str) -> bool:
    match = _TABLE_LINE.fullmatch(line)
    return bool(match and _NAMES.fullmatch(match[1].strip()))


def _columns_moved(line: str, rng: Random) -> str:
    """The line with its columns in another order; a trailing `,` or `;` stays where it is."""
    open_, close = line.index("("), line.rindex(")")
    inside = line[open_ + 1 : close]
    between = ", " if ", " in inside else "," if "," in inside else " "
    columns = [column.strip() for column in inside.split("," if "," in inside else None)]
    if between.join(columns) != inside:
        return line
    rng.shuffle(columns)
    return f"{line[: open_ + 1]}{between.join(columns)}{line[close:]}"


def _statements(text: str) -> _Part | None:
    found = statements(text)
    if len(found) < 2:
        return None
    pieces = tuple(text[s.start : s.end] for s in found)
    gaps = tuple(text[a.end : b.start] for a, b in pairwise(found))
    ends = {piece[-1] for piece in pieces}
    if any(gap.strip() for gap in gaps) or len(ends) > 1:
        return None
    return _Part(found[0].start, found[-1].end, pieces, gaps, "statements")


def _documents(text: str) -> _Part | None:
    return _blocks(text, _DOCUMENT, "documents")


def _examples(text: str) -> _Part | None:
    return _blocks(text, _EXAMPLE, "examples")


def _blocks(text: str, opening: re.Pattern[str], what: str) -> _Part | None:
    """Blocks between blank lines that open alike; documents end at the first other block."""
    blocks = [(m.start(), m.end()) for m in re.finditer(r"\S(?:.|\n(?!\s*\n))*", text)]
    run: list[tuple[int, int]] = []
    for start, end in blocks:
        piece = text[start:end].rstrip()
        fits = bool(opening.match(piece)) and (what == "documents" or bool(_ANSWERED.search(piece)))
        if fits:
            run.append((start, start + len(piece)))
        elif run:
            if what == "documents" and not _ends_documents(piece):
                run.pop()  # It may be the next paragraph of the last one, and must not get another head.
            break
    if len(run) < 2:
        return None
    # The last document may reach into the question: only blocks that open alike are moved.
    pieces = tuple(text[start:end] for start, end in run)
    gaps = tuple(text[a[1] : b[0]] for a, b in pairwise(run))
    return _Part(run[0][0], run[-1][1], pieces, gaps, what)


def _ends_documents(block: str) -> bool:
    """Whether a block after a document is surely no part of it: it asks, or says that the question comes."""
    return asks(block.split("\n", 1)[0]) or _LABELLED.match(block) is not None


class Shuffle:
    """Moves tables and columns of a schema, documents, and solved examples within the prompt.

    Labels such as `Document 2:` move with their text, so that an answer that cites one still holds.
    """

    name = "shuffle"

    def make(self, row: Row, draw: Draw) -> Made | Unfit:
        """The row with its context in another order."""
        question = question_path(row)
        if question is None:
            return Unfit("it has no question of a user")
        # Of `insert into t values (...)` the order of the columns decides.
        is_sql = bool(_SQL.match(row.answer)) and not _INSERT.search(row.answer)
        asked = str(row.value[question[0]][question[1]]["content"])
        refers = bool(_ORDER_WORDS.search(asked)) or bool(_ORDER_WORDS.search(row.answer))
        changes: dict[tuple[str | int, ...], Any] = {}
        moved: list[str] = []
        for path in context_paths(row):
            text = str(row.value[path[0]][path[1]]["content"])
            new, what = shuffled(text, is_sql=is_sql, refers=refers, rng=draw.rng)
            if new != text:
                if not _same_content(text, new):
                    return Unfit("the context would not hold the same words")
                changes[path] = new
                moved += what
        if not changes:
            return Unfit("no tables, documents or examples whose order may change")
        return Made(remade(row, changes), {"moved": moved})

    def close(self) -> None:
        """Nothing to give back."""


def _same_content(before: str, after: str) -> bool:
    """Whether both hold the same words and the same characters, each as often."""
    words = re.compile(r"\w+")
    return Counter(before) == Counter(after) and Counter(words.findall(before)) == Counter(
        words.findall(after)
    )
