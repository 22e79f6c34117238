"""SQL that comes from anywhere makes a database in memory: it reaches no other file, and it ends."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from tunesmith.data.check import CheckOptions, check_rows
from tunesmith.data.check.domains.sqlite import SqliteJudge
from tunesmith.data.grow.rename import Rename
from tunesmith.data.grow.verify import SqlAnswer
from tunesmith.data.rows import Row
from tunesmith.data.scripts import from_script
from tunesmith.errors import ConfigError, DataError

ENDLESS = "with recursive c(n) as (select 1 union all select n + 1 from c) select n from c"
DUMP = """
pragma foreign_keys=off; pragma journal_mode=wal; begin transaction;
create table t (a text); insert into t values ('x'), ('it''s; y'); commit;
"""


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "s.sql"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_dump_with_its_pragmas_and_transaction_is_run(script):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(from_script(script(DUMP)))
        assert connection.execute("select a from t").fetchall() == [("x",), ("it's; y",)]


@pytest.mark.parametrize(
    "statement", ["attach '{path}' as e; create table e.t (a)", "vacuum into '{path}'"]
)
def test_a_script_writes_no_file(script, tmp_path, statement):
    path = tmp_path / "other.sqlite"
    with pytest.raises(sqlite3.Error, match="auth"):
        from_script(script(statement.format(path=path)))
    assert not path.exists()


def test_a_script_without_end_is_ended(script):
    with pytest.raises(sqlite3.Error, match="did not end within 1,000,000 steps"):
        from_script(script(f"create table t as {ENDLESS}"), steps=1_000_000)


def test_the_databases_of_check_and_of_rename_are_made_so(script, tmp_path):
    path = script(f"attach '{tmp_path / 'other.sqlite'}' as e; create table e.t (a)")
    value = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "select 1"}]
    }
    row = Row("a.jsonl:1", "chat", json.dumps(value), {**value, "meta": {}})
    said = list(check_rows([row], CheckOptions(domain="sql", databases={"s": path})))
    assert any("authorized" in one.what for one in said)
    with pytest.raises(DataError, match="authorized"):
        Rename({"s": path}, tmp_path / "copies", 0)
    assert not (tmp_path / "other.sqlite").exists()


@pytest.mark.timeout(60)
def test_tables_of_a_prompt_that_never_end_say_nothing():
    judge = SqliteJudge()
    assert judge.on_schema("select a from t", f"create table t as {ENDLESS};") is None
    known = judge.on_schema("select a from t", "create table t (a);")
    assert known is not None
    assert known.verdict == "fits"
    judge.close()


def test_a_database_whose_rows_wait_beside_it_is_not_taken_for_whole(tmp_path):
    path = tmp_path / "live.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table t (a)")
        connection.commit()
        said = SqliteJudge().run("select a from t", path)
        assert said.verdict == "wrong"
        assert "rows wait in live.sqlite-wal" in said.words
        with pytest.raises(DataError, match="rows wait"):
            Rename({"live": path}, tmp_path / "copies", 0)
        with pytest.raises(ConfigError, match="rows wait"):
            SqlAnswer(databases={"live": path})
    assert SqliteJudge().run("select a from t", path).verdict == "fits"
