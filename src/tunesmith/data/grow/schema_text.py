"""Names of tables and columns in a prompt: as CREATE TABLE statements, as `table(a b c)`, as `table.a`."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["NameSpan", "Statement", "name_spans", "spliced", "statements"]

_COMPACT = re.compile(r"(?<![\w.])[\"`\[]?(\w+)[\"`\]]?[ \t]*\(([^()\n]*)\)")
_DOTTED = re.compile(r"(?<![\w.])(\w+)\.(\w+)(?![\w(]|\.\w)")
_WORD = re.compile(r"\w+")
_MOST_SEMICOLONS = 100
"""Within quotes and comments of one statement."""
_CREATE = re.compile(r"\bcreate\s+(?:temp\s+|temporary\s+)?table\b", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class NameSpan:
    """One name in a text: where it stands, without its quotes."""

    start: int
    end: int
    name: str


@dataclass(frozen=True)
class Statement:
    """One CREATE TABLE statement in a text, without what stands around it."""

    start: int
    end: int


def statements(text: str) -> list[Statement]:
    """All CREATE TABLE statements, each up to its semicolon, or to the bracket that closes it."""
    found: list[Statement] = []
    at = 0
    while match := _CREATE.search(text, at):
        end = _end_of(text, match.start())
        if end is None:
            break
        found.append(Statement(match.start(), end))
        at = end
    return found


def _end_of(text: str, start: int) -> int | None:
    """Behind the first semicolon that ends the statement for SQLite, else behind its last bracket."""
    at = start
    for _ in range(_MOST_SEMICOLONS):
        at = text.find(";", at)
        if at < 0:
            break
        if sqlite3.complete_statement(text[start : at + 1]):
            piece = text[start : at + 1]
            # Another statement inside means that this one had no semicolon of its own.
            if not _CREATE.search(piece, len("create table")):
                return at + 1
            break
        at += 1
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0 and text[index] == ")":
            after = index + 1
            return after + 1 if text[after : after + 1] == ";" else after
    return None


def name_spans(text: str, columns: Mapping[str, Iterable[str]]) -> list[NameSpan]:
    """Where names of a database's tables and columns stand as names, not as words of a sentence.

    Args:
        text: a prompt.
        columns: table -> its columns, as the database has them.

    Returns:
        Spans in order, without overlaps; names as they are written in the text.
    """
    known = {table.casefold(): {c.casefold() for c in names} for table, names in columns.items()}
    found = [*_in_statements(text, known), *_compact(text, known), *_dotted(text, known)]
    kept: list[NameSpan] = []
    for span in sorted(set(found)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def _in_statements(text: str, known: Mapping[str, set[str]]) -> Iterator[NameSpan]:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    every = set(known).union(*known.values())
    for statement in statements(text):
        piece = text[statement.start : statement.end]
        try:
            tree = sqlglot.parse_one(piece, read="sqlite")
        except SqlglotError:
            continue
        table = tree.find(exp.Table)
        if table is None or table.name.casefold() not in known:
            continue
        for node in tree.find_all(exp.Identifier):
            if node.name.casefold() in every and "start" in node.meta:
                quote = int(bool(node.args.get("quoted")))
                start = statement.start + node.meta["start"] + quote
                end = start + len(node.name)
                if text[start:end] == node.name:
                    yield NameSpan(start, end, node.name)


def _compact(text: str, known: Mapping[str, set[str]]) -> Iterator[NameSpan]:
    """`table(a b c)` and `table(a integer, b text)`, when every column is one of the table's."""
    for match in _COMPACT.finditer(text):
        columns = known.get(match[1].casefold())
        if columns is None or not match[2].strip():
            continue
        names = list(_column_names(match[2], match.start(2)))
        if names and all(span.name.casefold() in columns for span in names):
            yield NameSpan(*match.span(1), match[1])
            yield from names


def _column_names(text: str, offset: int) -> Iterator[NameSpan]:
    if "," not in text:
        for word in _WORD.finditer(text):
            yield NameSpan(offset + word.start(), offset + word.end(), word[0])
        return
    at = 0
    for part in text.split(","):
        first = _WORD.search(part)
        if first is not None:
            yield NameSpan(offset + at + first.start(), offset + at + first.end(), first[0])
        at += len(part) + 1


def _dotted(text: str, known: Mapping[str, set[str]]) -> Iterator[NameSpan]:
    for match in _DOTTED.finditer(text):
        if match[2].casefold() in known.get(match[1].casefold(), ()):
            yield NameSpan(*match.span(1), match[1])
            yield NameSpan(*match.span(2), match[2])


def spliced(text: str, spans: Iterable[NameSpan], names: Mapping[str, str]) -> str:
    """The text with new names in some spans.

    Args:
        text: what the spans were found in.
        spans: in order, without overlaps.
        names: old name, casefolded -> new name; others stay.
    """
    parts: list[str] = []
    at = 0
    for span in spans:
        parts += [text[at : span.start], names.get(span.name.casefold(), span.name)]
        at = span.end
    return "".join([*parts, text[at:]])
