"""SQL of the user that spends a minute in one call of a function is ended with its process, and the rest goes on."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from tunesmith.data import databases
from tunesmith.data.check import CheckOptions, check_rows
from tunesmith.data.check.domains import sqlite as judge
from tunesmith.data.grow import AugmentOptions, augment, rename, verify
from tunesmith.data.make import SqlOptions, ddl, make_sql
from tunesmith.data.make import database as made_database
from tunesmith.data.problems import Problems
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.store.sqlite import runner

SLOW = "instr(hex(zeroblob(500000)), hex(zeroblob(250000)) || '1')"
"""One step of SQLite that takes a minute: between its steps nothing can be asked."""


def row(line, sql, question="How many?", **meta):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": sql}]
    value = {"messages": turns, "meta": meta}
    return Row(f"rows.jsonl:{line}", "chat", json.dumps(value), value)


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table item (name text, price int);"
            "insert into item values ('apple', 3), ('pear', 4), ('plum', 5);"
        )
    return path


@pytest.fixture
def slow_column(shop):
    with closing(sqlite3.connect(shop)) as connection:
        connection.execute("create table slow (a int)")
        connection.execute("insert into slow values (1)")
        connection.execute("pragma writable_schema=on")
        text = f"create table slow (a int, b int not null generated always as ({SLOW}) virtual)"
        connection.execute("update sqlite_master set sql = ? where name = 'slow'", (text,))
        connection.commit()
    return shop


@pytest.mark.slow
def test_a_check_names_the_line_of_the_slow_query_and_judges_the_rows_after_it(shop, monkeypatch):
    monkeypatch.setattr(judge, "SECONDS", 0.1)
    queries = ["select name from item", f"select {SLOW}", "select nam from item"]
    rows = [row(line, sql) for line, sql in enumerate(queries, 1)]
    options = CheckOptions(domain="sql", databases={"shop": shop})
    found = [one for one in check_rows(rows, options) if one.check.startswith("sql")]
    assert [(one.where, one.check) for one in found] == [
        ("rows.jsonl:2", "sql-runs"),
        ("rows.jsonl:3", "sql-runs"),
    ]
    assert "ran longer than 0.1 s" in found[0].what
    assert "no such column: nam" in found[1].what


@pytest.mark.slow
def test_after_some_slow_queries_no_more_are_run_and_each_row_says_so(shop, monkeypatch):
    monkeypatch.setattr(judge, "SECONDS", 0.1)
    monkeypatch.setattr(judge, "BUDGET", 20)
    queries = [f"select {SLOW}"] * 4 + ["select nam from item", "select name from item"]
    rows = [row(line, sql) for line, sql in enumerate(queries, 1)]
    options = CheckOptions(domain="sql", databases={"shop": shop})
    found = [one for one in check_rows(rows, options) if one.check.startswith("sql")]
    assert [(one.where.partition(":")[2], one.check) for one in found] == [
        ("1", "sql-runs"),
        ("2", "sql-runs"),
        ("3", "sql-not-run"),
        ("4", "sql-not-run"),
        ("5", "sql-runs"),
        ("6", "sql-not-run"),
    ]
    assert "limits of time or steps ended 2 queries of the rows before" in found[2].what


@pytest.mark.slow
def test_queries_that_take_too_many_steps_use_the_budget_up_more_slowly(shop, monkeypatch):
    monkeypatch.setattr(judge, "_STEPS", 10_000)
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n"
    rows = [row(line, endless) for line in range(1, judge.BUDGET + 3)]
    options = CheckOptions(domain="sql", databases={"shop": shop})
    found = [one.check for one in check_rows(rows, options) if one.check.startswith("sql")]
    assert found == ["sql-runs"] * judge.BUDGET + ["sql-not-run"] * 2


@pytest.mark.slow
def test_tables_of_prompts_are_no_more_made_after_some_that_do_not_end(monkeypatch):
    monkeypatch.setattr(judge, "SECONDS", 0.1)
    monkeypatch.setattr(judge, "BUDGET", 20)
    prompt = "create table t{} as select {} as a; How many?"
    rows = [row(n, f"select a from t{n}", prompt.format(n, SLOW)) for n in range(1, 4)]
    rows.append(row(4, "selec a from t4", prompt.format(4, SLOW)))
    found = list(check_rows(rows, CheckOptions(domain="sql")))
    told = [(one.where, one.check) for one in found if one.check.startswith("sql")]
    assert told == [
        ("rows.jsonl:3", "sql-not-run"),
        ("rows.jsonl:4", "sql-not-run"),
        ("rows.jsonl:4", "sql"),
    ]


@pytest.mark.slow
def test_tables_of_a_prompt_that_take_too_long_are_made_once_and_then_passed_over(monkeypatch):
    monkeypatch.setattr(judge, "SECONDS", 0.1)
    ddl_text = f"create table t as select {SLOW} as a;"
    rows = [row(line, "select a from t", f"{ddl_text} How many?") for line in range(1, 200)]
    rows.append(row(200, "selec a from t", f"{ddl_text} How many?"))
    found = [one for one in check_rows(rows, CheckOptions(domain="sql")) if one.check == "sql"]
    assert [one.where for one in found] == ["rows.jsonl:200"]


@pytest.mark.slow
def test_a_slow_query_is_not_renamed_and_the_next_one_is(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(rename, "SECONDS", 0.1)
    prompt = "item(name price)\n\nHow many items cost {} euros?"
    rows = [
        row(n, sql, prompt.format(n), database="shop")
        for n, sql in ((2, f"select {SLOW} from item"), (3, "select name from item where price=3"))
    ]
    options = AugmentOptions(
        ("rename",), databases={"shop": shop}, databases_folder=tmp_path / "copies"
    )
    slow, other = augment(rows, options)
    assert "the query fails as it is: it ran longer than 0.1 s" in slow.left_out[0].reason
    assert len(other.made) == 1


@pytest.mark.slow
def test_after_some_slow_queries_no_more_are_run_to_rename_them_until_the_next_thousand_rows(
    shop, tmp_path, monkeypatch
):
    monkeypatch.setattr(rename, "SECONDS", 0.1)
    monkeypatch.setattr(rename, "BUDGET", 10)
    monkeypatch.setattr(rename, "BUDGET_ROWS", 5)
    prompt = "item(name price)\n\nHow many items cost {} euros?"
    slow, quick = f"select {SLOW} from item", "select name from item where price={}"
    queries = [slow, f"{slow} ", f"{slow}  ", quick.format(3), quick.format(4), quick.format(5)]
    rows = [row(n, sql, prompt.format(n), database="shop") for n, sql in enumerate(queries, 1)]
    options = AugmentOptions(
        ("rename",), times=2, databases={"shop": shop}, databases_folder=tmp_path / "copies"
    )
    ended = "the query fails as it is: it ran longer than 0.1 s"
    not_run = "not run: limits of time ended 2 queries before it"
    told = [{left.reason for left in one.left_out} for one in augment(rows, options)]
    # The query of a row is run once for both of its new rows.
    assert told == [{ended}, {ended}, {not_run}, {not_run}, {not_run}, set()]


@pytest.mark.slow
def test_a_slow_answer_of_a_model_is_not_kept_and_the_next_one_is(shop, monkeypatch):
    monkeypatch.setattr(verify, "SECONDS", 0.1)
    asked = row(1, "")
    sql = verify.SqlAnswer(databases={"shop": shop})
    assert sql.check(asked, f"select {SLOW}").why == "the query fails: it ran longer than 0.1 s"
    assert sql.check(asked, "select name from item").passed
    sql.close()


@pytest.mark.slow
def test_after_some_slow_answers_no_more_are_run_until_the_next_thousand(shop, monkeypatch):
    monkeypatch.setattr(verify, "SECONDS", 0.1)
    monkeypatch.setattr(verify, "BUDGET", 10)
    monkeypatch.setattr(verify, "BUDGET_ROWS", 4)
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n"
    quick = "select name from item"
    sql = verify.SqlAnswer(databases={"shop": shop})
    asked, own_is_slow = row(1, ""), row(2, endless)
    told = [sql.check(asked, answer).why for answer in (endless, endless, endless, quick)]
    ended, not_run = "ran longer than 0.1 s", "limits of time ended 2 queries before it"
    assert told[:2] == [f"the query fails: it {ended}"] * 2
    assert told[2:] == [f"the query was not run: {not_run}"] * 2
    told = [sql.check(own_is_slow, quick).why for _ in range(4)]
    assert told[:2] == [f"the row's own query fails: it {ended}"] * 2
    assert told[2:] == [f"the query was not run: {not_run}"] * 2
    assert sql.check(asked, quick).passed
    sql.close()


@pytest.mark.slow
def test_a_column_that_computes_for_a_minute_keeps_no_question_from_being_made(
    slow_column, monkeypatch
):
    monkeypatch.setattr(made_database, "MAX_SECONDS", 0.3)
    assert make_sql(slow_column, SqlOptions(n_rows=20)).rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "said"),
    [
        (f"create table a (x int);\ninsert into a values ({SLOW});", r"slow\.sql:2: interrupted"),
        (f"create table a (x int check (x > {SLOW}));", "the table a cannot be filled"),
    ],
)
def test_a_slow_definition_is_named(tmp_path, monkeypatch, script, said):
    monkeypatch.setattr(ddl, "MAX_SECONDS", 0.1)
    path = tmp_path / "slow.sql"
    path.write_text(script)
    with pytest.raises(DataError, match=said):
        make_sql(path)


@pytest.mark.slow
def test_a_slow_script_makes_no_database(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.data.scripts.SCRIPT_SECONDS", 0.1)
    monkeypatch.setattr(runner, "SCRIPT_SECONDS", 0.1)
    path = tmp_path / "slow.sql"
    path.write_text(f"create table t as select {SLOW} as a;")
    with pytest.raises(DataError, match=r"shop cannot be made .*it ran longer than 0\.1 s"):
        databases.make_databases({"shop": path}, None)
    with pytest.raises(DataError, match=r"it ran longer than 0\.1 s"):
        rename.Rename({"shop": path}, tmp_path / "copies", 0)
    options = CheckOptions(domain="sql", databases={"shop": path})
    found = [one.what for one in check_rows([row(1, "select a from t")], options)]
    assert any("cannot be opened: it ran longer than 0.1 s" in what for what in found)


@pytest.mark.slow
def test_a_database_whose_check_does_not_end_is_refused(slow_column, monkeypatch):
    monkeypatch.setattr(databases, "CHECK_SECONDS", 0.1)
    problems = Problems()
    databases.check_databases({"shop": slow_column}, problems)
    with pytest.raises(DataError, match=r"its check was stopped: it ran longer than 0\.1 s"):
        problems.raise_any("mend it")
