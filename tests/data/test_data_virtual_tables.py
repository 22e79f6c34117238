"""SQLite files with tables that a module keeps, such as a full-text index: common, and no damage."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from tunesmith.data.databases import check_databases
from tunesmith.data.make import SqlOptions, make_sql
from tunesmith.data.problems import Problems


def test_a_database_with_a_full_text_index_gives_questions_of_its_other_tables(tmp_path):
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table item (name text, price int);"
            "insert into item values ('apple', 3), ('pear', 4), ('plum', 5);"
            "create virtual table found using fts5(words); insert into found values ('a b');"
        )
    names = {"item": ("thing", "things")}
    rows = make_sql(path, SqlOptions(n_rows=20, names=names)).rows
    assert rows
    assert not any("found" in row["messages"][0]["content"] for row in rows)
    problems = Problems()
    check_databases({"shop": path}, problems)
    assert problems.lines == []
