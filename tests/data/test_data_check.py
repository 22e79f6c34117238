"""Checks: what is right stays unnamed, parts equal the whole, the score adds up, the door works."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import sqlite3
from itertools import pairwise

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rows_of_text import chat_row

from tunesmith.cli.data.check import check
from tunesmith.config import recipe_from
from tunesmith.data.check import (
    CHECKS,
    Checker,
    CheckOptions,
    Finding,
    Tally,
    check_places,
    check_rows,
    score,
    tell_domains,
)
from tunesmith.data.check.finding import shortened
from tunesmith.data.check.text import in_answer, in_text
from tunesmith.data.rows import Row
from tunesmith.errors import ConfigError, MissingError


def chat(question, answer, line=1, file="rows.jsonl", **meta):
    return chat_row(question, answer, where=f"{file}:{line}", **meta)


def checks_of(row, **options):
    return {found.check for found in Checker(CheckOptions(**options)).see(row)}


NOTHING_WRONG = [
    "I'm sorry to hear that your card was stolen. I can block it for you.",
    "I cannot recommend this film enough: it is wonderful.",
    "L'été, le café était fermé; naïve Ærø, Ünïcode, «ça va», Ångström, São Paulo.",
    "Â is the 1st letter of Âge, and Ã stands in São.",
    "你好，世界。 👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿 می‌خواهم",
    "a < b && c > d; x <- 5; if (a<b) then 1",
    "AT&T and R&D, fish & chips",
    "The list [a, b] holds 2 items; see [1].",
    "Dear Ms Gray,\nthank you for your order.\nBest, Tom",
    "Usage: run it, then stop it.",
]


@pytest.mark.parametrize("answer", NOTHING_WRONG)
def test_usual_texts_have_no_faults(answer):
    assert list(in_text(answer, about_markup=False)) == []
    assert list(in_answer(answer)) == []


REFUSALS = [
    "I'm sorry, but I can't assist with that request.",
    "I am sorry, I cannot do this.",
    "As an AI language model, I don't have feelings.",
    "I cannot provide medical advice.",
    "Sorry, I'm not able to help you there.",
    "I’m sorry, but I can’t help with that.",
    "Lo siento, pero no puedo ayudarte.",
    "Es tut mir leid, aber ich kann das nicht.",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_told_in_its_usual_wordings(answer):
    assert [fault.check for fault in in_answer(answer)] == ["refusal"]


def test_tags_are_no_remains_where_the_row_speaks_of_html():
    assert "html" in checks_of(chat("What is this?", "It is <b>bold</b>."))
    assert "html" not in checks_of(chat("Write HTML for bold.", "It is <b>bold</b>."))


def test_an_answer_that_was_marked_as_bad_is_not_held_to_what_is_learned():
    value = {
        "prompt": [{"role": "user", "content": "Help me with it?"}],
        "completion": [{"role": "assistant", "content": "I'm sorry, but I can't help with that."}],
        "label": False,
        "meta": {},
    }
    bad = Row("rows.jsonl:1", "feedback", "", value)
    good = Row("rows.jsonl:1", "feedback", "", {**value, "label": True})

    assert checks_of(bad) == set()
    assert checks_of(good) == {"refusal"}


SQL_RIGHT = [
    "SELECT 1",
    "select count(*) from tour where day > '2024-09-01';",
    'SELECT a.x FROM t AS a WHERE a.s = "arizona" ;',
    "WITH c AS (SELECT id FROM t) SELECT * FROM c JOIN u ON u.id = c.id",
    "```sql\nSELECT name FROM bike\n```",
    "INSERT INTO t (a) VALUES (1)",
    "SELECT question, answer FROM faq WHERE id = 3",
    "CREATE TABLE a (b INTEGER); INSERT INTO a VALUES (1);",
    "SELECT DATE_TRUNC('month', d)::date FROM sales LIMIT 5",  # PostgreSQL
    "SELECT TOP 5 name FROM people ORDER BY age DESC",  # T-SQL
    "SELECT `name` FROM `people` LIMIT 5, 10",  # MySQL
    "SELECT T2.name, count(*) FROM a AS T1 JOIN b AS T2 ON T1.id = T2.id GROUP BY T1.id",
    "SELECT i FROM a WHERE the_value = 1",
    "select i.id, you.id from items i join youtubers you on i.a = you.a",
    "SELECT 'I am sorry, I cannot' AS apology",
    "-- how many\nSELECT count(*) FROM t",
    "EXPLAIN QUERY PLAN SELECT * FROM t",
    "SELECT DATEADD(day, 1, GETDATE())",  # T-SQL
    "SELECT e.a FROM e WHERE e.b >= NOW() - INTERVAL '1 year'",
    "SELECT a, ROW_NUMBER() OVER (PARTITION BY b ORDER BY c) AS rn FROM t QUALIFY rn = 1",
    "SHOW TABLES",
    "TRUNCATE TABLE t",
    "GRANT SELECT ON t TO bob",
    "CREATE OR REPLACE VIEW v AS SELECT 1 AS a",
]
SQL_WRONG = [
    "SELEC * FORM x",
    "SELECT I am sorry, I cannot",
    "I am sorry, I cannot",
    "SELECT name",
    "SELECT name FROM",
    "SELECT * FROM a WHERE",
    "The query is SELECT 1",
    "SELECT (1",
    "SELECT the answer FROM your table",
    "DROP everything",
    "select",
    "SELECT 'open FROM t",
    "select all the names from the table",
    "show me the data",
    "CREATE a table with names",
    "drop it",
    "DELETE everything from t",
    "SELECT * FROM t LIMIT five rows",
    "FROM t SELECT a",
    "SELECT a, FROM t",
    "REPLACE(name, 'a', 'b')",
]


@pytest.mark.parametrize("sql", SQL_RIGHT)
def test_sql_of_the_usual_dialects_passes(sql):
    assert checks_of(chat("Which?", sql), domain="sql") == set()


@pytest.mark.parametrize("sql", SQL_WRONG)
@pytest.mark.parametrize("dialect", ["auto", "sqlite", "postgres", "tsql"])
def test_what_is_no_sql_fails_in_every_dialect(sql, dialect):
    assert "sql" in checks_of(chat("Which?", sql), domain="sql", dialect=dialect)


@pytest.fixture
def shop(tmp_path):
    script = tmp_path / "shop.sql"
    script.write_text("create table item (id, name); insert into item values (1, 'pen');")
    return script


def test_a_query_is_run_where_there_is_a_database_and_writes_nothing(shop):
    options = CheckOptions(domain="sql", databases={"shop": shop})
    checker = Checker(options)

    def said(sql):
        return [(one.check, one.what) for one in checker.see(chat("Which?", sql))]

    assert said("select name from item") == []
    assert said("select name from item where id = 9")[0][0] == "sql-no-rows"
    assert "no such column: nam" in said("select nam from item")[0][1]
    assert "not authorized" in said("delete from item")[0][1]
    assert "not authorized" in said("attach 'x.sqlite' as x")[0][1]
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n"
    assert "steps" in said(endless)[0][1]
    assert said("select name from item") == []


def test_an_unknown_dialect_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="postgres"):
        Checker(CheckOptions(domain="sql", dialect="postgrs"))


def test_a_row_that_names_a_database_is_sql_whatever_the_other_rows_are(shop):
    options = CheckOptions(databases={"shop": shop}).told({"": "none"})
    said = Checker(options).see(chat("Which?", "SELEC * FORM x", database="shop"))

    assert [one.check for one in said] == ["sql"]


def test_rows_from_python_are_held_to_the_rules_of_turns_too():
    def said(*turns):
        value = {"messages": [dict(zip(("role", "content"), t, strict=True)) for t in turns]}
        return checks_of(Row("rows.jsonl:1", "chat", "", {**value, "meta": {}}))

    asked, told = ("user", "Is it so?"), ("assistant", "It is so.")
    assert said(asked, told) == set()
    assert said(asked, ("assistant", " ")) == {"empty"}
    assert said(("user", None), told) == {"empty"}
    assert said(told, asked) == {"roles"}
    assert said(asked) == {"roles"}
    assert said(("robot", "Hi."), told) == {"roles"}


PYTHON_RIGHT = [
    "x = 1",
    "```python\ndef f():\n    return 1\n```\nIt returns one.",
    "    return a + b",  # goes on after its prompt
    ">>> 1 + 1\n2",
    "%matplotlib inline\nimport math",
    "await f()",
    "    if x:\n        y = 1",
]


@pytest.mark.parametrize("code", PYTHON_RIGHT)
def test_python_in_its_usual_forms_compiles(code):
    assert checks_of(chat("def add(a, b):\n", code), domain="python") == set()


def test_a_domain_is_told_from_most_answers_for_each_task():
    rows = [chat("Which?", f"select {i} from t", i, task="sql") for i in range(9)]
    rows += [chat("Which?", f"Take the {i}th.", 10 + i, task="talk") for i in range(9)]
    rows.append(chat("Which?", "SELEC * FORM x", 20, task="sql"))

    assert tell_domains(rows) == {"sql": "sql", "talk": "none"}
    assert [f.where for f in check_rows(rows, CheckOptions()) if f.check == "sql"] == [
        "rows.jsonl:20"
    ]


BROKEN_SQL = [
    "SELEC * FORM x",
    "SELECT I am sorry, I cannot",
    "selec name from users",
    "SELECT name FORM users",
    "selct name fro users where id = 3",
    "SELECT name FROM users; I hope this helps you",
    "INSRT INTO t VALUES (1)",
    "DELET FROM t",
    "UPDATE t SE x = 1",
    "creat table t (id int, n text",
]
NO_SQL = [
    "Select the blue button from the menu, then press OK.",
    "Select Options (gear icon) from menu",
    "Select values (or records) from array- or table-like data given integer selection indices.",
    "SELECT ONE OF THE FOLLOWING",
    "Select * from the keypad to continue",
    "Insert card into reader.",
    "Insert into the slot the card.",
    "Delete from the list all that you want.",
    "Update the app and set a new password.",
    "UPDATE: Your order has shipped.",
    "Updated set of tools; see below;",
    "Create table bookings online",
    "Created from form X",
    "Elect a chair from among you",
    "With love from Mary as (always) yours",
]


def mixed(answers, n_others):
    """Rows of several kinds, the answers among them."""
    others = ["It is blue.", '{"a": 1}', "def f(x):\n    return x\n", "Paris", "Take the 3rd."]
    rows = [chat("Which?", answer, n + 1) for n, answer in enumerate(answers)]
    return rows + [chat(f"What {n}?", others[n % 5], len(answers) + n + 1) for n in range(n_others)]


@pytest.mark.parametrize("n_others", [0, 3, 8])
def test_an_answer_that_was_meant_to_be_sql_is_an_error_in_mixed_rows_too(n_others):
    for answer in BROKEN_SQL:
        rows = mixed([answer], n_others)
        options = CheckOptions().told(tell_domains(rows))
        found = [f for f in check_rows(rows, options) if f.check == "sql"]
        assert [(f.where, f.severity) for f in found] == [("rows.jsonl:1", "error")], answer


def text(said, line=1, **meta):
    value = {"text": said, "meta": meta}
    return Row(f"rows.jsonl:{line}", "text", json.dumps(value), value)


@pytest.mark.parametrize("n_others", [0, 3, 8])
def test_a_text_that_was_meant_to_be_sql_is_an_error_in_mixed_rows_too(n_others):
    others = [text(f"It is the {n}th.", n + 2) for n in range(n_others)]
    for said in BROKEN_SQL:
        found = [f for f in check_rows([text(said), *others], CheckOptions()) if f.check == "sql"]
        assert [(f.where, f.field) for f in found] == [("rows.jsonl:1", "text")], said
    for said in NO_SQL:
        rows = [text(said), *others]
        assert not [f for f in check_rows(rows, CheckOptions()) if f.check.startswith("sql")], said


def test_a_text_about_other_things_that_shows_broken_sql_is_no_sql():
    shown = "What not to write:\n```\nSELECT * FORM t\n```\nIt is misspelt."
    rows = [text(shown), *(text(f"It is the {n}th.", n + 2) for n in range(8))]
    assert not [f for f in check_rows(rows, CheckOptions()) if f.check.startswith("sql")]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": "It is so{}"}, "text"),
        ({"question": "Who?", "sql": "select a from t{}"}, "sql"),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b{}"},
                ]
            },
            "messages",
        ),
        ({"prompt": "Who?", "chosen": "It is so{}", "rejected": "no"}, "chosen"),
    ],
)
def test_a_finding_of_all_rows_about_an_answer_names_the_field_of_the_file(tmp_path, row, name):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row).replace("{}", end) + "\n" for end in ("", "", " ")))
    found = []
    check_places(path, each=found.append)
    assert [(f.where, f.field) for f in found if f.check == "white-space"] == [(f"{path}:3", name)]


@pytest.mark.parametrize(
    ("value", "said", "shown"),
    [("null", "not a string but null", ""), ("5", "not a string but a number", "'5'")],
)
def test_a_value_of_another_type_is_named_in_the_words_of_json_and_shown_once(
    tmp_path, value, said, shown
):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "It is so."}}\n{{"text": {value}}}\n')
    found = []
    check_places(path, each=found.append)
    assert [(f.field, f.what, f.value) for f in found if f.check == "schema"] == [
        ("text", said, shown)
    ]


@pytest.mark.parametrize("n_others", [0, 3, 8])
def test_an_instruction_is_no_sql(n_others):
    for answer in NO_SQL:
        rows = mixed([answer], n_others)
        found = [f.what for f in check_rows(rows, CheckOptions()) if f.check.startswith("sql")]
        assert found == [], answer


@pytest.mark.parametrize(
    ("question", "answer", "is_echo"),
    [
        ("same", "same", True),
        ("Same ", "same", True),
        ("Hello!", "hello!", False),
        ("7", "7", False),
        ("same", "other", False),
    ],
)
def test_a_short_answer_that_repeats_its_question_is_told(question, answer, is_echo):
    assert ("equal-turns" in checks_of(chat(question, answer))) == is_echo


def test_a_class_that_is_called_as_its_text_is_no_echo():
    assert "equal-turns" not in checks_of(chat("refund", "refund", label="refund"))


SOME = "the cat and dog is on a mat sorry der und \u200b é <br> nan"
WORDS = st.lists(st.sampled_from(SOME.split(" ")))
ROWS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from(["", "a", "b"])), max_size=40)


@given(ROWS, st.lists(st.integers(0, 40), max_size=4))
def test_parts_merged_in_order_find_what_the_whole_finds(said, cuts):
    rows = [
        chat(" ".join(question), " ".join(answer), line, "ab"[line % 3 == 0], task=task)
        for line, (question, answer, task) in enumerate(said, 1)
    ]
    options = CheckOptions(domain="none")
    whole = Checker(options)
    found = [one for row in rows for one in whole.see(row)] + whole.finish()
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    merged, parts = Checker(options), []
    for start, end in pairwise(bounds):
        part = Checker(options)
        parts += [one for row in rows[start:end] for one in part.see(row)]
        merged.merge(pickle.loads(pickle.dumps(part)))

    assert parts + merged.finish() == found
    assert merged.n_rows == len(rows)


def test_parts_of_several_files_keep_their_places():
    first, second = Checker(CheckOptions()), Checker(CheckOptions())
    first.see(chat("Is it?", "It is so.", 1, "a"))
    first.see(chat("Was it?", "It was so.", 2, "a"))
    second.see(chat("Will it?", "It will.", 7, "b"))
    second.see(chat("Is it?", "It is so.", 8, "b"))
    second.see(chat("Was it?", "It was not.", 9, "a"))
    first.merge(second)

    named = [(f.check, f.where, f.what) for f in first.finish() if f.where in ("b:8", "a:9")]

    assert named == [
        ("duplicate", "b:8", "the same row as a:1"),
        ("contradiction", "a:9", "the same prompt as a:2, another answer"),
    ]


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_checked_without_a_crash_and_shown_without_control_characters(question, answer):
    for domain in ("none", "sql", "python", "json"):
        checker = Checker(CheckOptions(domain=domain))
        found = checker.see(chat(question, answer)) + checker.finish()
        assert all(one.check in CHECKS for one in found)
        assert all(one.value.isprintable() for one in found)


@given(st.text(), st.integers(0, 500))
def test_a_shown_value_is_short_and_printable(text, at):
    shown = shortened(text, at)

    assert shown.isprintable()
    assert len(shown) <= 60 * 10 + 4


def rows_of(n, label=None):
    numbers = random.Random(0)
    return [
        chat(f"Question {i} of {numbers.random()}?", label or f"It is {i} and {i * 7} then.", i)
        for i in range(1, n + 1)
    ]


def checks_over(rows, **options):
    return {(f.check, f.severity) for f in check_rows(rows, CheckOptions(**options))}


def test_too_few_rows_are_red_under_a_hundred_and_yellow_under_a_thousand():
    few, some, many = rows_of(99), rows_of(100), rows_of(1_000)

    assert ("too-few-rows", "error") in checks_over(few)
    assert ("too-few-rows", "warning") in checks_over(some)
    assert not any(check == "too-few-rows" for check, _ in checks_over(many))
    assert score(check_rows(few, CheckOptions()), 99).colour == "red"
    assert score(check_rows(some, CheckOptions()), 100).colour == "yellow"
    assert score(check_rows(many, CheckOptions()), 1_000).colour == "green"


def test_a_classification_wants_rows_of_each_class_and_not_a_thousand():
    rows = rows_of(150, "spam") + [chat(f"Ham {i}?", "ham", 200 + i) for i in range(60)]
    found = list(check_rows(rows, CheckOptions()))

    assert [f.what for f in found if f.check == "too-few-of-a-class"] == [
        "1 of 2 classes with fewer than 100 rows: ham 60"
    ]
    assert not any(f.check == "too-few-rows" for f in found)


def test_what_is_allowed_is_not_reported_and_costs_nothing():
    rows = rows_of(1_000)
    rows[5] = chat("Do it?", "I'm sorry, but I can't help with that.", 6)

    assert ("refusal", "warning") in checks_over(rows)
    assert ("refusal", "warning") not in checks_over(rows, allow=frozenset({"refusal"}))


def finding(check, severity, where):
    return Finding(where, check, severity, "", "", "what", "fix")


@given(
    st.lists(
        st.builds(
            finding,
            st.sampled_from(sorted(CHECKS)),
            st.sampled_from(["error", "warning", "note"]),
            st.sampled_from(["d", "d:1", "d:2", "d:3"]),
        )
    ),
    st.integers(0, 1_000),
)
def test_the_score_is_100_less_the_points_of_its_reasons_and_counts_every_finding(found, n_rows):
    result = score(found, n_rows)

    assert result.points == max(0, round(100 - sum(reason.points for reason in result.reasons)))
    assert sum(reason.findings for reason in result.reasons) == len(found)
    assert all(0 <= reason.share <= 1 for reason in result.reasons)
    if result.colour == "green":
        assert not any(one.severity == "error" for one in found)


def test_a_row_with_two_findings_of_a_check_counts_once_in_its_share():
    tally = Tally()
    for where in ("d:1", "d:1", "d:2"):
        tally.add(finding("html", "warning", where))

    (reason,) = tally.score(100).reasons
    assert (reason.rows, reason.findings, reason.share, reason.points) == (2, 3, 0.02, 2.0)


def test_one_check_takes_no_more_than_its_most():
    def lost(severity, *places):
        (reason,) = score([finding("html", severity, place) for place in places], 100).reasons
        return reason.points

    every = [f"d:{line}" for line in range(1, 101)]
    assert lost("warning", "d:1") == 1
    assert lost("error", "d:1") == 4
    assert (lost("warning", *every), lost("error", *every), lost("note", *every)) == (25, 60, 0)
    assert (lost("warning", "d"), lost("error", "d"), lost("note", "d")) == (10, 40, 0)


def test_a_name_of_a_check_that_is_not_known_is_refused():
    recipe = recipe_from({"data": {"check": {"allow": ["refusals"]}}})
    with pytest.raises(ConfigError, match="did you mean 'refusal'"):
        CheckOptions.of(recipe)


def run(*words, **others):
    return CliRunner().invoke(check, [*map(str, words), "--no-model"], **others)


@pytest.fixture
def faulty(lines):
    rows = [
        {"prompt": f"Is {i} a prime number?", "completion": f"I say that {i} is."}
        for i in range(120)
    ]
    rows[9] = "{"
    rows[10] = {"prompt": "Is 10 a prime number?", "completion": "I say\u200b that 10 is."}
    return lines("faulty.jsonl", rows)


def test_strict_ends_with_the_code_of_wrong_data(faulty, lines):
    clean = lines(
        "clean.jsonl",
        [{"prompt": f"Is {i} odd?", "completion": f"It is: {i}."} for i in range(120)],
    )

    assert run(faulty).exit_code == 0
    assert run(faulty, "--strict").exit_code == 3
    assert run(clean, "--strict").exit_code == 0
    assert run(clean, "--strict-warnings").exit_code == 3  # fewer than a thousand rows


def test_every_finding_is_written_and_those_beyond_the_shown_are_counted(lines, tmp_path):
    path = lines(
        "a.jsonl", [{"prompt": f"Tag {i}?", "completion": f"<p>{i}</p>"} for i in range(150)]
    )
    out = tmp_path / "deep" / "findings.jsonl"
    result = run(path, "--out", out)
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    assert sum(one["check"] == "html" for one in written) == 150
    assert "and 147 more of html" in result.output
    assert result.output.count("html") < 10


def test_a_check_says_where_private_data_is_looked_for(faulty):
    assert "data clean FILE --pii mask --secrets mask" in run(faulty).stderr
    assert "--pii" not in run(faulty, "--json").output


def test_stdin_and_a_file_give_the_same_report(faulty):
    of_file = json.loads(run(faulty, "--json").stdout)
    of_pipe = json.loads(run("-", "--json", input=faulty.read_bytes()).stdout)

    assert of_file["score"] == of_pipe["score"]
    (reason,) = [one for one in of_pipe["reasons"] if one["check"] == "invisible-characters"]
    assert reason["first"][0]["where"] == "stdin:11"
    assert reason["first"][0]["field"] == "completion"


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(lines):
    rows = [{"prompt": f"Is {i % 700} odd?", "completion": f"<p>{i}</p>"} for i in range(1_500)]
    path = lines("many.jsonl", rows)
    one, two = (run(path, "--json", "--all", "--processes", n).stdout for n in (1, 2))

    assert json.loads(one) == json.loads(two)


def test_a_sealed_dataset_and_its_recipe_are_checked_with_their_databases(
    seal, lines, shop, tmp_path
):
    base = tmp_path / "shop.sqlite"
    with contextlib.closing(sqlite3.connect(base)) as connection:
        connection.executescript(shop.read_text())
    queries = ["select name from item", "select nam from item"]
    rows = [
        {"prompt": f"Item {i}?", "completion": queries[i == 7] + f" where id < {i}"}
        for i in range(30)
    ]
    source = {"kind": "files", "train": str(lines("rows.jsonl", rows))}
    section = {"source": source, "databases": {"shop": str(base)}}
    of_recipe = check_places(recipe=recipe_from({"data": section}))
    of_sealed = check_places(seal(section).artifact.dir)

    for result in (of_recipe, of_sealed):
        (wrong,) = result.tally.first["sql-runs", "error"]
        assert "no such column: nam" in wrong.what
        assert result.n_rows == 30


def test_databases_are_named_by_the_command_or_by_their_files_and_each_by_one_name(lines, tmp_path):
    for folder, column in (("a", "name"), ("b", "price")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "shop.sql").write_text(f"create table item ({column} text);")
    asked = {"prompt": "What?", "completion": "select price from item"}
    path = lines("rows.jsonl", [{**asked, "database": name} for name in ("shop", "other")])
    one, other = tmp_path / "a" / "shop.sql", tmp_path / "b" / "shop.sql"
    words = ["--set", "check.domain=sql", "--json"]
    found = run(path, "--database", one, "--database", f"other={other}", *words)
    (wrong,) = [r for r in json.loads(found.stdout)["reasons"] if r["check"] == "sql-runs"]
    assert [one["where"].rpartition(":")[2] for one in wrong["first"]] == ["1"]
    twice = run(path, "--database", one, "--database", other)
    assert twice.exit_code == 2
    assert "two are called 'shop'" in " ".join(twice.output.replace("│", " ").split())


def test_a_missing_database_is_refused_before_any_row_is_read(lines, tmp_path):
    path = lines("rows.jsonl", [{"prompt": "a", "completion": "b"}])

    with pytest.raises(MissingError, match=r"nope\.sqlite"):
        run(path, "--database", tmp_path / "nope.sqlite", catch_exceptions=False)


def test_rows_that_the_recipe_leaves_out_are_counted_and_not_checked(lines):
    rows = [{"prompt": f"Is {i}?", "completion": f"<p>{i}</p>", "good": i < 3} for i in range(9)]
    path = str(lines("rows.jsonl", rows))
    result = check_places(path, recipe=recipe_from({"data": {"require": {"good": True}}}))

    assert (result.n_rows, result.n_left_out) == (3, 6)
    assert result.tally.findings["html", "warning"] == 3


@pytest.mark.parametrize("name", ["label", "sentiment", "topic", "label_text"])
def test_a_text_with_two_classes_is_a_contradiction_and_no_duplicate(name):
    checker = Checker(CheckOptions(domain="none"))
    for line, said in enumerate(("good", "bad", "good"), 1):
        value = {"text": "It arrived in two days.", "meta": {name: said}}
        checker.see(Row(f"a:{line}", "text", json.dumps(value), value))
    found = [(one.check, one.where) for one in checker.finish()]
    assert [one for one in found if one[0] in ("duplicate", "contradiction")] == [
        ("duplicate", "a:3"),
        ("contradiction", "a:2"),
    ]


@pytest.mark.parametrize(
    ("rows", "unusable"),
    [([], 0), (["{", "{"], 2), (['{"x": 1}', '{"x": 2}'], 2), (["{", '{"prompt": "a"}'], 2)],
)
def test_a_file_of_which_nothing_can_be_used_scores_nothing(tmp_path, rows, unusable):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows))
    result = check_places(path)
    assert (result.n_unusable, result.score.points, result.score.colour) == (unusable, 0, "red")
    assert sum(reason.points for reason in result.score.reasons) >= 100


def test_a_finding_names_the_part_of_a_question_that_has_the_fault(lines):
    good = {"instruction": "Say it shortly.", "input": "It came late.", "output": "late"}
    rows = [good, {**good, "input": "<p>It came</p>"}, {**good, "instruction": "Say <p>it</p>."}]
    found = []
    check_places(lines("rows.jsonl", rows), each=found.append)
    assert [(f.where[-1], f.field) for f in found if f.check == "html"] == [
        ("2", "input"),
        ("3", "instruction"),
    ]


def test_the_name_of_a_missing_field_is_not_shown_as_its_value(lines):
    found = []
    rows = [{"instruction": "a", "output": "b"}] * 3 + [{"instruction": "a"}]
    check_places(lines("rows.jsonl", rows), each=found.append)
    (one,) = [f for f in found if "the field 'output' is missing" in f.what]
    assert (one.field, one.value) == ("output", "")


def test_a_refusal_among_answers_in_json_is_named_and_one_that_is_quoted_is_not():
    quoted = json.dumps({"reply": "I am sorry, I cannot help with that."})
    rows = [chat(f"Item {n}?", json.dumps({"item": n}), n) for n in range(1, 20)]
    rows += [chat("Item 20?", "I am sorry, I cannot help with that.", 20), chat("x", quoted, 21)]
    found = [f for f in check_rows(rows, CheckOptions()) if f.check in ("refusal", "json")]
    assert [(f.where, f.check) for f in found] == [
        ("rows.jsonl:20", "refusal"),
        ("rows.jsonl:20", "json"),
    ]
