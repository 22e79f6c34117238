"""SQLite as a judge of SQL: prepares and runs queries in a process of its own, reading only, within limits.

Limits are counts of SQLite's own steps and bytes, so that the same query gives the same finding on every
machine. Only what takes long within one step, as a call of a function can, is ended by the clock.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.data.budget import SqlBudget
from tunesmith.data.scripts import what_waits
from tunesmith.store.sqlite import Base, QueryFailed, QueryRunner

__all__ = ["Ran", "SqliteJudge"]

_STEPS = 20_000_000
SECONDS = 10.0
"""Longest time for one query that SQLite's steps do not end."""
BUDGET = 30
"""What such statements may cost together: counts, not a clock, so that the same rows are run everywhere."""
_SYNTAX = re.compile(r"syntax error|unrecognized token|incomplete input|not a query|one statement")
_UNKNOWN = re.compile(r"no such (table|column|function|module|collation)")
_DDL = re.compile(r"\bcreate\s+(?:temp(?:orary)?\s+)?table\b[^;]*", re.IGNORECASE)
_EXPLAIN = re.compile(r"\A\s*explain(?:\s+query\s+plan)?\b", re.IGNORECASE)
_EMPTY = Base("tables")
_MAX_SCHEMAS = 64
_MAX_DDL_CHARACTERS = 100_000

Verdict = Literal[
    "fits", "syntax", "no table", "no column", "no function", "forbidden", "wrong", "left out"
]


@dataclass(frozen=True, slots=True)
class Ran:
    """What SQLite says to a query: `verdict`, its own words unless it fits, rows when it was run.

    `left out`: it was not asked, since limits ended too many before.
    """

    verdict: Verdict
    words: str = ""
    n_rows: int | None = None


class SqliteJudge:
    """Judges queries on databases, on schemas out of prompts, and on an empty one.

    When limits have ended so many statements that `BUDGET` is spent, no more are run and no more tables made.
    """

    def __init__(self) -> None:
        self._runner = QueryRunner(SECONDS, steps=_STEPS)
        self._broken: dict[Path, str] = {}
        self._unknown: OrderedDict[str, None] = OrderedDict()
        self._files: set[Path] = set()
        self._budget = SqlBudget(BUDGET, seconds=10)

    @property
    def n_ended(self) -> int:
        """Statements that a limit ended."""
        return self._budget.n_ended

    def syntax(self, sql: str) -> Ran:
        """Whether it is SQLite's SQL; `no table` is the best that can come where a table is named."""
        return self._prepared(_EMPTY, sql) or Ran("wrong", "SQLite has no memory for it")

    def on_schema(self, sql: str, text: str) -> Ran | None:
        """Whether it fits the tables that a text creates; None when the text creates none that SQLite makes."""
        ddl = ";\n".join(_DDL.findall(text[:_MAX_DDL_CHARACTERS]))
        if not ddl or ddl in self._unknown:
            return None
        if self._budget.is_spent:
            return Ran("left out")
        ran = self._prepared(Base("tables", ddl), sql)
        if ran is None:
            # Not SQLite's SQL, or without end: making them again for the next row would be no better.
            self._unknown[ddl] = None
            if len(self._unknown) > _MAX_SCHEMAS:
                self._unknown.popitem(last=False)
        return ran

    def run(self, sql: str, database: Path) -> Ran:
        """Run one reading query; its first rows are fetched, its steps and its time are limited."""
        if why := self._why_broken(database):
            return Ran("wrong", why)
        if self._budget.is_spent:
            ran = self._prepared(Base.of(database), sql)
            return ran if ran is not None and ran.verdict != "fits" else Ran("left out")
        found = self._runner.run(Base.of(database), sql, max_rows=2)
        if isinstance(found, QueryFailed):
            self._budget.charge(found)
            return _said(found)
        return Ran("fits", n_rows=len(found.rows))

    def _why_broken(self, database: Path) -> str:
        """Why there is nothing to run queries on; found out once. Of a script `.sql` its tables are made in memory."""
        if database in self._files:
            return self._broken.get(database, "")
        self._files.add(database)
        why = what_waits(database)
        what = "read" if why else "opened"
        if not why:
            listed = "select count(*) from sqlite_master"
            found = self._runner.run(Base.of(database), listed, max_rows=1)
            why = found.error if isinstance(found, QueryFailed) else ""
        if why:
            self._broken[database] = f"the database {database} cannot be {what}: {why}"
        return self._broken.get(database, "")

    def _prepared(self, base: Base, sql: str) -> Ran | None:
        """EXPLAIN compiles a statement as running it would, and runs nothing. None where there are no tables."""
        asked = f"EXPLAIN {_EXPLAIN.sub('', sql)}"
        found = self._runner.run(base, asked, max_rows=0, mode="compile")
        if isinstance(found, QueryFailed):
            self._budget.charge(found)
            return None if found.is_opening else _said(found)
        return Ran("fits")

    def close(self) -> None:
        """End the process."""
        self._runner.close()


def _said(failed: QueryFailed) -> Ran:
    words = failed.error
    if "not authorized" in words or "prohibited" in words:
        return Ran("forbidden", words)
    if unknown := _UNKNOWN.search(words):
        kinds: dict[str, Verdict] = {
            "table": "no table",
            "column": "no column",
            "function": "no function",
        }
        return Ran(kinds.get(unknown[1], "wrong"), words)
    return Ran("syntax" if _SYNTAX.search(words) else "wrong", words)
