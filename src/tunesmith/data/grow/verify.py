"""Verifiers: whether one answer of a model to a row's prompt can be trusted, and why not."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tunesmith.data.budget import SqlBudget
from tunesmith.data.grow.execute import (
    BUDGET,
    BUDGET_ROWS,
    COST_SECONDS,
    SECONDS,
    Failed,
    ReadOnly,
    same_rows,
)
from tunesmith.data.json_schema import JsonSchema, read_schema, read_strictly
from tunesmith.data.rows import Row
from tunesmith.data.scripts import what_waits
from tunesmith.errors import ConfigError, counted, reason_of
from tunesmith.registry import Table
from tunesmith.store.sqlite import QueryRunner

__all__ = [
    "VERIFIERS",
    "AnyAnswer",
    "Checked",
    "ExactAnswer",
    "JsonAnswer",
    "PythonAnswer",
    "SqlAnswer",
    "Verifier",
    "code_in",
    "final_value",
]

_FENCE = re.compile(r"```[ \t]*+[\w+-]*+[ \t]*+\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Checked:
    """A verifier's word.

    Attributes:
        passed: the answer may be kept.
        why: what was found, in a few words.
    """

    passed: bool
    why: str


class Verifier(Protocol):
    """Judges answers to a row's prompt."""

    name: str

    def check(self, row: Row, answer: str) -> Checked:
        """Whether one answer holds. Nothing raises for what stands in `answer`."""
        ...

    def close(self) -> None:
        """Give back files."""
        ...


VERIFIERS = Table(
    "verifier",
    {
        "sql": "tunesmith.data.grow.verify:SqlAnswer",
        "json": "tunesmith.data.grow.verify:JsonAnswer",
        "python": "tunesmith.data.grow.verify:PythonAnswer",
        "exact": "tunesmith.data.grow.verify:ExactAnswer",
        "majority": "tunesmith.data.grow.verify:AnyAnswer",
    },
)
"""Name -> class; all take `databases` and `json_schema` by keyword."""


def code_in(answer: str) -> str:
    """The first fenced block of an answer, else all of it."""
    fenced = _FENCE.search(answer)
    return (fenced[1] if fenced else answer).strip()


class SqlAnswer:
    """The query runs on the row's database; where the row has an answer, both return the same rows.

    Of each 1,000 answers six queries may run into the limit of time; then none is run, and no answer passes,
    until the next thousand.

    Args:
        databases: name -> SQLite file. A row names its own by its field `database`; with one
            database it need not.
        json_schema: unused.

    Raises:
        ConfigError: there is no database, or one cannot be opened.
    """

    name = "sql"

    def __init__(self, *, databases: Mapping[str, Path], json_schema: Path | None = None) -> None:
        if not databases:
            raise ConfigError(
                "the verifier sql has no database", fix="name one: --database NAME=FILE"
            )
        self._runner = QueryRunner(SECONDS)
        self._budget, self._n_answers = SqlBudget(BUDGET, seconds=COST_SECONDS), 0
        self._files: dict[str, ReadOnly] = {}
        for name, path in databases.items():
            if not _is_sqlite(path):
                raise ConfigError(
                    f"the database {name} ({path}) is no SQLite file",
                    fix="of a script make one first: sqlite3 NAME.sqlite < NAME.sql",
                )
            if waits := what_waits(path):
                raise ConfigError(f"the database {name} ({path}) cannot be read: {waits}")
            self._files[name] = ReadOnly(path, self._runner)

    def check(self, row: Row, answer: str) -> Checked:
        """Runs the answer, and the row's own answer where it has one."""
        named = row.meta.get("database")
        only = next(iter(self._files)) if len(self._files) == 1 else None
        file = (
            self._files.get(str(named)) if named is not None or only is None else self._files[only]
        )
        if file is None:
            return Checked(False, f"no database is called {named!r}")
        if self._n_answers and self._n_answers % BUDGET_ROWS == 0:
            self._budget = SqlBudget(BUDGET, seconds=COST_SECONDS)
        self._n_answers += 1
        found = file.run(code_in(answer), self._budget)
        if isinstance(found, Failed):
            return Checked(False, f"the query {_how(found)}: {found.error}")
        if not row.answer.strip():
            return Checked(True, f"the query runs and returns {counted(len(found.rows), 'row')}")
        wanted = file.run(code_in(row.answer), self._budget)
        if isinstance(wanted, Failed):
            return Checked(False, f"the row's own query {_how(wanted)}: {wanted.error}")
        if same_rows(found, wanted):
            return Checked(True, f"the query returns the {len(wanted.rows)} rows of the row's own")
        return Checked(False, "the query returns other rows than the row's own")

    def close(self) -> None:
        """End the process that runs the queries."""
        self._runner.close()


def _how(failed: Failed) -> str:
    return "was not run" if failed.is_left_out else "fails"


def _is_sqlite(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(16) == b"SQLite format 3\0"


class JsonAnswer:
    """The answer is JSON, and fits a schema where one is given.

    Args:
        databases: unused.
        json_schema: file with a JSON schema.

    Raises:
        ConfigError: the schema is none.
        EnvironmentProblem: jsonschema is not installed.
    """

    name = "json"

    def __init__(
        self, *, databases: Mapping[str, Path] | None = None, json_schema: Path | None = None
    ) -> None:
        self._schema = None
        if json_schema is not None:
            schema = read_schema(json_schema, "correct --json-schema")
            self._schema = JsonSchema(schema, str(json_schema))

    def check(self, row: Row, answer: str) -> Checked:
        """Parses the answer, or its first fenced block."""
        try:
            value = read_strictly(code_in(answer))
        except (ValueError, RecursionError) as error:
            return Checked(False, f"not JSON: {reason_of(error)[:120]}")
        if self._schema is None:
            return Checked(True, "it is JSON")
        for wrong in self._schema.mismatches(value):
            return Checked(False, f"{wrong.at}: {wrong.said}")
        return Checked(True, "it is JSON and fits the schema")

    def close(self) -> None:
        """Nothing to give back."""


class PythonAnswer:
    """The answer, or its first fenced block, is Python that can be compiled. It is not run."""

    name = "python"

    def __init__(
        self, *, databases: Mapping[str, Path] | None = None, json_schema: Path | None = None
    ) -> None:
        """Takes nothing; the arguments are those of every verifier."""

    def check(self, row: Row, answer: str) -> Checked:
        """Parses it."""
        code = code_in(answer)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return Checked(False, f"not Python: {reason_of(error)[:120]}")
        if not tree.body:
            return Checked(False, "it holds no statement")
        return Checked(True, "it compiles")

    def close(self) -> None:
        """Nothing to give back."""


class ExactAnswer:
    """The answer's final value is the row's own, white space, case and closing full stop aside."""

    name = "exact"

    def __init__(
        self, *, databases: Mapping[str, Path] | None = None, json_schema: Path | None = None
    ) -> None:
        """Takes nothing; the arguments are those of every verifier."""

    def check(self, row: Row, answer: str) -> Checked:
        """Compares the final values."""
        if not row.answer.strip():
            return Checked(False, "the row has no answer to compare with")
        found, wanted = final_value(answer), final_value(row.answer)
        if found == wanted:
            return Checked(True, "it is the row's own answer")
        return Checked(False, f"other than the row's answer {wanted[:40]!r}: {found[:40]!r}")

    def close(self) -> None:
        """Nothing to give back."""


class AnyAnswer:
    """For `majority`: every answer that is not empty has a vote; the votes decide."""

    name = "majority"

    def __init__(
        self, *, databases: Mapping[str, Path] | None = None, json_schema: Path | None = None
    ) -> None:
        """Takes nothing; the arguments are those of every verifier."""

    def check(self, row: Row, answer: str) -> Checked:
        """Whether it has a final value."""
        value = final_value(answer)
        return Checked(bool(value), f"votes for {value[:40]!r}" if value else "it is empty")

    def close(self) -> None:
        """Nothing to give back."""


_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_MARKED = re.compile(
    r"(?:####|(?:final )?answer(?: is)?\s*[:=]?|\d\s*=(?=\s*[-+.\d]+\s*\.?$))\s*(.+)$",
    re.IGNORECASE,
)


def final_value(answer: str) -> str:
    """What an answer ends in: `\\boxed{...}`, what follows `####`, `answer:` or a sum's `=`, else all of it.

    Folded case, single spaces, no full stop at the end, no commas between digits.
    """
    text = answer.strip()
    if boxed := _BOXED.findall(text):
        text = boxed[-1]
    else:
        last = text.splitlines()[-1] if text else ""
        if marked := _MARKED.search(last):
            text = marked[1]
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", " ".join(text.casefold().split()))
    return text.strip(" .!`'\"*")
