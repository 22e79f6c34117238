"""Questions and queries over the user's own database, each query run before it becomes a row."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tunesmith.data.make.database import MAGIC, Database, open_database
from tunesmith.data.make.ddl import filled_database
from tunesmith.data.make.questions import Question, questions_of
from tunesmith.data.make.rows import Made, Order, chat, divided, existing
from tunesmith.data.make.tables import Contents, Names, Table, read_tables
from tunesmith.errors import ConfigError

__all__ = ["SqlOptions", "make_sql", "read_names", "words_used"]

MAX_RESULT_ROWS = 50


@dataclass(frozen=True)
class SqlOptions:
    """How questions are made.

    Attributes:
        n_rows: most rows.
        names: words for names that are not English; see `read_names`.
        schema: how the prompt shows the tables: one line each, their DDL, or not at all.
        instruction: first line of the prompt's system message; empty for none.
        hold_out: what a split has for itself: whole wordings, or whole tables.
        ratios: split -> share of the wordings or tables that it holds out.
        fill_rows: rows that each table of a DDL file is given.
    """

    n_rows: int = 500
    seed: int = 0
    names: Names = field(default_factory=dict)
    schema: Literal["compact", "ddl", "none"] = "compact"
    instruction: str = "Answer with one SQLite query."
    hold_out: Literal["nothing", "templates", "tables"] = "nothing"
    ratios: Mapping[str, float] = field(default_factory=lambda: {"validation": 0.1, "test": 0.2})
    fill_rows: int = 40


def read_names(path: Path) -> Names:
    """Words from a YAML file: `table` or `table.column` -> words, two for one and many, or nothing.

    Raises:
        ConfigError: it is not such a file.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from tunesmith.data.make.rows import read_text

    try:
        found = YAML(typ="safe", pure=True).load(read_text(existing(path, folder=False)))
    except YAMLError as error:
        raise ConfigError(
            f"{path}: not valid YAML: {error}", fix="see docs/data/making.md"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: not a mapping of names to words", fix="see docs/data/making.md")
    for key, value in found.items():
        words = value if isinstance(value, list) else [value]
        if not isinstance(key, str) or not all(
            w is None or (isinstance(w, str) and w.strip()) for w in words
        ):
            raise ConfigError(
                f"{path}: {key}: {value!r}",
                fix="give words in quotes, two words as [one, many], or ~ to leave the name out",
            )
    return found


def make_sql(path: Path, options: SqlOptions | None = None, *, keep: Path | None = None) -> Made:
    """Rows of questions with queries that run on the database.

    Args:
        path: a SQLite file, or a text file with CREATE TABLE statements, whose tables are filled with seeded values
            where it has no INSERT.
        keep: where to write the database that was filled.

    Raises:
        MissingError: nothing is there.
        DataError: it cannot be read, has no tables, or no question has a result.
        BusyError: another program holds the database locked.
    """
    options = options or SqlOptions()
    made = Made("sql")
    with _opened(path, options, keep) as database:
        found = read_tables(database, options.names)
        tables = found.tables
        _refuse_unknown_names(options.names, database)
        _note_left_out(made, found)
        useful = [table for table in tables if table.n_rows]
        for table in tables:
            if not table.n_rows:
                made.drop(f"{path.name}#{table.name}", table.name, "the table has no rows")
        made.facts = _facts(useful, found.words)
        system = _system(database, tables, options)
        for question in _chosen(useful, _Judge(database, made, path), options):
            made.rows.append(_row(question, path, system))
    _split(made, options)
    _note_parts(made, useful)
    made.refuse_empty(
        f"{path}: no question could be made",
        why="" if useful else _why_nothing(found),
        fix="give words for its names with --names (--show-names prints what is there), or fill its tables",
    )
    return made


def _why_nothing(found: Contents) -> str:
    tables = [name for name in found.unnamed if "." not in name]
    if tables:
        return f"no table with rows has a name in clear English, such as {', '.join(tables[:5])}"
    return "it has no table with rows"


def words_used(path: Path, options: SqlOptions | None = None) -> str:
    """YAML with the words of every table and column, to be read, changed and given as `names`."""
    options = options or SqlOptions()
    with _opened(path, options, None) as database:
        found = read_tables(database, options.names)
    lines = [f"{key}: {value}" for key, value in found.words.items()]
    lines += [f"{key}: ~  # unclear: give it words, or leave it out" for key in found.unnamed]
    return "\n".join(sorted(lines)) + "\n"


@contextmanager
def _opened(path: Path, options: SqlOptions, keep: Path | None) -> Iterator[Database]:
    existing(path, folder=False)
    with path.open("rb") as stream:
        is_database = stream.read(len(MAGIC)) == MAGIC
    if is_database or path.suffix.lower() not in (".sql", ".ddl", ".txt"):
        with open_database(path) as opened:
            yield opened
    else:
        with filled_database(path, options.fill_rows, Order(options.seed), keep) as opened:
            yield opened


class _Judge:
    """Runs queries and says why a question is not kept."""

    def __init__(self, database: Database, made: Made, path: Path) -> None:
        self.database, self.made, self.path = database, made, path
        self.known: dict[str, str] = {}
        self.asked: set[str] = set()

    def keeps(self, question: Question) -> bool:
        """Whether the question becomes a row; if not, the reason is noted."""
        text = question.text.casefold()
        if text in self.asked:
            reason = "asked already"
        else:
            if question.sql not in self.known:
                self.known[question.sql] = self._reason(question)
            reason = self.known[question.sql]
        if not reason:
            self.asked.add(text)
            return True
        self.made.drop(
            f"{self.path.name}#{question.tables[0]}", f"{question.text} = {question.sql}", reason
        )
        return False

    def _reason(self, question: Question) -> str:
        try:
            rows = self.database.rows(question.sql, MAX_RESULT_ROWS + 1)
            if reason := _trivial(rows, question):
                return reason
            if question.ranks is not None:
                sql, n_taken = question.ranks
                ranks = self.database.rows(sql, n_taken + 1)
                if len(ranks) > n_taken and ranks[n_taken - 1] == ranks[n_taken]:
                    return "a tie: which row comes last is not settled"
                if len(ranks) <= n_taken:
                    return "there are no more rows than are asked for"
        except sqlite3.Error as error:
            if isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error):
                raise
            return "takes too long" if "interrupted" in str(error) else f"the query fails: {error}"
        return ""


def _trivial(rows: Sequence[tuple[object, ...]], question: Question) -> str:
    if not rows:
        return "the result is empty"
    if len(rows) > MAX_RESULT_ROWS:
        return f"the result has more than {MAX_RESULT_ROWS} rows"
    if any(
        cell is None or (isinstance(cell, str) and not cell.strip()) for row in rows for cell in row
    ):
        return "the result has a NULL or a blank"
    if len(rows) == 1 and rows[0] in ((0,), (0.0,)):
        return "the result is 0"
    if question.is_single and len(rows) > 1:
        return "the name is not unique"
    return ""


def _chosen(tables: Sequence[Table], judge: _Judge, options: SqlOptions) -> Iterator[Question]:
    """Turns among tables and shapes until there are enough, so that each has its share."""
    order = Order(options.seed)
    by_name = {table.name.lower(): table for table in tables}
    linked = [
        Table(
            **{**vars(table), "links": [li for li in table.links if li.target.lower() in by_name]}
        )
        for table in tables
    ]
    pools = [pool for table in linked for pool in questions_of(table, by_name, order)]
    n_kept = 0
    for turn in itertools.zip_longest(*order.shuffled(pools, "pools")):
        for question in turn:
            if n_kept == options.n_rows:
                return
            if question is not None and judge.keeps(question):
                n_kept += 1
                yield question


def _row(question: Question, path: Path, system: str) -> dict[str, object]:
    meta = {
        "source": path.name,
        "where": f"{path.name}#{','.join(question.tables)}",
        "database": path.stem,
        "shape": question.shape,
        "template": question.template,
    }
    return chat(question.text, question.sql, meta, system)


def _split(made: Made, options: SqlOptions) -> None:
    """Give each row its split, by its wording or by its tables."""
    if options.hold_out == "nothing" or not made.rows:
        return
    order = Order(options.seed)
    if options.hold_out == "templates":
        splits = divided((row["meta"]["template"] for row in made.rows), options.ratios, order)
        for row in made.rows:
            row["meta"]["split"] = splits[row["meta"]["template"]]
        return
    tables = {row["meta"]["where"].split("#", 1)[1] for row in made.rows}
    splits = divided({name for names in tables for name in names.split(",")}, options.ratios, order)
    kept = []
    for row in made.rows:
        found = {splits[name] for name in row["meta"]["where"].split("#", 1)[1].split(",")}
        held = found - {"train"}
        if len(held) > 1:
            where, text = row["meta"]["where"], row["messages"][-2]["content"]
            made.drop(where, text, "joins tables of two splits that are held out")
            continue
        row["meta"]["split"] = held.pop() if held else "train"
        kept.append(row)
    made.rows = kept


def _system(database: Database, tables: Sequence[Table], options: SqlOptions) -> str:
    lines = [options.instruction] if options.instruction else []
    for table in tables if options.schema != "none" else ():
        if options.schema == "compact":
            infos = database.rows(f"pragma table_info({table.sql})")
            lines.append(f"{table.name}({' '.join(str(info[1]) for info in infos)})")
        else:
            sql = "select sql from sqlite_master where type = 'table' and name = ?"
            lines.append(f"{database.rows(sql, 1, values=(table.name,))[0][0]!s};")
    return "\n".join(lines)


def _facts(tables: Sequence[Table], words: Mapping[str, str]) -> dict[str, object]:
    links = [
        f"{table.name}.{link.column} -> {link.target}.{link.target_column}"
        + ("" if link.is_declared else " (found: all values are there)")
        for table in tables
        for link in table.links
    ]
    return {"tables": [table.name for table in tables], "links": links, "words": dict(words)}


def _note_left_out(made: Made, found: Contents) -> None:
    for key in found.unread:
        made.drop(key, key, "it takes too long to read, or its values are too large")
    unnamed = found.unnamed
    for key in unnamed:
        made.drop(key, key, "its name is no clear English")
    if unnamed:
        made.notes.append(
            f"no questions about {', '.join(unnamed)}: their names are no clear English; give words with "
            "--names FILE.yaml (a line for each, such as `" + f"{unnamed[0]}: words`)"
        )


def _note_parts(made: Made, tables: Sequence[Table]) -> None:
    for table in tables:
        if not table.rows_are_things:
            made.notes.append(
                f"{table.name}: rows with the same {table.label.one if table.label else 'values'} agree in all "
                f"numbers, so they count as parts of one {table.one}, and {table.many} are not counted"
            )


def _refuse_unknown_names(names: Names, database: Database) -> None:
    """Words for something that is not there are a slip of the pen.

    Raises:
        ConfigError: names them all.
    """
    known: set[str] = set()
    listed = "select name from sqlite_master where type = 'table' and coalesce(sql, '') not like 'create virtual%'"
    for (table,) in database.rows(listed):
        known.add(str(table).lower())
        quoted = '"' + str(table).replace('"', '""') + '"'
        for info in database.rows(f"pragma table_info({quoted})"):
            known.add(f"{table!s}.{info[1]!s}".lower())
    unknown = [key for key in names if key.lower() not in known]
    if unknown:
        raise ConfigError(
            f"words for {', '.join(unknown)}, which the database does not have",
            fix="correct the names; --show-names prints all that there are",
        )
