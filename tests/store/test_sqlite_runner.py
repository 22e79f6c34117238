"""Hostile and harmless queries in the isolated process."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

from tunesmith.errors import EnvironmentProblem
from tunesmith.store.sqlite import Base, QueryFailed, QueryRows, QueryRunner, child


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "shop #1 ?.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE item (name TEXT, price REAL, stock INTEGER, picture BLOB);"
            "INSERT INTO item VALUES ('apple', 0.5, 3, x'00ff'), ('pear', 1.5, NULL, NULL);"
            "CREATE VIEW cheap AS SELECT name FROM item WHERE price < 1;"
            "CREATE TRIGGER t INSTEAD OF INSERT ON cheap BEGIN DELETE FROM item; END;"
        )
    connection.close()
    return path


@pytest.fixture(scope="module")
def runner():
    with QueryRunner(seconds=1.0) as found:
        yield found


def digest(path):
    return sha256(path.read_bytes()).hexdigest()


def test_a_query_gives_its_rows_with_their_types(runner, database):
    found = runner.run(database, "SELECT * FROM item ORDER BY name;", max_rows=10)
    rows = (("apple", 0.5, 3, b"\x00\xff"), ("pear", 1.5, None, None))
    assert found == QueryRows(rows, columns=4, more=False)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT name FROM cheap", (("apple",),)),
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<3) SELECT sum(i) FROM n",
            ((6,),),
        ),
        ("VALUES (1), (2)", ((1,), (2,))),
        ('SELECT count(*) FROM item WHERE name = "apple"', ((1,),)),
        ("SELECT 9223372036854775807, 1e999, 'ü\u2028'", ((2**63 - 1, float("inf"), "ü\u2028"),)),
        ("SELECT name FROM item WHERE 0", ()),
        ("-- a remark\nSELECT 1 /* here */ ; -- and there", ((1,),)),
    ],
)
def test_reading_queries_run(runner, database, sql, rows):
    found = runner.run(database, sql, max_rows=10)
    assert isinstance(found, QueryRows), found
    assert found.rows == rows


HOSTILE = [
    "INSERT INTO item VALUES ('x', 1, 1, NULL)",
    "INSERT INTO cheap VALUES ('x')",
    "UPDATE item SET price = 0",
    "DELETE FROM item",
    "DROP TABLE item",
    "CREATE TABLE evil (a)",
    "CREATE TEMP TABLE evil (a)",
    "CREATE TABLE evil AS SELECT * FROM item",
    "ALTER TABLE item RENAME TO evil",
    "ATTACH DATABASE '{out}' AS evil",
    "ATTACH ':memory:' AS evil",
    "DETACH main",
    "VACUUM",
    "VACUUM INTO '{out}'",
    "REINDEX",
    "ANALYZE",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "SAVEPOINT s",
    "PRAGMA query_only=0",
    "PRAGMA writable_schema=1",
    "PRAGMA journal_mode=WAL",
    "PRAGMA user_version=7",
    "PRAGMA table_info(item)",
    "PRAGMA hard_heap_limit=1",
    "SELECT load_extension('/lib/evil.so')",
    "SELECT fts3_tokenizer('simple', x'00')",
    "SELECT writefile('{out}', 'x')",
    "SELECT readfile('/etc/passwd')",
    "SELECT edit('x', 'touch {out}')",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE item",
    "SELECT 1; ATTACH '{out}' AS e; CREATE TABLE e.x(a)",
    "COMMIT; DROP TABLE item",
    "CREATE VIRTUAL TABLE v USING fts5(a)",
    ".shell touch {out}",
    ".output {out}",
    "",
    ";",
    "-- nothing but a remark",
    "hello, here is your query",
    "SELECT \x00 1",
    "SELECT '\ud800'",
    "SELECT nothing FROM item",
    "SELECT" + "(" * 5_000 + "1" + ")" * 5_000,
    "SELECT '" + "a" * 3_000_000 + "'",
    "SELECT zeroblob(2000000000)",
    "SELECT length(randomblob(1000000000))",
    "SELECT replace(hex(zeroblob(400000)), '0', hex(zeroblob(400000)))",
]


@pytest.mark.parametrize("sql", HOSTILE, ids=range(len(HOSTILE)))
def test_everything_else_fails_and_changes_nothing(runner, database, tmp_path, sql):
    before, out = digest(database), tmp_path / "out"
    found = runner.run(database, sql.replace("{out}", str(out)), max_rows=10)
    assert isinstance(found, QueryFailed), found
    assert found.error
    assert digest(database) == before
    assert [p.name for p in tmp_path.iterdir()] == [database.name]
    after = runner.run(database, "SELECT count(*) FROM item", max_rows=10)
    assert after == QueryRows(((2,),), columns=1, more=False)


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n",
        # One call of one function that takes a minute: SQLite itself cannot be stopped in it.
        pytest.param(
            "SELECT instr(hex(zeroblob(500000)), hex(zeroblob(250000)) || '1')",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["endless recursion", "one endless function call"],
)
def test_a_query_without_end_is_stopped_and_the_next_one_runs(database, sql):
    with QueryRunner(seconds=0.2) as runner:
        found = runner.run(database, sql, max_rows=10)
        assert found == QueryFailed("it ran longer than 0.2 s")
        assert isinstance(runner.run(database, "SELECT 1", max_rows=1), QueryRows)


@pytest.mark.slow
def test_a_query_that_takes_all_memory_is_stopped_and_the_next_one_runs(database):
    sql = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 2000) "
        "SELECT hex(randomblob(250000)) AS a FROM n ORDER BY a"
    )
    with QueryRunner(seconds=60) as runner:
        found = runner.run(database, sql, max_rows=100_000)
        assert isinstance(found, QueryFailed)
        assert "memory" in found.error or "larger" in found.error
        assert isinstance(runner.run(database, "SELECT 1", max_rows=1), QueryRows)


def test_a_text_longer_than_the_limit_is_never_built(runner, database):
    found = runner.run(database, "SELECT printf('%2000000000d', 1)", max_rows=1)
    assert found == QueryRows(((None,),), columns=1, more=False)


def test_a_result_that_is_too_large_to_send_is_refused(runner, database):
    sql = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 100) "
        "SELECT hex(zeroblob(250000)) FROM n"
    )
    found = runner.run(database, sql, max_rows=1_000)
    assert found == QueryFailed("its result is larger than 16 MiB")


def test_no_more_rows_are_fetched_than_asked_for(runner, database):
    sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT i FROM n"
    assert runner.run(database, sql, max_rows=2) == QueryRows(((1,), (2,)), 1, more=True)
    assert runner.run(database, "SELECT 1", max_rows=1) == QueryRows(((1,),), 1, more=False)


def test_a_file_that_is_no_database_fails_each_query(runner, tmp_path):
    path = tmp_path / "text.sqlite"
    path.write_text("this is not a database, only some text\n" * 50)
    assert isinstance(runner.run(path, "SELECT 1 FROM item", max_rows=1), QueryFailed)
    assert isinstance(runner.run(tmp_path / "absent", "SELECT 1", max_rows=1), QueryFailed)
    assert not (tmp_path / "absent").exists()


def test_text_that_is_not_utf8_stays_distinct(runner, tmp_path):
    path = tmp_path / "bytes.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t AS SELECT CAST(x'ff41' AS TEXT) AS a")
    connection.close()
    assert runner.run(path, "SELECT a FROM t", max_rows=1) == QueryRows((("\\xffA",),), 1, False)


def test_the_process_ends_with_the_runner(database):
    with QueryRunner(seconds=1) as runner:
        runner.run(database, "SELECT 1", max_rows=1)
        child = runner._child
        assert child is not None
        assert child.poll() is None
    assert child.poll() is not None


def test_a_process_that_does_not_start_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with (
        QueryRunner(seconds=1) as runner,
        pytest.raises(EnvironmentProblem, match="no process can be started") as caught,
    ):
        runner.run(tmp_path / "x", "SELECT 1", max_rows=1)
    assert "/bin/false" in caught.value.why
    monkeypatch.setattr("sys.executable", str(tmp_path / "absent"))
    with QueryRunner(seconds=1) as runner, pytest.raises(EnvironmentProblem, match="No such file"):
        runner.run(tmp_path / "x", "SELECT 1", max_rows=1)


def test_a_process_that_was_killed_from_outside_is_started_again(database):
    with QueryRunner(seconds=1) as runner:
        runner.run(database, "SELECT 1", max_rows=1)
        runner._child.kill()
        runner._child.wait()
        assert isinstance(runner.run(database, "SELECT 1", max_rows=1), QueryRows)


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n"
SLOW = "SELECT instr(hex(zeroblob(500000)), hex(zeroblob(250000)) || '1')"


def test_a_query_may_have_so_many_steps(database):
    with QueryRunner(seconds=60, steps=50_000) as runner:
        found = runner.run(database, ENDLESS, max_rows=1)
        assert found == QueryFailed("it did not end within 50,000 steps of SQLite")
        assert found.kind == "steps"


def test_what_a_script_makes_is_only_read_and_made_again_after_a_death(tmp_path):
    script = tmp_path / "s.sql"
    script.write_text(
        "create table t (a); insert into t values (1); create temp view t as select 2"
    )
    with QueryRunner(seconds=1) as runner:
        for _ in range(2):
            found = runner.run(Base.of(script), "select a from t", max_rows=1)
            assert found == QueryRows(((1,),), 1, more=False)
            written = runner.run(Base.of(script), "delete from t", max_rows=1)
            assert isinstance(written, QueryFailed)
            runner._child.kill()
            runner._child.wait()


def test_a_database_that_cannot_be_opened_says_so_of_itself(tmp_path):
    (tmp_path / "s.sql").write_text("create tabel t (a)")
    with QueryRunner(seconds=1) as runner:
        for path in (tmp_path / "s.sql", tmp_path / "absent.sql"):
            found = runner.run(Base.of(path), "select 1", max_rows=1)
            assert isinstance(found, QueryFailed)
            assert found.is_opening


def test_more_databases_than_are_held_open_all_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.store.sqlite.runner._MAX_OPEN", 2)
    paths = [tmp_path / f"{n}.sqlite" for n in range(4)]
    for n, path in enumerate(paths):
        with sqlite3.connect(path) as connection:
            connection.execute(f"CREATE TABLE t AS SELECT {n} AS a")
        connection.close()
    with QueryRunner(seconds=5) as runner:
        for n, path in [*enumerate(paths), (0, paths[0])]:
            assert runner.run(path, "SELECT a FROM t", max_rows=1).rows == ((n,),)


def test_the_reply_to_an_interrupted_question_answers_no_other(database):
    main = threading.get_ident()
    with QueryRunner(seconds=1) as runner:
        runner.run(database, "SELECT 1", max_rows=1)
        timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            runner.run(database, ENDLESS, max_rows=1)
        timer.join()
        assert runner.run(database, "SELECT 7", max_rows=1).rows == ((7,),)


def test_a_copy_of_a_runner_in_a_forked_process_leaves_the_child_alone(database):
    with QueryRunner(seconds=1) as runner:
        runner.run(database, "SELECT 1", max_rows=1)
        before = runner._child.pid
        if not (pid := os.fork()):
            found = runner.run(database, "SELECT 2", max_rows=1)
            is_own = found.rows == ((2,),) and runner._child.pid != before
            runner.close()
            os._exit(0 if is_own else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert runner.run(database, "SELECT 3", max_rows=1).rows == ((3,),)
        assert runner._child.pid == before


@pytest.mark.slow
def test_a_child_in_an_endless_call_ends_by_itself_when_its_parent_is_killed(database):
    program = (
        "import sys; from pathlib import Path; from tunesmith.store.sqlite import QueryRunner\n"
        "runner = QueryRunner(1.0); path = Path(sys.argv[1])\n"
        "runner.run(path, 'SELECT 1', max_rows=1); print(runner._child.pid, flush=True)\n"
        "runner.run(path, sys.argv[2], max_rows=1)"
    )
    asked = [sys.executable, "-c", program, str(database), SLOW]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    for _ in range(200):
        if is_gone(child):
            return
        time.sleep(0.05)
    raise AssertionError("it still runs")


def is_gone(pid):
    """Ended; where nobody waits for orphans it stays as a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
def test_a_system_without_a_timer_of_its_own_ends_a_slow_call_too(database):
    program = (
        "import runpy, signal, sys; del signal.setitimer; "
        f"sys.argv = ['child', '{2**28}']; runpy.run_path(r'{child.__file__}', run_name='__main__')"
    )
    requests = [
        {"do": "open", "kind": "file", "text": str(database), "seconds": 1, "steps": None},
        {"do": "run", "sql": SLOW, "values": [], "mode": "read", "max_rows": 1, "seconds": 0.1, "steps": None},
    ]  # fmt: skip
    lines = "".join(json.dumps({"base": 1, "drop": [], **one}) + "\n" for one in requests)
    found = subprocess.run(
        [sys.executable, "-c", program], input=lines, text=True, check=False, capture_output=True
    )
    assert found.returncode == child.OUT_OF_TIME, found.stderr
