"""What the card of the text-to-SQL sample set promises."""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
from collections import Counter

import pytest

from tunesmith.data.near import said
from tunesmith.data.rows import Row
from tunesmith.data.samples import text_to_sql
from tunesmith.data.samples.text_to_sql import build, tables
from tunesmith.data.similar import matches
from tunesmith.data.sketches import sketch


@pytest.fixture(scope="module")
def rows():
    files = text_to_sql.row_files()
    return {
        split: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for split, path in files.items()
    }


@pytest.fixture(scope="module")
def connections():
    found = {}
    for name, path in text_to_sql.scripts().items():
        found[name] = sqlite3.connect(":memory:")
        found[name].executescript(path.read_text(encoding="utf-8"))
    yield found
    for connection in found.values():
        connection.close()


@pytest.fixture(scope="module")
def schemas():
    return {p.stem: tables.load_schema(p) for p in sorted(tables.SCHEMAS_DIR.glob("*.yaml"))}


def question(row):
    return row["messages"][1]["content"]


def query(row):
    return row["messages"][2]["content"]


def test_the_shipped_files_are_what_the_builder_makes():
    for name, content in build.build().items():
        shipped = tables.SCHEMAS_DIR.parent / name
        assert shipped.read_text(encoding="utf-8") == content, f"{name}: run the builder again"


def test_the_shipped_files_are_small():
    folder = tables.SCHEMAS_DIR.parent
    assert (
        sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
        < 1.5e6
    )


def test_the_set_is_as_large_as_promised(rows):
    counts = {split: len(found) for split, found in rows.items()}
    assert counts == {"train": 1400, "validation": 120, "test": 300}
    card = text_to_sql.CARD.read_text(encoding="utf-8")
    assert "1,820" in card
    assert "Apache-2.0" in card


def test_every_query_runs_and_says_something(rows, connections):
    for found in rows.values():
        for row in found:
            result = connections[row["meta"]["database"]].execute(query(row)).fetchall()
            assert result, question(row)
            assert any(cell is not None for cell in result[0]), question(row)


def test_no_result_depends_on_the_order_in_which_sqlite_visits_rows(rows, connections):
    for found in rows.values():
        for row in found:
            connection = connections[row["meta"]["database"]]
            results = []
            for setting in ("off", "on"):
                connection.execute(f"pragma reverse_unordered_selects = {setting}")
                results.append(connection.execute(query(row)).fetchall())
            connection.execute("pragma reverse_unordered_selects = off")
            if "order by" not in query(row):
                results = [sorted(result, key=repr) for result in results]
            assert results[0] == results[1], query(row)


def test_no_question_occurs_twice_in_one_database(rows):
    keys = Counter(
        (row["meta"]["database"], build.normalised(question(row)))
        for found in rows.values()
        for row in found
    )
    assert max(keys.values()) == 1


def test_no_question_of_the_test_occurs_in_training_for_any_database(rows):
    trained = {build.normalised(question(row)) for row in rows["train"]}
    assert not trained & {
        build.normalised(question(row)) for row in rows["test"] + rows["validation"]
    }


def test_the_wording_of_the_test_does_not_occur_in_training(rows, schemas):
    wordings = {}
    for split, found in rows.items():
        wordings[split] = set()
        for row in found:
            database, pattern, phrasing = row["meta"]["template"].split(".")
            template = schemas[database].patterns[pattern][1 + int(phrasing)]
            wordings[split].add(build.normalised(re.sub(r"{.*?}", "slot", template)))
            assert database == row["meta"]["database"]
            assert pattern == row["meta"]["pattern"]
    assert not wordings["train"] & wordings["test"]
    assert not wordings["train"] & wordings["validation"]
    assert not wordings["validation"] & wordings["test"]


def test_each_row_is_its_template_filled_in(rows, schemas):
    """The template that `meta` names really is the one that the question was made from."""
    for found in rows.values():
        for row in found:
            database, pattern, phrasing = row["meta"]["template"].split(".")
            template = schemas[database].patterns[pattern][1 + int(phrasing)]
            literals = [literal for literal, _, _, _ in build._FORMATTER.parse(template)]
            filled = ".+".join(re.escape(literal) for literal in literals)
            assert re.match(filled, question(row)), template


def test_every_kind_of_question_of_the_test_is_trained(rows):
    kinds = {
        split: {(row["meta"]["database"], row["meta"]["pattern"]) for row in found}
        for split, found in rows.items()
    }
    assert kinds["test"] <= kinds["train"]
    assert kinds["validation"] <= kinds["train"]
    assert {database for database, _ in kinds["train"]} == set(text_to_sql.scripts())
    counts = Counter((r["meta"]["database"], r["meta"]["pattern"]) for r in rows["train"])
    # It has two values, and most of its wordings are nearly those of the test.
    assert counts.pop(("orchestra", "no_solo")) == 2
    assert min(counts.values()) >= 5


def test_no_question_is_nearly_one_of_another_split(rows):
    """The leak check that every dataset goes through, over all pairs of splits."""
    asked = {
        split: [said(Row("", "chat", json.dumps(row), row)) for row in found]
        for split, found in rows.items()
    }
    for own, other in itertools.combinations(asked, 2):
        left, right = asked[own], asked[other]
        found = matches(sketch(left), sketch(right), left.__getitem__, right.__getitem__)
        assert [(left[one], right[two]) for one, two in found] == []


def test_all_but_three_queries_of_the_test_are_new(rows):
    trained = {(row["meta"]["database"], query(row)) for row in rows["train"]}
    repeated = sum((row["meta"]["database"], query(row)) in trained for row in rows["test"])
    assert repeated == 3


def test_the_queries_cover_the_kinds_that_are_promised(rows):
    text = [query(row) for row in rows["test"]]
    for part in (
        "count(*)", "max(", "min(", "avg(", "sum(", "group by", "having", " join ", "order by", "limit",
        "distinct", "between", "like", "not in (select", "not in ('", "(select avg(",
    ):  # fmt: skip
        assert sum(part in sql for sql in text) >= 2, part
    assert sum(sql.count(" join ") == 2 for sql in text) >= 5


def test_the_system_message_names_every_table_and_column(rows, connections):
    for row in rows["train"]:
        shown = row["messages"][0]["content"].split("\n")[1:]
        connection = connections[row["meta"]["database"]]
        names = connection.execute("select name from sqlite_master where type = 'table'").fetchall()
        real = [
            f"{name}({' '.join(c[1] for c in connection.execute(f'pragma table_info({name})'))})"
            for (name,) in names
        ]
        assert shown == real
        assert 3 <= len(real) <= 4


def test_the_tables_have_the_promised_sizes(connections):
    for connection in connections.values():
        for (name,) in connection.execute("select name from sqlite_master where type = 'table'"):
            (n_rows,) = connection.execute(f"select count(*) from {name}").fetchone()
            assert 30 <= n_rows <= 200, name


def test_a_column_that_asks_for_too_many_values_is_refused(tmp_path):
    (tmp_path / "schemas").mkdir()
    (tmp_path / "names.yaml").write_text("first: [A]\nlast: [B]\n", encoding="utf-8")
    schema = tmp_path / "schemas" / "small.yaml"
    schema.write_text(
        "tables:\n  t:\n    rows: 3\n    columns:\n      x: 1..2 unique\nvalues: {}\npatterns: {}\n",
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match=r"small\.t\.x: 3 rows, but 2 different values"):
        tables.load_schema(schema)
