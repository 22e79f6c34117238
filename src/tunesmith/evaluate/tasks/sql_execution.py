"""An answer is right when its query returns the same rows as the reference query."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tunesmith.config import SqlExecutionTask
from tunesmith.errors import DataError, listed
from tunesmith.evaluate.tasks.judgement import Example, Judgement, Unusable
from tunesmith.evaluate.tasks.result_rows import same_rows
from tunesmith.registry import nearest
from tunesmith.store.sqlite import QueryFailed, QueryRows, QueryRunner

__all__ = ["SqlExecution", "query_in"]

MAX_REFERENCE_ROWS = 100_000
_SHOWN_ROWS = 4
_SHOWN_CHARACTERS = 60
_FENCE = re.compile(r"```(?:\w*\n|sql\s)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def query_in(answer: str) -> str:
    """The query of an answer: the first fenced code block if there is one, else the whole text.

    White space at both ends is cut off. Nothing else is changed: a trailing semicolon is for SQLite
    to read, and text before or after the query makes it fail, as it would in a program.
    """
    fenced = _FENCE.search(answer)
    return (fenced.group(1) if fenced else answer).strip()


class SqlExecution:
    """Runs reference and answer on the row's database and compares the multisets of their rows.

    The order of rows never counts, also where the reference has ORDER BY: so do the published
    measures for such data (Finegan-Dollak et al. 2018), and so figures compare. Two results without
    rows are equal.

    Args:
        config: the time limit of a query.
        databases: name -> SQLite file.
    """

    name = "sql_execution"

    def __init__(self, config: SqlExecutionTask, databases: Mapping[str, Path]) -> None:
        self._databases = databases
        self._runner = QueryRunner(config.timeout_seconds)
        self._wanted: dict[int, QueryRows] = {}
        self.how = (
            "Reference and answer are executed on the row's SQLite database. The answer is right "
            "when it returns the same rows, each as often, with the columns in the same order; the "
            "order of the rows does not count. Numbers may differ by one part in a thousand "
            "million. Of an answer with a fenced code block, the first block is executed, else the "
            "whole text. A query that fails, writes, or runs longer than "
            f"{config.timeout_seconds:g} s is wrong."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.close()

    def prepare(self, examples: Sequence[Example]) -> tuple[list[Unusable], list[str]]:
        """Run every reference query once.

        Raises:
            DataError: rows name no known database.
        """
        self._refuse_unknown_databases(examples)
        unusable: list[Unusable] = []
        for example in examples:
            found = self._runner.run(
                self._database(example), query_in(example.reference), max_rows=MAX_REFERENCE_ROWS
            )
            if isinstance(found, QueryFailed):
                unusable.append(Unusable(example.line, found.error))
            elif found.more:
                unusable.append(Unusable(example.line, f"more than {MAX_REFERENCE_ROWS:,} rows"))
            else:
                self._wanted[example.line] = found
        empty = sum(not found.rows for found in self._wanted.values())
        warnings = []
        if empty:
            warnings.append(
                f"{empty} of {len(self._wanted)} reference queries return no rows: "
                "any query that returns nothing counts as right there"
            )
        return unusable, warnings

    def judge(self, example: Example, answer: str) -> Judgement:
        """Right when the answer's query gives the reference's rows."""
        wanted = self._wanted[example.line]
        found = self._runner.run(
            self._database(example), query_in(answer), max_rows=len(wanted.rows) + 1
        )
        if isinstance(found, QueryFailed):
            return Judgement(False, valid=False, note=found.error)
        shown = _shown(found)
        if same_rows(found.rows, wanted.rows):
            return Judgement(True, valid=True, shown=shown)
        return Judgement(False, valid=True, note=_difference(found, wanted), shown=shown)

    def reference_shown(self, example: Example) -> str:
        """The first rows that the reference query returns."""
        return _shown(self._wanted[example.line])

    def _database(self, example: Example) -> Path:
        return self._databases[self._database_name(example)]

    def _database_name(self, example: Example) -> str:
        named = example.meta.get("database")
        if named is None and len(self._databases) == 1:
            return next(iter(self._databases))
        return str(named)

    def _refuse_unknown_databases(self, examples: Sequence[Example]) -> None:
        if not self._databases:
            raise DataError(
                "the dataset has no database to execute queries on",
                fix="name one under data.databases, or set evaluate.task.kind to exact_match",
            )
        problems = []
        for example in examples:
            named = example.meta.get("database")
            if named is None and len(self._databases) > 1:
                problems.append(f"test.jsonl:{example.line}: names no database")
            elif named is not None and named not in self._databases:
                hint = nearest(str(named), self._databases)
                problems.append(f"test.jsonl:{example.line}: no database {named!r}{hint}")
        if problems:
            raise DataError(
                f"{len(problems)} test rows cannot be executed:\n{listed(problems)}",
                why=f"the dataset's databases are: {', '.join(sorted(self._databases))}",
                fix="give each row the field `database` with one of these names",
            )


def _difference(found: QueryRows, wanted: QueryRows) -> str:
    if found.columns != wanted.columns:
        return f"other rows: {found.columns} columns, not {wanted.columns}"
    if found.more or len(found.rows) > len(wanted.rows):
        return f"other rows: more than {len(wanted.rows)}"
    if len(found.rows) < len(wanted.rows):
        return f"other rows: {len(found.rows)}, not {len(wanted.rows)}"
    return "other rows: the same number, other values"


def _shown(found: QueryRows) -> str:
    if not found.rows:
        return "no rows"
    lines = [" | ".join(_cell_text(cell) for cell in row) for row in found.rows[:_SHOWN_ROWS]]
    left = len(found.rows) - _SHOWN_ROWS
    if found.more:
        lines.append("and more")
    elif left > 0:
        lines.append(f"and {left} more")
    return "\n".join(lines)


def _cell_text(cell: object) -> str:
    text = "NULL" if cell is None else cell.hex() if isinstance(cell, bytes) else str(cell)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
