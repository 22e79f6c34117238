"""Checks that know what answers are: SQL, Python, JSON. A table, and how a dataset's domain is told."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from tunesmith.data.check.columns import answer_of, task_of
from tunesmith.data.check.domains.attempts import is_attempt, is_instruction
from tunesmith.data.check.finding import Finding
from tunesmith.data.check.options import CheckOptions
from tunesmith.data.rows import Row
from tunesmith.registry import Table

__all__ = ["DOMAINS", "Domain", "fenced", "looks_like", "tell", "unfenced"]

_HERE = "tunesmith.data.check.domains"
DOMAINS = Table(
    "answer_domain",
    {
        "sql": f"{_HERE}.sql:SqlAnswers",
        "python": f"{_HERE}.python:PythonAnswers",
        "json": f"{_HERE}.json_answers:JsonAnswers",
    },
    extra="data",
)
"""Name -> class that is made with `CheckOptions` and checks answers."""

_FENCE = re.compile(r"```[ \t]*+([\w+-]*+)[^\n]{0,200}+\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_SQL = re.compile(
    r"\s*\(?\s*(?:select\b.+|with\b.+\bas\s*\(|insert\s+into\b|update\b.+\bset\b|delete\s+from\b|"
    r"(?:create|alter|drop)\s+(?:table|view|index|or\b)|merge\s+into\b)",
    re.IGNORECASE | re.DOTALL,
)
_PYTHON = re.compile(
    r"^(?:def \w+\s*\(|class \w+\s*[(:]|(?:from [\w.]+ )?import \w|async def \w|@\w|for \w.* in .*:$|"
    r"if .*:$|while .*:$|with .*:$|try:$|print\(|\w+ = )",
    re.MULTILINE,
)
_TELLING_SHARE = 0.6
_MIN_TELLING_ROWS = 5
HEAD_ROWS = 1_000


class Domain(Protocol):
    """Checks answers of one kind."""

    def check(self, row: Row, answer: str, field: str) -> Iterator[Finding]:
        """Findings about one answer that is learned."""
        ...


def tell(head: Sequence[Row]) -> dict[str, str]:
    """The domain of each task ("" for rows without one), from a dataset's first rows.

    A domain is told when three fifths of the answers look like it, else `none`. A task of fewer than
    five rows is not among them: its rows are then told one by one.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in head[:HEAD_ROWS]:
        votes[task_of(row)][looks_like(answer_of(row))] += 1
    told: dict[str, str] = {}
    for task, counts in votes.items():
        name, n_most = max(counts.items(), key=lambda item: (item[1], item[0]))
        n_rows = counts.total()
        if n_rows >= _MIN_TELLING_ROWS:
            told[task] = (name or "none") if n_most >= _TELLING_SHARE * n_rows else "none"
    return told


def looks_like(answer: str) -> str:
    """`sql`, `python` or `json` when an answer looks like it; else ""."""
    languages = {language for language, _ in fenced(answer)} if "```" in answer else set()
    for name, spellings in _SPELLINGS.items():
        if languages & spellings:
            return name
    body = unfenced(answer)
    if body[:1] in ("{", "[") and body[-1:] in ("}", "]") and ('"' in body or len(body) < 40):
        return "json"
    if _SQL.match(body[:2_000]) and not is_instruction(body):
        return "sql"
    starts = len(_PYTHON.findall(body[:2_000]))
    n_lines = body[:2_000].count("\n") + 1
    return "python" if starts >= 2 and starts * 6 >= n_lines else ""


_SPELLINGS: Mapping[str, frozenset[str]] = {
    "sql": frozenset(("sql", "sqlite", "postgresql", "mysql")),
    "python": frozenset(("python", "py", "python3")),
    "json": frozenset(("json",)),
}


def fenced(answer: str) -> list[tuple[str, str]]:
    """Language (in lower case) and text of each fenced block."""
    return [(match[1].lower(), match[2]) for match in _FENCE.finditer(answer)]


def unfenced(answer: str) -> str:
    """The first fenced block if there is one, else the whole text; white space at both ends is cut.

    So evaluation reads an answer too.
    """
    found = _FENCE.search(answer) if "```" in answer else None
    return (found[2] if found else answer).strip()


def of_row(row: Row, answer: str, options: CheckOptions) -> str:
    """The domain of a row: as asked for, SQL where it names a database, as told of its task, or by its
    own answer.

    Where rows are mixed, so that their task tells nothing, an answer that was meant to be SQL is SQL.
    """
    if options.domain != "auto":
        return options.domain
    named = row.meta.get("database")
    if isinstance(named, str) and named in options.databases:
        return "sql"
    told = options.domains.get(task_of(row)) or _of_one(answer)
    # A plain text with a block of code in it is about SQL; it is no statement.
    meant = answer if row.kind == "text" else unfenced(answer)
    return "sql" if told == "none" and is_attempt(meant) else told


def _of_one(answer: str) -> str:
    """The domain of an answer by itself."""
    name = looks_like(answer) or "none"
    is_prose = name == "sql" and "```" not in answer and is_instruction(answer, alone=True)
    return "none" if is_prose else name
