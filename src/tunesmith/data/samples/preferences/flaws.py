"""What is wrong with a rejected answer, and the program that shows it.

A pair's `meta.check` says what a right answer must do; `fails` runs that on an answer.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from tunesmith.data.samples import text_to_sql

__all__ = ["FLAWS", "fails", "results"]

FLAWS = {
    "wrong-number": "the number is not the right one",
    "wrong-date": "the date is not the right one",
    "not-sorted": "the lines are not in the order that was asked for",
    "wrong-count": "there are more or fewer lines than were asked for",
    "not-json": "it is no JSON",
    "missing-field": "a field that was asked for is missing",
    "too-long": "it has more words than were allowed",
    "wrong-case": "it is not in capital letters, as was asked",
    "not-in-text": "it says what the text does not say",
    "no-python": "it does not compile",
    "wrong-code": "it gives another value for an input",
    "query-fails": "the query does not run on the database",
    "wrong-rows": "the query gives other rows than the right one",
}
"""Name of a flaw -> what it means."""
Check = Mapping[str, Any]


def fails(check: Check, answer: str, chosen: str = "") -> bool:
    """Whether an answer does not do what the check asks for.

    Args:
        chosen: the good answer, which is what a check without `is` compares with.

    Raises:
        KeyError: the check is of no known kind.
    """
    if "is" not in check:
        kind = check["kind"]
        readers: dict[str, Callable[[str], Any]] = {"json": json.loads, "sorted": str.splitlines}
        check = {**check, "is": readers.get(kind, str)(chosen)}
    return _CHECKS[check["kind"]](check, answer)


def _number(check: Check, answer: str) -> bool:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", answer.replace(",", ""))
    return not numbers or numbers[-1] != str(check["is"])


def _lines(check: Check, answer: str) -> bool:
    lines = answer.split("\n")
    return bool(len(lines) != check["is"] or len(set(lines)) != check["is"])


def _sorted(check: Check, answer: str) -> bool:
    return bool(answer.split("\n") != check["is"])


def _json(check: Check, answer: str) -> bool:
    try:
        found = json.loads(answer)
    except ValueError:
        return True
    return bool(found != check["is"])


def _words(check: Check, answer: str) -> bool:
    return bool(len(answer.split()) > check["most"])


def _capitals(check: Check, answer: str) -> bool:
    return bool(answer != check["is"])


def _says(check: Check, answer: str) -> bool:
    return bool(check["is"] not in answer)


def _python(check: Check, answer: str) -> bool:
    """Runs the few functions that the builder itself writes; nothing from elsewhere."""
    names: dict[str, Any] = {}
    try:
        exec(compile(answer, "answer", "exec"), names)
    except SyntaxError:
        return True
    return any(repr(names[check["name"]](*args)) != gives for args, gives in check["cases"])


def _sql(check: Check, answer: str) -> bool:
    return results(check["database"], answer) != results(check["database"], check["is"])


_CHECKS: dict[str, Callable[[Check, str], bool]] = {
    "number": _number,
    "lines": _lines,
    "sorted": _sorted,
    "json": _json,
    "words": _words,
    "capitals": _capitals,
    "says": _says,
    "python": _python,
    "sql": _sql,
}
_OPEN: dict[str, sqlite3.Connection] = {}


def results(database: str, sql: str) -> list[str] | None:
    """The rows of a query on a database of the text-to-SQL set, in any order; None when it fails."""
    if database not in _OPEN:
        _OPEN[database] = sqlite3.connect(":memory:")
        _OPEN[database].executescript(text_to_sql.scripts()[database].read_text(encoding="utf-8"))
    try:
        return sorted(map(repr, _OPEN[database].execute(sql).fetchall()))
    except sqlite3.Error:
        return None
