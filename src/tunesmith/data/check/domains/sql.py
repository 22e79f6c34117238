"""Answers that are SQL: they parse in their dialect, fit the schema, and run where there is a database.

SQLite itself judges SQLite's SQL. Other dialects are parsed by sqlglot, which takes much that is no
SQL for expressions, aliases and commands: rules refuse those.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.check.domains import unfenced
from tunesmith.data.check.domains.dialects import (
    has_trailing_comma,
    prose_in,
    refuse_unknown_dialect,
    why_not_sql,
)
from tunesmith.data.check.domains.sqlite import Ran, SqliteJudge
from tunesmith.data.check.finding import Finding, finding, shortened
from tunesmith.data.check.options import CheckOptions
from tunesmith.data.rows import Row
from tunesmith.errors import EnvironmentProblem, counted
from tunesmith.registry import nearest

__all__ = ["SqlAnswers"]

_DIALECTS = ("postgres", "mysql", "tsql", "bigquery", "snowflake", "oracle")
"""Tried in this order where the dialect is `auto` and SQLite does not understand a query."""
_KEYWORD_LIST = (
    "select from where group order having limit join inner left right outer insert update delete "
    "create with union values into distinct between"
)
_KEYWORDS = tuple(_KEYWORD_LIST.split())
_MAX_SCRIPT_CHARACTERS = 20_000
_STATEMENT_WORDS = re.compile(r"[A-Za-z_]+")


class SqlAnswers:
    """Checks SQL answers.

    Raises:
        EnvironmentProblem: a dialect other than SQLite's is asked for, and sqlglot is not installed.
        ConfigError: sqlglot knows no such dialect.
    """

    def __init__(self, options: CheckOptions) -> None:
        self._dialect = options.dialect
        self._databases = options.databases
        self._judge = SqliteJudge()
        if self._dialect not in ("auto", "sqlite"):
            refuse_unknown_dialect(self._dialect)

    def check(self, row: Row, answer: str, field: str) -> Iterator[Finding]:
        """That the answer is one statement which fits the tables that are known, and runs."""
        sql = unfenced(answer)
        database = self._database(row)
        if database is not None:
            yield from self._run(row, sql, database, field)
            return
        for statement in _statements(sql):
            found = list(self._parse(row, statement, field))
            if found:
                yield from found
                return

    def _parse(self, row: Row, sql: str, field: str) -> Iterator[Finding]:
        shown = shortened(sql)
        if self._dialect in ("auto", "sqlite"):
            known = self._judge.on_schema(sql, row.question)
            if known is not None and known.verdict == "left out":
                yield self._left_out(row, "the tables of its prompt are not made", sql, field)
                known = None
            said = known or self._judge.syntax(sql)
            why = _judged(said, sql, knows_tables=known is not None)
            if why is None:
                return
            if why.startswith("?"):
                yield finding(row.where, "sql-unknown", why[1:], field=field, value=shown)
                return
            if self._dialect == "sqlite" or not self._is_other_dialect(
                said, sql, knows_tables=known is not None
            ):
                yield finding(
                    row.where, "sql", why, field=field, value=shown, fix=_remedy(said, sql)
                )
            return
        why = why_not_sql(sql, self._dialect)
        if why:
            yield finding(row.where, "sql", f"{self._dialect}: {why}", field=field, value=shown)

    def _is_other_dialect(self, said: Ran, sql: str, *, knows_tables: bool) -> bool:
        """Whether SQL that SQLite refuses is right in another dialect."""
        if knows_tables and said.verdict in ("no column", "no table"):
            return False
        if has_trailing_comma(sql):
            return False
        try:
            return any(not why_not_sql(sql, dialect) for dialect in _DIALECTS)
        except EnvironmentProblem:
            return False

    def _database(self, row: Row) -> Path | None:
        named = row.meta.get("database", row.meta.get("db_id"))
        if named is None and len(self._databases) == 1:
            return next(iter(self._databases.values()))
        return self._databases.get(named) if isinstance(named, str) else None

    def _run(self, row: Row, sql: str, database: Path, field: str) -> Iterator[Finding]:
        said = self._judge.run(sql, database)
        if said.verdict == "left out":
            yield self._left_out(row, f"it fits {database.name} and is not run", sql, field)
            return
        shown = shortened(sql)
        if said.verdict == "fits":
            if said.n_rows == 0:
                what = f"it returns no rows from {database.name}"
                yield finding(row.where, "sql-no-rows", what, field=field, value=shown)
            return
        check = "sql" if said.verdict == "syntax" else "sql-runs"
        what = f"SQLite ({database.name}): {said.words}"
        yield finding(row.where, check, what, field=field, value=shown, fix=_remedy(said, sql))

    def _left_out(self, row: Row, what: str, sql: str, field: str) -> Finding:
        ended = counted(self._judge.n_ended, "query", "queries")
        why = f"{what}: limits of time or steps ended {ended} of the rows before"
        return finding(row.where, "sql-not-run", why, field=field, value=shortened(sql))


def _judged(said: Ran, sql: str, *, knows_tables: bool) -> str | None:
    """Why a statement is wrong, None when it is not; "?" begins what could not be checked."""
    if said.verdict == "forbidden":
        return f"?a statement that is not run here: {said.words}"
    if said.verdict == "fits" or (said.verdict == "no table" and not knows_tables):
        prose = prose_in(sql)
        return f"reads like prose: {', '.join(prose)}" if prose else None
    return f"SQLite: {said.words}"


def _statements(sql: str) -> list[str]:
    """The statements of a script; the text itself where there is only one."""
    if ";" not in sql.rstrip("; \n") or len(sql) > _MAX_SCRIPT_CHARACTERS:
        return [sql]
    found, begun = [], ""
    for part in sql.split(";"):
        begun += part
        if sqlite3.complete_statement(f"{begun};"):
            found.append(begun.strip())
            begun = ""
        else:
            begun += ";"
    return [text for text in (*found, begun.rstrip(";").strip()) if text] or [sql]


def _remedy(said: Ran, sql: str) -> str:
    """What to do; "" leaves it to the check."""
    first = _STATEMENT_WORDS.match(sql)
    if said.verdict == "syntax" and first and first[0].lower() not in _KEYWORDS:
        if hint := nearest(first[0].lower(), _KEYWORDS):
            return f"correct {first[0]!r}{hint}"
        return "write one SQL statement and nothing else"
    return ""
