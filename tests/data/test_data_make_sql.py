"""Questions over the user's own database: true, run, and never at the cost of the database."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.make import SqlOptions, make_sql, read_names, words_used, write
from tunesmith.data.make.database import open_database
from tunesmith.data.make.english import is_cryptic, plural, singular, words_of
from tunesmith.errors import BusyError, ConfigError, DataError, MissingError

SHOP = """
create table author (id integer primary key, name text, country text, born integer);
create table book (id integer primary key, title text, author_id integer references author(id), pages integer,
                   price real, published_at date, is_signed integer);
create table "order item" ("select" text, amount integer);
insert into author values
  (1, 'Ada Hill', 'Norway', 1950), (2, 'Ben Stone', 'Peru', 1961), (3, 'Cy Lake', 'Norway', 1970);
insert into book values
  (1, 'Old Sea', 1, 120, 9.5, '2021-03-01', 1), (2, 'Red Fox', 1, 240, 12.0, '2021-08-05', 0),
  (3, 'Tall Elm', 2, 310, 15.5, '2022-01-09', 0), (4, 'Grey Owl', 2, 95, 8.0, '2023-11-30', 1),
  (5, 'Blue Bay', 1, 180, null, '2023-12-24', 0);
insert into "order item" values ('O''Neil', 3), ('semi;colon', 5), ('O''Neil', 4), ('O''Neil', 9), ('semi;colon', 1);
"""


def database(path, script):
    """A SQLite file made of a script."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path


@pytest.fixture
def shop(tmp_path):
    return database(tmp_path / "shop.sqlite", SHOP)


def pairs(made):
    return {(r["messages"][-2]["content"], r["messages"][-1]["content"]) for r in made.rows}


def test_every_query_runs_and_gives_what_its_question_asks_for(shop):
    made = make_sql(shop, SqlOptions(n_rows=400))
    connection = sqlite3.connect(shop)

    assert len(made.rows) > 150
    for _, query in pairs(made):
        rows = connection.execute(query).fetchall()
        assert rows
        assert all(cell is not None for row in rows for cell in row)
    connection.close()


@pytest.mark.parametrize(
    ("question", "query"),
    [
        ("How many authors are there?", "select count(*) from author"),
        ("Which author has the most books?", "order by count(*) desc limit 1"),
        ("How many books are signed?", "is_signed = 1"),
        ("What is the average price of the books?", "avg(price)"),
        ("Which books do not exist?", None),
    ],
)
def test_questions_are_in_plain_english_with_the_names_as_words(shop, question, query):
    found = dict(pairs(make_sql(shop, SqlOptions(n_rows=2_000))))

    assert (question in found) == (query is not None)
    if query:
        assert query in found[question]


def test_no_question_follows_a_key_as_if_it_were_a_number(shop):
    text = " ".join(question for question, _ in pairs(make_sql(shop, SqlOptions(n_rows=2_000))))

    assert "author id" not in text
    assert " id " not in text


def test_joins_follow_declared_keys_and_keys_that_are_found(tmp_path):
    path = database(
        tmp_path / "rides.sqlite",
        "create table station (id integer primary key, name text);"
        "create table ride (station integer, minutes integer);"
        "insert into station values (1, 'Mill'), (2, 'Park'), (3, 'Gate');"
        "insert into ride values (1, 5), (1, 9), (2, 7), (1, 12);",
    )

    made = make_sql(path)

    assert made.facts["links"] == ["ride.station -> station.id (found: all values are there)"]
    assert (
        "Which stations have no rides?",
        "select station.name from station where station.id not in "
        "(select ride.station from ride where ride.station is not null)",
    ) in pairs(make_sql(path, SqlOptions(n_rows=500)))


def test_a_tie_makes_no_question_with_one_answer(tmp_path):
    path = database(
        tmp_path / "tie.sqlite",
        "create table town (name text, size integer); create table visitor (name text);"
        "insert into town values ('A', 5), ('B', 5), ('C', 5), ('D', 5), ('E', 5), ('F', 5), ('G', 1);",
    )

    made = make_sql(path, SqlOptions(n_rows=500))

    assert not [query for _, query in pairs(made) if "desc limit" in query]
    assert "a tie" in {gone.reason.partition(":")[0] for gone in made.dropped}
    assert [gone.reason for gone in made.dropped if gone.what == "visitor"] == [
        "the table has no rows"
    ]


def test_rows_that_share_a_thing_are_not_counted_as_things(tmp_path):
    path = database(
        tmp_path / "rivers.sqlite",
        "create table river (river_name text, length integer, traverse text);"
        "insert into river values ('Ohio', 100, 'X'), ('Ohio', 100, 'Y'), ('Red', 70, 'X'), ('Red', 70, 'Z');",
    )

    made = make_sql(path)

    assert not [q for q in pairs(made) if "count(*)" in q[1]]
    assert "rivers are not counted" in made.notes[0]


def test_equal_seeds_give_equal_rows_and_others_do_not(shop):
    first, again = (make_sql(shop, SqlOptions(n_rows=60, seed=4)).rows for _ in range(2))

    assert first == again
    assert first != make_sql(shop, SqlOptions(n_rows=60, seed=5)).rows


def test_each_row_says_where_it_comes_from(shop):
    rows = make_sql(shop, SqlOptions(n_rows=100)).rows
    assert rows
    for row in rows:
        meta = row["meta"]
        assert meta["source"] == "shop.sqlite"
        assert meta["where"].startswith("shop.sqlite#")
        assert meta["database"] == "shop"


def test_templates_or_tables_are_held_out_whole(shop):
    by_template = make_sql(shop, SqlOptions(n_rows=300, hold_out="templates")).rows
    sides = Counter((r["meta"]["template"], r["meta"]["split"]) for r in by_template)
    assert len({template for template, _ in sides}) == len(sides)
    assert {split for _, split in sides} == {"train", "validation", "test"}

    ratios = {"test": 0.3}
    by_table = make_sql(shop, SqlOptions(n_rows=300, hold_out="tables", ratios=ratios)).rows
    held = {r["meta"]["where"] for r in by_table if r["meta"]["split"] == "test"}
    names = {name for where in held for name in where.split("#")[1].split(",")}
    trained = {r["meta"]["where"] for r in by_table if r["meta"]["split"] == "train"}
    tables = {name for where in trained for name in where.split("#")[1].split(",")}
    assert len(names - tables) >= 1
    assert not held & trained


def test_the_prompt_shows_the_tables_as_asked(shop):
    def system(schema):
        return make_sql(shop, SqlOptions(n_rows=1, schema=schema)).rows[0]["messages"][0]["content"]

    assert "author(id name country born)" in system("compact")
    assert "create table author" in system("ddl").lower()
    assert system("none") == "Answer with one SQLite query."


def test_cryptic_names_are_asked_for_and_then_used(tmp_path):
    path = database(
        tmp_path / "cryptic.sqlite",
        "create table customer (name text, xq2 integer, sold integer);"
        "insert into customer values ('Ann', 1, 7), ('Bob', 2, 9), ('Cyd', 5, 8);",
    )

    made = make_sql(path)
    assert "customer.xq2, customer.sold" in made.notes[0]
    assert not [q for q in pairs(made) if "xq2" in q[1]]
    assert "customer.xq2: ~" in words_used(path)

    (tmp_path / "names.yaml").write_text(
        "customer.xq2: credit limit\ncustomer: [client, clients]\n"
    )
    named = make_sql(path, SqlOptions(names=read_names(tmp_path / "names.yaml")))
    assert "What is the highest credit limit of all clients?" in dict(pairs(named))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("customr: x\n", "customr"),
        ("author: [1]\n", "author"),
        ("- a\n", "mapping"),
        ("a: [b", "YAML"),
    ],
)
def test_a_slip_in_the_names_is_refused(shop, tmp_path, text, said):
    (tmp_path / "names.yaml").write_text(text)

    with pytest.raises(ConfigError, match=said):
        make_sql(shop, SqlOptions(names=read_names(tmp_path / "names.yaml")))


def test_names_and_values_that_need_quotes_are_quoted(shop):
    queries = [query for _, query in pairs(make_sql(shop, SqlOptions(n_rows=2_000)))]

    assert any('from "order item"' in query and "'O''Neil'" in query for query in queries)


DDL = """
-- tables of a library; here and there a ; in a comment
/* and ' one */
BEGIN;
CREATE TABLE member (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT UNIQUE, joined_at DATE);
CREATE TABLE loan (id INTEGER PRIMARY KEY, member_id INTEGER NOT NULL REFERENCES member(id),
  status TEXT CHECK (status IN ('open', 'closed; late')), fee DECIMAL(6,2));
CREATE TRIGGER t AFTER INSERT ON loan BEGIN SELECT 1; SELECT 2; END;
CREATE VIEW v AS SELECT 1;
COMMIT;
"""


def test_a_ddl_is_filled_with_rows_that_keep_to_it(tmp_path):
    (tmp_path / "library.sql").write_text(DDL)
    made = make_sql(tmp_path / "library.sql", keep=tmp_path / "library.sqlite")

    connection = sqlite3.connect(tmp_path / "library.sqlite")
    assert connection.execute("select count(*) from loan").fetchone() == (40,)
    assert connection.execute("pragma foreign_key_check").fetchall() == []
    statuses = connection.execute("select distinct status from loan order by 1").fetchall()
    assert statuses == [("closed; late",), ("open",)]
    for _, query in pairs(made):
        connection.execute(query)
    connection.close()
    assert made.rows == make_sql(tmp_path / "library.sql").rows


POSTGRES = """
SET statement_timeout = 0;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE public.users (id SERIAL PRIMARY KEY, full_name character varying(50) NOT NULL,
  created_at timestamp with time zone DEFAULT now(), balance numeric(10,2) DEFAULT 0.00::numeric);
CREATE TABLE public.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  user_id integer REFERENCES public.users(id), tags text[], state mood);
ALTER TABLE public.orders OWNER TO me;
COMMENT ON TABLE users IS 'x; y';
"""
MYSQL = """
CREATE TABLE `users` (`id` int unsigned NOT NULL AUTO_INCREMENT,
  `full_name` varchar(50) COLLATE utf8mb4_bin NOT NULL COMMENT 'a; b',
  `created_at` datetime DEFAULT now(), PRIMARY KEY (`id`), KEY `idx` (`full_name`))
  ENGINE=InnoDB AUTO_INCREMENT=7 DEFAULT CHARSET=utf8mb4;
CREATE TABLE `orders` (`id` int PRIMARY KEY, `user_id` int, `state` enum('new','old') DEFAULT 'new',
  CONSTRAINT `c` FOREIGN KEY (`user_id`) REFERENCES `users` (`id`));
"""


@pytest.mark.parametrize("script", [POSTGRES, MYSQL], ids=["postgres", "mysql"])
def test_tables_of_other_databases_are_understood(tmp_path, script):
    (tmp_path / "dump.sql").write_text(script)
    made = make_sql(tmp_path / "dump.sql", SqlOptions(n_rows=300))

    assert made.facts["tables"] == ["users", "orders"]
    assert made.facts["links"] == ["orders.user_id -> users.id"]
    assert "What is the latest creation date of all users?" in dict(pairs(made))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("select 1;", "no CREATE TABLE"),
        ("", "no CREATE TABLE"),
        ("create table a (x int);\n\ncreate tabel b (y int);", r":3: near .tabel."),
        ("attach 'other.db' as o; create table a (x int);", ":1: not allowed"),
        ("create virtual table a using fts5(x);", "not allowed"),
        ("create table a (x int check (x > 5 and x < 5));", "cannot be filled"),
        pytest.param(
            "create table a (x int); insert into a values (1), (2), (3), (4), (5), (6), (7), (8), (9);"
            "insert into a select b.x from a b, a c, a d, a e, a f, a g, a h, a i, a j;",
            "interrupted",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_bad_script_is_one_error_with_its_line(tmp_path, script, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.sql").write_text(script)

    with pytest.raises(DataError, match=said):
        make_sql(tmp_path / "bad.sql")
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize(
    "piece",
    [
        "'",
        '"',
        "/*",
        "--",
        "[",
        "`",
        "(",
        "enum('a'  ",
        ")engine ",
        "::a ",
        ", key a (",
        "default now(",
        "comment '",
    ],
)
def test_a_script_of_nonsense_is_refused_in_time_that_grows_with_its_length(tmp_path, piece):
    (tmp_path / "bad.sql").write_text(f"create table t (x {piece * 4_000}")

    with pytest.raises(DataError):
        make_sql(tmp_path / "bad.sql")


def test_a_missing_an_empty_and_a_foreign_file_are_each_one_error(tmp_path):
    with pytest.raises(MissingError):
        make_sql(tmp_path / "none.sqlite")
    for name, data, said in (
        ("empty.db", b"", "an empty file"),
        ("junk.db", b"\x7fELF\0\0junk", "no SQLite database"),
        ("junk.sql", b"\xff\xfe\0\0", "NUL"),
        ("latin.sql", b"create table caf\xe9 (x int)", "not UTF-8"),
        (
            "torn.db",
            b"SQLite format 3\0" + b"\1" * 5_000,
            "cannot read it|not a database|malformed",
        ),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=said):
            make_sql(tmp_path / name)
    with pytest.raises(DataError, match="a folder"):
        make_sql(tmp_path)


def test_a_damaged_database_is_an_error(shop):
    data = bytearray(shop.read_bytes())
    data[4096 + 3 : 4096 + 60] = b"\xff" * 57
    shop.write_bytes(data)

    with pytest.raises(DataError):
        make_sql(shop)


def test_a_database_without_tables_or_rows_is_an_error(tmp_path):
    for name, script in (
        ("no.db", "create table t (x int); drop table t;"),
        ("rows.db", "create table t (x int);"),
    ):
        database(tmp_path / name, script)
        with pytest.raises(DataError, match="no question could be made"):
            make_sql(tmp_path / name)


def test_a_locked_database_and_one_with_work_left_are_refused_and_not_touched(shop):
    holder = sqlite3.connect(shop, isolation_level=None)
    holder.execute("begin exclusive")
    with pytest.raises(BusyError, match="locked"):
        make_sql(shop)
    holder.execute("rollback")
    holder.execute("pragma journal_mode = wal")
    holder.execute("insert into author values (9, 'New', 'Peru', 1990)")
    with pytest.raises(DataError, match="rows wait in shop"):
        make_sql(shop)
    holder.close()


def test_reading_leaves_the_folder_and_the_file_as_they_were(shop):
    before, names = shop.read_bytes(), sorted(shop.parent.iterdir())
    make_sql(shop, SqlOptions(n_rows=50))

    assert shop.read_bytes() == before
    assert sorted(shop.parent.iterdir()) == names


HOSTILE = """
create table evil (name text, cost integer generated always as
  (length(replace(hex(zeroblob(2000)), '0', 'ab'))) virtual);
insert into evil(name) values ('a'), ('b'), ('c');
create view endless as with recursive c(n) as (select 1 union all select n + 1 from c) select n from c;
create trigger boom after insert on evil begin delete from evil; end;
create table big (name text, body text);
insert into big values ('x', hex(zeroblob(900000))), ('y', 'short');
create table "a""b'); drop table evil; --" (name text, size integer);
insert into "a""b'); drop table evil; --" values ('p', 1), ('q', 2), ('r', 3);
create table "Übung" ("Größe" integer, name text);
insert into "Übung" values (4, 'x'), (5, x'ff00'), (6, cast(x'80' as text));
"""


def test_a_hostile_database_is_read_within_limits_or_refused(tmp_path):
    path = database(tmp_path / "hostile.sqlite", HOSTILE)

    made = make_sql(path, SqlOptions(n_rows=300))

    connection = sqlite3.connect(path)
    assert connection.execute("select count(*) from evil").fetchone() == (3,)
    for _, query in pairs(made):
        assert len(query) < 1_000
        connection.execute(query).fetchall()
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "insert into author values (8, 'x', 'y', 1)",
        "attach 'other.db' as other",
        "attach ':memory:' as other",
        "pragma journal_mode = wal",
        "pragma query_only = off",
        "create temp table t (x int)",
        "select load_extension('x')",
        pytest.param(
            "with recursive c(n) as (select 1 union all select n + 1 from c) select count(*) from c",
            marks=pytest.mark.slow,
        ),
        "select length(zeroblob(1000000000))",
        "vacuum into 'copy.db'",
    ],
)
def test_no_statement_does_more_than_read_within_limits(shop, statement, monkeypatch):
    monkeypatch.chdir(shop.parent)
    before = shop.read_bytes()
    with open_database(shop) as database, pytest.raises(sqlite3.Error):
        database.rows(statement)

    assert shop.read_bytes() == before
    assert [path.name for path in shop.parent.iterdir()] == ["shop.sqlite"]


def test_a_database_whose_names_say_nothing_asks_for_words(tmp_path):
    (tmp_path / "odd.sql").write_text("create table tbx (name text, size int);")

    with pytest.raises(DataError, match="no question") as caught:
        make_sql(tmp_path / "odd.sql")
    assert "such as tbx" in str(caught.value)


def test_large_values_are_cut_before_they_are_read(tmp_path):
    path = tmp_path / "fat.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("create table story (title text, body text, size int)")
    connection.executemany(
        "insert into story values (?, ?, ?)", ((f"S{n}", "x" * 90_000, n) for n in range(20))
    )
    connection.commit()
    connection.close()

    made = make_sql(path, SqlOptions(n_rows=200))
    assert max(len(question) for question, _ in pairs(made)) < 200


def test_too_few_tables_to_hold_some_out_is_an_error(tmp_path):
    (tmp_path / "one.sql").write_text("create table town (name text, size int);")

    with pytest.raises(DataError, match="cannot be divided into 3 splits"):
        make_sql(tmp_path / "one.sql", SqlOptions(hold_out="tables"))


def test_a_column_that_takes_too_long_to_read_is_left_out_and_named(tmp_path, monkeypatch):
    from tunesmith.data.make import database

    path = tmp_path / "large.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("create table town (name text, size integer)")
    connection.executemany("insert into town values (?, ?)", ((f"t{n}", n) for n in range(3_000)))
    connection.commit()
    connection.close()
    monkeypatch.setattr(database, "MAX_STEPS", 3_000)

    made = make_sql(path)

    assert {row["meta"]["shape"] for row in made.rows} == {"count_all"}
    assert {gone.what for gone in made.dropped if "too long to read" in gone.reason} == {
        "town.name",
        "town.size",
    }


@given(data=st.binary(max_size=300), at=st.integers(0, 4_000))
def test_any_damage_gives_rows_or_an_error_of_ours(tmp_path_factory, data, at):
    path = tmp_path_factory.mktemp("damage") / "shop.sqlite"
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "create table t (name text, n int); insert into t values ('a', 1), ('b', 2);"
    )
    content = bytearray(connection.serialize())
    connection.close()
    content[at : at + len(data)] = data
    path.write_bytes(content)

    with contextlib.suppress(DataError, BusyError):
        make_sql(path, SqlOptions(n_rows=5))


@pytest.mark.parametrize(
    ("name", "words", "many"),
    [
        ("customerId", "customer id", "customer ids"),
        ("ORDER_ITEMS", "order items", "order items"),
        ("city", "city", "cities"),
        ("person", "person", "people"),
        ("box", "box", "boxes"),
        ("date of birth", "date of birth", "dates of birth"),
        ("shipped_at", "shipping date", "shipping dates"),
    ],
)
def test_names_become_words(name, words, many):
    assert words_of(name) == words
    assert plural(singular(words)) == many


@pytest.mark.parametrize(
    "one", ["city", "box", "address", "person", "bus", "house", "child", "movie", "status", "quiz"]
)
def test_the_singular_of_a_plural_is_the_word_itself(one):
    assert singular(plural(one)) == one
    assert singular(one) == one


def test_what_is_no_english_is_told():
    assert [w for w in ("xq2", "rgn", "sold", "population", "lo elev", "tax", "speed", "") if is_cryptic(w)] == [
        "xq2", "rgn", "sold", "lo elev", "",
    ]  # fmt: skip


def test_files_are_written_whole_and_folders_only_when_new(shop, tmp_path):
    made = make_sql(shop, SqlOptions(n_rows=60, hold_out="templates"))
    files = write(made, tmp_path / "out", dropped=tmp_path / "dropped.jsonl")

    assert [file.name for file in files] == ["train.jsonl", "validation.jsonl", "test.jsonl"]
    assert sum(file.read_text().count("\n") for file in files) == len(made.rows)
    dropped = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert len(dropped) == len(made.dropped)
    assert all(set(one) == {"where", "what", "reason"} for one in dropped)
    with pytest.raises(ConfigError, match="holds files already"):
        write(made, tmp_path / "out")


def test_making_rows_needs_no_heavy_package():
    code = "import sys, tunesmith.data.make; print({'numpy', 'torch', 'pyarrow', 'jsonschema'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"


def test_a_foreign_key_to_a_column_with_repeated_values_is_not_joined(tmp_path):
    path = tmp_path / "twice.sql"
    path.write_text(
        "create table town (id integer primary key, name text, region text);"
        "create table house (id integer primary key, name text, region text references town(region));"
        "insert into town values (1, 'Arden', 'north'), (2, 'Bellmore', 'north'), (3, 'Carrick', 'south');"
        "insert into house values (1, 'Old Mill', 'north'), (2, 'New Mill', 'south'), (3, 'Inn', 'north');"
    )
    made = make_sql(path, SqlOptions(n_rows=400))
    assert made.facts["links"] == []
    assert not any(" join " in query for _, query in pairs(made))


def test_a_large_insert_is_read_in_one_pass(tmp_path):
    path = tmp_path / "large.sql"
    values = ", ".join(f"({n}, 'Name {n}; it''s', 'Arden')" for n in range(20_000))
    path.write_text(
        f"create table person (id integer, name text, town text);\ninsert into person values {values};\n"
    )
    assert make_sql(path, SqlOptions(n_rows=5)).rows


def test_either_of_two_values_are_two(tmp_path):
    path = tmp_path / "one.sql"
    path.write_text(
        "create table lamp (id integer primary key, name text, colour text);"
        "insert into lamp values (1, 'Sun', 'red'), (2, 'Moon', 'red'), (3, 'Star', ' odd '), (4, 'Sky', ' odd ');"
    )
    queries = [query for _, query in pairs(make_sql(path, SqlOptions(n_rows=400)))]
    assert any("colour = 'red'" in query for query in queries)
    assert not any("in ('red', 'red')" in query for query in queries)


def test_no_question_is_asked_whose_answer_hangs_on_blanks_or_case(tmp_path):
    path = tmp_path / "lamp.sql"
    path.write_text(
        "create table lamp (id integer primary key, name text, colour text, room text);"
        "insert into lamp values (1, 'Sun', 'red', 'hall'), (2, 'Moon', 'Red', 'hall'), (3, 'Star', 'blue', ''),"
        " (4, 'Sky', 'blue', null), (5, 'Day', 'blue', 'attic'), (6, 'Night', 'blue', 'attic');"
    )
    queries = {query for _, query in pairs(make_sql(path, SqlOptions(n_rows=400)))}
    assert any("where room = 'hall'" in query for query in queries)
    assert not any(
        "room is null" in query or "distinct room" in query or "'Star'" in query
        for query in queries
    )
    assert not any("where colour" in query or "by colour" in query for query in queries)
