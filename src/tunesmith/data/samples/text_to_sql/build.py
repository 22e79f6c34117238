"""Makes the text-to-SQL sample set from its schema files: `python -m <this module> [--check]`.

Every query is run when the set is built. Of the six phrasings of a question four are for training,
one is for the test and one for the test or the validation, so no wording of the test is seen in
training. Values are also divided, as far as a pattern has enough of them, and a question that is nearly one
of another split is left out.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.near import Said, are_near
from tunesmith.data.samples.text_to_sql.tables import (
    SCHEMAS_DIR,
    Schema,
    database,
    load_schema,
    ordered,
    script,
)

__all__ = ["build", "normalised", "system_prompt", "write"]

WANTED_ROWS = {"test": 300, "validation": 120, "train": 1_400}
"""Rows a split, in the order in which the splits choose their questions."""
INSTRUCTION = "Answer with one SQLite query."
N_PHRASINGS = 6
MAX_FILLINGS = 24
MAX_RESULT_ROWS = 40
_FORMATTER = string.Formatter()


@dataclass(frozen=True)
class Question:
    """One question with its query, which was run and gave rows."""

    database: str
    pattern: str
    phrasing: int
    text: str
    sql: str

    def row(self, system: str) -> dict[str, Any]:
        """The question as a line of the dataset."""
        return {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": self.text},
                {"role": "assistant", "content": self.sql},
            ],
            "meta": {
                "database": self.database,
                "pattern": self.pattern,
                "template": f"{self.database}.{self.pattern}.{self.phrasing}",
            },
        }


def normalised(text: str) -> str:
    """Lower case, letters and digits only, single spaces: equal for questions that differ in form."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def system_prompt(schema: Schema) -> str:
    """The instruction and the schema, one table a line; no commas, since every token is trained past."""
    tables = [f"{table.name}({' '.join(table.columns)})" for table in schema.tables]
    return "\n".join([INSTRUCTION, *tables])


def build() -> dict[str, str]:
    """The sample set's files: name -> content.

    Raises:
        ValueError: a query fails, or a split cannot be filled.
    """
    schemas = [load_schema(path) for path in sorted(SCHEMAS_DIR.glob("*.yaml"))]
    systems = {schema.name: system_prompt(schema) for schema in schemas}
    pools: list[dict[str, list[Question]]] = []
    for schema in schemas:
        connection = database(schema)
        try:
            pools += [_pool(schema, connection, i) for i in range(len(schema.patterns))]
        finally:
            connection.close()
    taken = _Taken()
    files = {f"databases/{schema.name}.sql": script(schema) for schema in schemas}
    for split, n_rows in WANTED_ROWS.items():
        taken.begin()
        questions = _choose([pool[split] for pool in pools], n_rows, taken)
        if len(questions) < n_rows:
            raise ValueError(f"{split}: {len(questions)} questions, {n_rows} wanted")
        lines = [
            json.dumps(question.row(systems[question.database]), ensure_ascii=False)
            for question in ordered(questions, "order", split)
        ]
        files[f"{split}.jsonl"] = "\n".join(lines) + "\n"
    return files


def _pool(schema: Schema, connection: sqlite3.Connection, index: int) -> dict[str, list[Question]]:
    """All questions of one pattern, a split, in the order in which they should be used."""
    pattern, (sql, *phrasings) = list(schema.patterns.items())[index]
    if len(phrasings) != N_PHRASINGS:
        raise ValueError(f"{schema.name}.{pattern}: {len(phrasings)} phrasings")
    fillings = list(itertools.islice(_fillings(schema, connection, pattern, sql), MAX_FILLINGS))
    if not fillings:
        raise ValueError(f"{schema.name}.{pattern}: no value gives a usable result")
    choice = _phrasings(index)
    values = _divided(fillings)
    return {
        split: [
            Question(schema.name, pattern, p, phrasings[p].format(**f), sql.format(**f))
            for p, f in _spread(choice[split], values[split])
        ]
        for split in choice
    }


def _phrasings(index: int) -> dict[str, list[int]]:
    """Which phrasings of a schema's pattern number `index` each split uses.

    What is held out moves on from pattern to pattern, so that every manner of asking is trained,
    while a single wording is only ever on one side.
    """
    first, second = index % N_PHRASINGS, (index + N_PHRASINGS // 2) % N_PHRASINGS
    train = [p for p in range(N_PHRASINGS) if p not in (first, second)]
    if index % 3 == 0:
        return {"train": train, "validation": [second], "test": [first]}
    return {"train": train, "validation": [], "test": [first, second]}


def _divided(fillings: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Values for each split; with fewer than four, all splits use all."""
    if len(fillings) < 4:
        return dict.fromkeys(WANTED_ROWS, fillings)
    n_test = len(fillings) // 4
    n_validation = max(1, len(fillings) // 8)
    return {
        "test": fillings[:n_test],
        "validation": fillings[n_test : n_test + n_validation],
        "train": fillings[n_test + n_validation :],
    }


def _spread(
    phrasings: list[int], fillings: list[dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every phrasing with every filling, in turns that use new fillings as long as there are some."""
    if not phrasings:
        return
    stride = max(1, len(fillings) // len(phrasings))
    for turn in range(len(fillings)):
        for position, phrasing in enumerate(phrasings):
            yield phrasing, fillings[(turn + position * stride) % len(fillings)]


def _fillings(
    schema: Schema, connection: sqlite3.Connection, pattern: str, sql: str
) -> Iterator[dict[str, Any]]:
    """Values for the slots of a query, in random order, that give a usable result."""
    slots = sorted({str(name).split("[")[0] for _, name, _, _ in _FORMATTER.parse(sql) if name})
    choices = [_values(schema, connection, slot) for slot in slots]
    for values in ordered(list(itertools.product(*choices)), schema.name, pattern):
        filling = dict(zip(slots, values, strict=True))
        if _is_usable(connection, sql.format(**filling)):
            yield filling


def _values(schema: Schema, connection: sqlite3.Connection, slot: str) -> list[Any]:
    given = schema.values[slot]
    if isinstance(given, str):
        return [row[0] for row in connection.execute(given)]
    return [tuple(value) if isinstance(value, list) else value for value in given]


def _is_usable(connection: sqlite3.Connection, sql: str) -> bool:
    """Whether the result has rows, says something, is short, and does not hang on SQLite's order."""
    rows = connection.execute(sql).fetchall()
    if not 0 < len(rows) <= MAX_RESULT_ROWS or all(cell in (None, 0) for cell in rows[0]):
        return False
    connection.execute("pragma reverse_unordered_selects = on")
    again = connection.execute(sql).fetchall()
    connection.execute("pragma reverse_unordered_selects = off")
    if " order by " in sql:
        return rows == again
    return sorted(rows, key=repr) == sorted(again, key=repr)


class _Taken:
    """Questions that splits have: none is asked twice, and none is nearly one of another split."""

    def __init__(self) -> None:
        self._texts: set[tuple[str, str]] = set()
        self._here: dict[tuple[str, str], list[Said]] = {}
        self._before: dict[tuple[str, str], list[Said]] = {}

    def begin(self) -> None:
        """What comes now is another split's."""
        for kind, asked in self._here.items():
            self._before.setdefault(kind, []).extend(asked)
        self._here = {}

    def takes(self, question: Question) -> bool:
        """Whether a question is new; it is noted then."""
        kind = (question.database, question.pattern)
        key = (question.database, normalised(question.text))
        asked = Said(question.text, question.sql)
        # As the leak check between splits has it.
        if key in self._texts or any(
            are_near(asked, other, answers="help") for other in self._before.get(kind, ())
        ):
            return False
        self._texts.add(key)
        self._here.setdefault(kind, []).append(asked)
        return True


def _choose(pools: list[list[Question]], n_rows: int, taken: _Taken) -> list[Question]:
    """Take turns among the patterns until there are enough."""
    chosen: list[Question] = []
    for turn in itertools.zip_longest(*pools):
        for question in ordered([q for q in turn if q is not None], "turn", len(chosen)):
            if len(chosen) < n_rows and taken.takes(question):
                chosen.append(question)
    return chosen


def write(directory: Path) -> int:
    """Write the set's files; returns how many differed from what was there."""
    n_changed = 0
    for name, content in build().items():
        path = directory / name
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="\n")
        n_changed += 1
    return n_changed


if __name__ == "__main__":
    sys.stdout.write(f"{write(SCHEMAS_DIR.parent)} files changed\n")
