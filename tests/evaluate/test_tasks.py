"""How answers are judged."""

import sqlite3
import typing

import pytest

from tunesmith.config import EvaluateConfig, ExactMatchTask, Settings, SqlExecutionTask
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluate.tasks import TASKS
from tunesmith.evaluate.tasks.exact_match import ExactMatch
from tunesmith.evaluate.tasks.judgement import Example
from tunesmith.evaluate.tasks.sql_execution import SqlExecution, query_in


def example(reference, line=1, **meta):
    return Example(line, ({"role": "user", "content": "?"},), reference, meta)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("db") / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE item (name TEXT, price REAL);"
            "INSERT INTO item VALUES ('apple', 0.5), ('pear', 1.5), ('plum', 1.5);"
        )
    connection.close()
    return path


@pytest.fixture(scope="module")
def task(database):
    config = SqlExecutionTask(kind="sql_execution", timeout_seconds=1.0)
    with SqlExecution(config, {"shop": database}) as found:
        yield found


def judged(task, reference, answer):
    row = example(reference)
    unusable, _ = task.prepare([row])
    assert unusable == []
    return task.judge(row, answer)


def test_every_task_of_the_config_has_a_row_in_the_table_and_the_reverse():
    kinds, pending = set(), [EvaluateConfig.model_fields["task"].annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            kinds.add(typing.get_args(annotation.model_fields["kind"].annotation)[0])
        pending.extend(typing.get_args(annotation))
    assert kinds == set(TASKS)
    for kind in kinds:
        assert TASKS.load(kind).name == kind


def test_an_unknown_task_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'sql_execution'"):
        TASKS.load("sql_exekution")


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ("  SELECT 1 ;\n", "SELECT 1 ;"),
        ("```sql\nSELECT 1;\n```", "SELECT 1;"),
        ("```SQL\nSELECT 1\n```\nThis query ...", "SELECT 1"),
        ("Here it is:\n```\nSELECT 1\n```\nor\n```\nSELECT 2\n```", "SELECT 1"),
        ("```sqlite\nSELECT 1", "SELECT 1"),
        ("```sql SELECT 1```", "SELECT 1"),
        ("```SELECT 1```", "SELECT 1"),
        ("SELECT `name` FROM item", "SELECT `name` FROM item"),
        ("SQL: SELECT 1", "SQL: SELECT 1"),
        ("", ""),
        ("```", ""),
    ],
)
def test_the_query_of_an_answer_is_its_first_code_block_or_all_of_it(answer, query):
    assert query_in(answer) == query


@pytest.mark.parametrize(
    "answer",
    [
        "SELECT name FROM item WHERE price > 1",
        "SELECT name FROM item WHERE price > 1 ORDER BY name DESC;",
        "```sql\nSELECT i.name FROM item AS i WHERE NOT i.price <= 1\n```",
        "VALUES ('plum'), ('pear')",
    ],
)
def test_another_query_with_the_same_rows_is_right(task, answer):
    found = judged(task, "SELECT name FROM item WHERE price = 1.5", answer)
    assert found.correct
    assert found.valid
    assert found.note == ""


def test_the_order_of_rows_does_not_count_even_where_the_reference_has_one(task):
    assert judged(task, "SELECT name FROM item ORDER BY name", "SELECT name FROM item").correct
    reverse = "SELECT name FROM item ORDER BY name DESC"
    assert judged(task, "SELECT name FROM item ORDER BY name", reverse).correct


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ("SELECT name FROM item", "more than 2"),
        ("SELECT name FROM item WHERE name = 'pear'", "1, not 2"),
        ("SELECT name, price FROM item WHERE price > 1", "2 columns, not 1"),
        ("SELECT price FROM item WHERE price > 1", "other values"),
        ("SELECT a.name FROM item AS a, item AS b, item AS c, item AS d", "more than 2"),
    ],
)
def test_other_rows_are_wrong_but_valid(task, answer, note):
    found = judged(task, "SELECT name FROM item WHERE price = 1.5", answer)
    assert (found.correct, found.valid) == (False, True)
    assert note in found.note


@pytest.mark.parametrize(
    "answer",
    ["", "I cannot answer that.", "SELECT nam FROM item", "DELETE FROM item", "SELECT 1; SELECT 1"],
)
def test_what_is_no_query_is_wrong_and_invalid(task, answer):
    found = judged(task, "SELECT name FROM item WHERE price = 1.5", answer)
    assert (found.correct, found.valid) == (False, False)
    assert found.note


def test_an_empty_result_equals_an_empty_result_and_is_pointed_out(task):
    row = example("SELECT name FROM item WHERE price > 100")
    unusable, warnings = task.prepare([row])
    assert unusable == []
    assert any("return no rows" in warning for warning in warnings)
    assert task.judge(row, "SELECT name, price FROM item WHERE 0").correct
    assert not task.judge(row, "SELECT name FROM item").correct
    assert not task.judge(row, "no query").correct


def test_references_that_fail_are_named_with_their_reason(task):
    rows = [example("SELECT 1", 1), example("SELECT x FROM item", 2), example("not sql", 3)]
    unusable, _ = task.prepare(rows)
    assert [row.line for row in unusable] == [2, 3]
    assert "no such column: x" in unusable[0].why


def test_the_reader_sees_the_first_rows_of_a_result(task):
    row = example("SELECT name, NULL FROM item ORDER BY name")
    task.prepare([row])
    assert task.reference_shown(row) == "apple | NULL\npear | NULL\nplum | NULL"
    assert task.judge(row, "SELECT 1 WHERE 0").shown == "no rows"


def test_rows_pick_their_database_and_unknown_ones_are_all_named(database):
    config = SqlExecutionTask(kind="sql_execution")
    with SqlExecution(config, {"shop": database, "other": database}) as task:
        good = example("SELECT count(*) FROM item", 1, database="shop")
        assert task.prepare([good]) == ([], [])
        assert task.judge(good, "SELECT 3").correct
        bad = [example("SELECT 1", 2), example("SELECT 1", 3, database="shopp")]
        with pytest.raises(DataError) as caught:
            task.prepare([good, *bad])
    assert "test.jsonl:2: names no database" in str(caught.value)
    assert "no database 'shopp' (did you mean 'shop'?)" in str(caught.value)


def test_execution_without_a_database_is_refused():
    with (
        SqlExecution(SqlExecutionTask(kind="sql_execution"), {}) as task,
        pytest.raises(DataError, match="no database"),
    ):
        task.prepare([example("SELECT 1")])


def test_exact_match_forgives_white_space_only():
    with ExactMatch(ExactMatchTask(), {}) as task:
        row = example("The  answer\nis 4.")
        assert task.judge(row, " The answer is 4.\n").correct
        assert not task.judge(row, "the answer is 4.").correct
        assert not task.judge(row, "The answer is 4").correct
        assert task.judge(row, " ").note == "an empty answer"
        assert task.judge(row, "The answer is 4.").valid is None


def test_exact_match_forgives_case_when_asked():
    with ExactMatch(ExactMatchTask(ignore_case=True), {}) as task:
        assert task.judge(example("STRASSE"), "straße").correct
        assert not task.judge(example("Yes"), "No").correct


def test_exact_match_cannot_judge_an_empty_reference():
    with ExactMatch(ExactMatchTask(), {}) as task:
        unusable, _ = task.prepare([example("a", 1), example(" \n", 2)])
    assert [row.line for row in unusable] == [2]
