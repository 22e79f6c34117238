"""Rule `rename`: other names of tables and columns in prompt, query and database, proved by execution."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from tunesmith.data.budget import SqlBudget
from tunesmith.data.grow.execute import (
    BUDGET,
    BUDGET_ROWS,
    COST_SECONDS,
    SECONDS,
    Failed,
    Found,
    ReadOnly,
    same_rows,
)
from tunesmith.data.grow.names import draw_names
from tunesmith.data.grow.pieces import as_json, put
from tunesmith.data.grow.rule import Draw, Made, Unfit
from tunesmith.data.grow.schema_text import NameSpan, name_spans, spliced
from tunesmith.data.grow.turns import context_paths, remade
from tunesmith.data.rows import Row
from tunesmith.data.scripts import from_script, what_waits
from tunesmith.errors import DataError, EnvironmentProblem, counted, reason_of
from tunesmith.store import sha256_of_json, storage_errors, writing
from tunesmith.store.sqlite import QueryRunner

__all__ = ["Rename", "renamed_query", "tables_of"]

_FENCE = re.compile(r"```(?:\w*\n|sql\s)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_AS_NAME = re.compile(r"\b\w+_\w+\b")


@dataclass(frozen=True)
class _Copy:
    """A database with other names."""

    name: str
    names: Mapping[str, str]
    file: ReadOnly


@dataclass(frozen=True)
class _Original:
    columns: Mapping[str, tuple[str, ...]]
    others: tuple[str, ...]
    path: Path
    file: ReadOnly


class Rename:
    """Renames the tables and columns of text-to-SQL rows, and keeps what gives the same result.

    The query is read by sqlglot, and the new names are put where it found the old ones, so that all
    else in it stays as it was written. Names in the prompt are changed where they stand as names.
    The database is copied, and SQLite itself renames its tables and columns. Then both queries run:
    a new row is made only when they return the same rows, each as often. Where that is no row, or
    nothing but 0 and NULL, both must compile to the same program of SQLite.

    Args:
        databases: name -> SQLite file, or SQL script that makes one. With only one, it is that of rows
            without a field `database` too.
        folder: where the copies go, as `NAME-HASH.sqlite`; of scripts also the original.
        seed: decides the names.

    Raises:
        DataError: a database cannot be read.
        StorageError: the folder cannot be written.
        EnvironmentProblem: sqlglot is not installed.
    """

    name = "rename"

    def __init__(self, databases: Mapping[str, Path], folder: Path, seed: int) -> None:
        if find_spec("sqlglot") is None:
            raise EnvironmentProblem(
                "the rule rename needs the package 'sqlglot', which is not installed",
                fix="pip install 'tunesmith[data]'",
            )
        self._folder, self._seed = folder, seed
        self._runner = QueryRunner(SECONDS)
        self._budget, self._n_rows = SqlBudget(BUDGET, seconds=COST_SECONDS), 0
        self._last: tuple[str, str, Found | Failed] | None = None
        self._originals: dict[str, _Original] = {}
        self._copies: dict[tuple[str, int], _Copy | str] = {}
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name, path in databases.items():
            file, columns, others = _opened(name, path, folder)
            self._originals[name] = _Original(columns, others, file, ReadOnly(file, self._runner))

    def close(self) -> None:
        """End the process that runs the queries."""
        self._runner.close()

    def make(self, row: Row, draw: Draw) -> Made | Unfit:
        """The row on a copy of its database with other names."""
        name = row.meta.get("database")
        if name is None and len(self._originals) == 1 and "db_id" not in row.meta:
            name = next(iter(self._originals))
        if name is None:
            return Unfit("it has no field `database`, which says on which one its query runs")
        if not isinstance(name, str) or name not in self._originals:
            return Unfit(f"its field `database` ({name!r}) names none of the databases given")
        original = self._originals[name]
        copy = self._copy(name, original, draw.number)
        if isinstance(copy, str):
            return Unfit(copy)
        answers = _answer_paths(row)
        if isinstance(answers, Unfit):
            return answers
        changes: dict[tuple[str | int, ...], Any] = {}
        for path, text in answers.items():
            query = _renamed_answer(text, copy, original)
            if isinstance(query, Unfit):
                return query
            changes[path] = query
        context = _renamed_context(row, list(answers.values()), copy, original)
        if isinstance(context, Unfit):
            return context
        proof = self._proved(name, _first(answers), str(_first(changes)), original, copy)
        if isinstance(proof, Unfit):
            return proof
        old_to_new = {text: str(changes[path]) for path, text in answers.items()}
        new = _with_meta(remade(row, {**changes, **context}), copy.name, old_to_new)
        return Made(new, {"database": copy.name, "proof": proof})

    def _proved(
        self, name: str, before: str, after: str, original: _Original, copy: _Copy
    ) -> str | Unfit:
        """How the new query was proved to return what the old one does."""
        old, new = (text[slice(*_query_place(text))] for text in (before, after))
        left = self._run_original(name, old, original)
        if isinstance(left, Failed):
            how = "not run" if left.is_left_out else "the query fails as it is"
            return Unfit(f"{how}: {left.error}")
        right = copy.file.run(new, self._budget)
        if isinstance(right, Failed):
            how = "not run" if right.is_left_out else "the renamed query fails"
            return Unfit(f"{how}: {right.error}")
        if not same_rows(left, right):
            return Unfit("the renamed query returns other rows")
        if _tells(left.rows):
            return f"both queries return the same {counted(len(left.rows), 'row')}"
        found = "no row that tells them apart" if left.rows else "no rows"
        if original.file.program(old) != copy.file.program(new):
            return Unfit(
                f"both queries return {found}, and SQLite compiles them to different programs"
            )
        return f"both queries return {found} and compile to the same program"

    def _run_original(self, name: str, sql: str, original: _Original) -> Found | Failed:
        """What a row's query returns; run once for all new rows of the row."""
        if self._last is None or self._last[:2] != (name, sql):
            if self._n_rows and self._n_rows % BUDGET_ROWS == 0:
                self._budget = SqlBudget(BUDGET, seconds=COST_SECONDS)
            self._n_rows += 1
            self._last = (name, sql, original.file.run(sql, self._budget))
        return self._last[2]

    def _copy(self, name: str, original: _Original, number: int) -> _Copy | str:
        """The copy of a number, made when it is first asked for; text says why there is none."""
        key = (name, number)
        if key not in self._copies:
            columns = sorted({c for names in original.columns.values() for c in names})
            rng = Random(f"{self._seed}/{name}/{number}")
            names = draw_names(original.columns, columns, original.others, rng)
            copy_name = f"{name[:50]}-{sha256_of_json(names)[:8]}"
            path = self._folder / f"{copy_name}.sqlite"
            try:
                _write_copy(original, names, path)
                self._copies[key] = _Copy(copy_name, names, ReadOnly(path, self._runner))
            except sqlite3.Error as error:
                self._copies[key] = f"SQLite cannot rename the tables of {name}: {error}"
        return self._copies[key]


def _first(values: Mapping[Any, Any]) -> Any:
    return next(iter(values.values()))


def _opened(
    name: str, path: Path, folder: Path
) -> tuple[Path, dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The file of a database, made of a script where it is one, and what is in it as `tables_of` has it."""
    file = path
    try:
        if path.suffix.lower() == ".sql":
            file = folder / f"{name}.sqlite"
            content = from_script(path)
            with writing(file) as temporary:
                temporary.write_bytes(content)
        if waits := what_waits(file):
            raise DataError(f"the database {name} ({path}) cannot be read: {waits}")
        columns, others = tables_of(file)
    except (OSError, sqlite3.Error) as error:
        raise DataError(
            f"the database {name} ({path}) cannot be read: {error}",
            fix="name an SQLite file, or a script that ends in .sql",
        ) from error
    return file, columns, others


def tables_of(path: Path) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Tables with their columns, and the names of everything else (views, indexes, triggers).

    Raises:
        sqlite3.Error: it is no SQLite database.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        listed = connection.execute("select type, name from sqlite_master").fetchall()
        tables = {
            name: tuple(
                row[1] for row in connection.execute(f'pragma table_info("{_escaped(name)}")')
            )
            for kind, name in listed
            if kind == "table" and not name.startswith("sqlite_")
        }
    return tables, tuple(name for kind, name in listed if kind != "table")


def _escaped(name: str) -> str:
    return name.replace('"', '""')


def _write_copy(original: _Original, names: Mapping[str, str], path: Path) -> None:
    # Here and in `tables_of` SQLite reads and rewrites definitions; it computes nothing that stands in them.
    uri = f"{original.path.absolute().as_uri()}?mode=ro&immutable=1"
    with (
        writing(path) as temporary,
        closing(sqlite3.connect(uri, uri=True)) as source,
        closing(sqlite3.connect(temporary)) as target,
    ):
        source.backup(target)
        target.execute("pragma journal_mode=delete")
        target.execute("pragma foreign_keys=off")
        for table, columns in original.columns.items():
            for column in columns:
                if column.casefold() in names:
                    target.execute(
                        f'alter table "{_escaped(table)}" rename column "{_escaped(column)}" '
                        f'to "{names[column.casefold()]}"'
                    )
            if table.casefold() in names:
                new = names[table.casefold()]
                target.execute(f'alter table "{_escaped(table)}" rename to "{new}"')
        target.commit()


def _answer_paths(row: Row) -> dict[tuple[str | int, ...], str] | Unfit:
    """Path and text of each answer, the one to be proved first."""
    found: dict[tuple[str | int, ...], Any] = {}
    match row.kind:
        case "chat":
            turns = row.value["messages"]
            places = [
                n for n, turn in enumerate(turns) if turn.get("role") in ("assistant", "tool")
            ]
            if places != [len(turns) - 1]:
                return Unfit("a conversation with several answers")
            found[("messages", places[0], "content")] = turns[-1].get("content")
        case "problem":
            found[("answer",)] = row.value["answer"]
        case "feedback":
            found[("completion", 0, "content")] = row.value["completion"][0].get("content")
        case "pair":
            for name in ("chosen", "rejected"):
                found[(name, 0, "content")] = row.value[name][0].get("content")
        case "text":
            return Unfit("plain text has no question and no query")
    if not all(isinstance(text, str) for text in found.values()):
        return Unfit("an answer that is no text")
    return found


def _query_place(answer: str) -> tuple[int, int]:
    """Where the query stands: in the first fenced block, else everywhere."""
    fenced = _FENCE.search(answer)
    return fenced.span(1) if fenced else (0, len(answer))


def _renamed_answer(answer: str, copy: _Copy, original: _Original) -> str | Unfit:
    start, end = _query_place(answer)
    query = renamed_query(answer[start:end], copy.names, original.columns)
    if isinstance(query, Unfit):
        return query
    return f"{answer[:start]}{query}{answer[end:]}"


def renamed_query(
    sql: str, names: Mapping[str, str], columns: Mapping[str, tuple[str, ...]]
) -> str | Unfit:
    """A query with other names; all else in it, its layout included, as it was.

    Every identifier of an old name is renamed, aliases included, so that equal names stay equal.
    What SQLite would read as text because no table of the query has such a column stays.

    Args:
        sql: one query.
        names: old name, casefolded -> new name.
        columns: table -> its columns.
    """
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        trees = [tree for tree in sqlglot.parse(sql, read="sqlite") if tree is not None]
    except (SqlglotError, RecursionError) as error:
        return Unfit(f"the query cannot be parsed: {reason_of(error)[:120]}")
    if len(trees) != 1 or not isinstance(trees[0], exp.Query):
        return Unfit("the answer is not one query")
    used = {table.name.casefold() for table in trees[0].find_all(exp.Table)}
    known = {c.casefold() for t, cs in columns.items() if t.casefold() in used for c in cs}
    new_names = {new.casefold() for new in names.values()}
    spans: list[NameSpan] = []
    for node in trees[0].find_all(exp.Identifier):
        folded = node.name.casefold()
        if folded in new_names:
            return Unfit(f"the query already uses the name {node.name!r}")
        quoted = bool(node.args.get("quoted"))
        if folded not in names or (quoted and _is_text(node, known)):
            continue
        if "start" not in node.meta:
            return Unfit(f"the place of {node.name!r} in the query is not known")
        start = node.meta["start"] + int(quoted)
        if sql[start : start + len(node.name)] != node.name:
            return Unfit(f"the place of {node.name!r} in the query is not sure")
        spans.append(NameSpan(start, start + len(node.name), node.name))
    return spliced(sql, sorted(set(spans)), names)


def _is_text(node: Any, known: set[str]) -> bool:
    """Whether SQLite reads a quoted name as text: it stands alone and no table has such a column."""
    from sqlglot import exp

    parent = node.parent
    if not isinstance(parent, exp.Column) or parent.args.get("table") is not None:
        return False
    return node.name.casefold() not in known


def _renamed_context(
    row: Row, answers: list[str], copy: _Copy, original: _Original
) -> dict[tuple[str | int, ...], Any] | Unfit:
    """New texts of the turns that describe the tables."""
    changes: dict[tuple[str | int, ...], Any] = {}
    shown: set[str] = set()
    for path in context_paths(row):
        text = str(row.value[path[0]][path[1]]["content"])
        spans = name_spans(text, original.columns)
        shown |= {span.name.casefold() for span in spans}
        rest = spliced(text, spans, dict.fromkeys((s.name.casefold() for s in spans), ""))
        stays = {word.casefold() for word in _AS_NAME.findall(rest)} & set(copy.names)
        if stays:
            return Unfit(f"the prompt uses {min(stays)!r} in a sentence")
        new = spliced(text, spans, copy.names)
        if new != text:
            changes[path] = new
    needed = _names_used(answers[0], copy.names, original)
    if missing := sorted(needed - shown):
        return Unfit(f"the prompt does not show {missing[0]!r}, so its new name could not be known")
    return changes


def _names_used(answer: str, names: Mapping[str, str], original: _Original) -> set[str]:
    """Old names of tables and columns that the query uses and that are renamed."""
    import sqlglot
    from sqlglot import exp

    start, end = _query_place(answer)
    tree = sqlglot.parse_one(answer[start:end], read="sqlite")
    used = {table.name.casefold() for table in tree.find_all(exp.Table)}
    known = {c.casefold() for t, cs in original.columns.items() if t.casefold() in used for c in cs}
    tables = {table.casefold() for table in original.columns}
    found = {node.name.casefold() for node in tree.find_all(exp.Identifier)}
    return found & set(names) & (known | (used & tables))


def _tells(rows: Sequence[Sequence[Any]]) -> bool:
    """Whether equal results say something: a count of 0 or an average of nothing may be equal by luck."""
    return any(cell not in (None, 0, "") for row in rows for cell in row)


def _with_meta(row: Row, database: str, texts: Mapping[str, str]) -> Row:
    """The row with its new database, and with copies of its query in other fields renamed too."""
    import json

    text = put(row.text, ("meta", "database"), as_json(database))
    for name, value in row.meta.items():
        if isinstance(value, str) and value in texts:
            text = put(text, ("meta", name), as_json(texts[value]))
    return Row(row.where, row.kind, text, json.loads(text))
