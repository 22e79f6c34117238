"""New rows keep their answer: letter by letter, or by what the queries return."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from random import Random

import pytest
import sqlglot
from hypothesis import given
from hypothesis import strategies as st
from rows_of_text import chat_row

from tunesmith.data.grow import RULES, AugmentOptions, augment
from tunesmith.data.grow.execute import Failed, Found, ReadOnly, same_rows
from tunesmith.data.grow.names import draw_names, other_names
from tunesmith.data.grow.noise import Noise, open_words, vocabulary
from tunesmith.data.grow.paraphrase import TEMPLATES, core
from tunesmith.data.grow.pieces import as_json, put, raw_at, replaced
from tunesmith.data.grow.rename import renamed_query, tables_of
from tunesmith.data.grow.rule import Draw, Made, Unfit
from tunesmith.data.grow.schema_text import name_spans, spliced, statements
from tunesmith.data.grow.shuffle import shuffled
from tunesmith.data.grow.source import grounds_of, read_rows
from tunesmith.data.grow.turns import answers_raw, asks, question_span
from tunesmith.data.rows import Row
from tunesmith.data.samples import text_to_sql
from tunesmith.errors import ConfigError, DataError
from tunesmith.store.sqlite import QueryRunner

COLUMNS = {"station": ("id", "name", "docks"), "ride": ("station", "minutes")}
NAMES = {"station": "stop", "name": "label", "docks": "slots", "minutes": "duration"}


def grown(rows, *rules, **options):
    return list(augment(rows, AugmentOptions(rules, **options)))


@pytest.fixture(scope="module")
def sample_rows():
    return read_rows([text_to_sql.row_files()["train"]])


@pytest.fixture(scope="module")
def renamed(sample_rows, tmp_path_factory):
    """Sixty rows of all databases, each with one renamed copy."""
    folder = tmp_path_factory.mktemp("databases")
    rows = sample_rows[:60]
    options = AugmentOptions(
        ("rename",), databases=text_to_sql.scripts(), databases_folder=folder, seed=3
    )
    return folder, rows, list(augment(rows, options))


# -- edits of JSON text -------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.text(), JSON, st.booleans())
def test_putting_a_field_changes_nothing_else(value, name, new, spaced):
    text = json.dumps(value, indent=1 if spaced else None)
    assert json.loads(put(text, (name,), as_json(new))) == {**value, name: new}


@given(st.lists(JSON, min_size=1, max_size=4), st.data())
def test_replacing_an_item_leaves_the_other_characters(items, data):
    index = data.draw(st.integers(0, len(items) - 1))
    text = json.dumps({"x": items})
    raw = raw_at(text, ("x", index))
    assert json.loads(raw) == items[index]
    assert replaced(replaced(text, ("x", index), "null"), ("x", index), raw) == text


# -- rename -------------------------------------------------------------------------------------


def test_renamed_queries_return_the_same_rows_on_the_sample_databases(renamed):
    folder, rows, made = renamed
    new_rows = [(one.row, new) for one in made for new in one.made]
    assert len(new_rows) >= 0.9 * len(rows)
    with QueryRunner(seconds=5.0) as runner:
        for old, new in new_rows:
            before, after = (
                ReadOnly(folder / f"{row.meta['database']}.sqlite", runner) for row in (old, new)
            )
            left, right = before.run(old.answer), after.run(new.answer)
            assert isinstance(left, Found)
            assert isinstance(right, Found)
            assert same_rows(left, right)
            assert left.rows or before.program(old.answer) == after.program(new.answer)


def test_a_renamed_row_shows_every_name_that_its_query_uses(renamed):
    folder, _, made = renamed
    for one in made:
        for new in one.made:
            tables, _ = tables_of(folder / f"{new.meta['database']}.sqlite")
            system = new.messages[0]["content"]
            for table, columns in tables.items():
                assert f"{table}({' '.join(columns)})" in system
            assert new.messages[1] == one.row.messages[1]
            assert new.answer != one.row.answer or new.messages[0] != one.row.messages[0]


def test_a_renamed_row_says_where_it_comes_from(renamed):
    _, _, made = renamed
    one = next(one for one in made if one.made)
    origin = one.made[0].meta["origin"]
    assert (origin["where"], origin["rule"], origin["seed"]) == (one.row.where, "rename", 3)
    assert "the same" in origin["proof"]
    assert one.made[0].meta["pattern"] == one.row.meta["pattern"]


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("select name from station", "select label from stop"),
        ("SELECT s.Name  FROM Station s", "SELECT s.label  FROM stop s"),
        ("select 'name' from station", "select 'name' from stop"),
        ("select count(*) as docks from station", "select count(*) as slots from stop"),
        ('select "name" from station', 'select "label" from stop'),
        ("select [name] from station", "select [label] from stop"),
        ('select id from ride where 1 = "name"', 'select id from ride where 1 = "name"'),
        (
            "select x.name from (select name from station) as x -- name",
            "select x.label from (select label from stop) as x -- name",
        ),
        (
            "with docks as (select name from station) select * from docks",
            "with slots as (select label from stop) select * from slots",
        ),
    ],
)
def test_names_of_a_query_change_and_nothing_else(sql, wanted):
    assert renamed_query(sql, NAMES, COLUMNS) == wanted


@pytest.mark.parametrize(
    "sql",
    ["", "SELEC name FROM", "select 1; select 2", "drop table station", "select stop from ride"],
)
def test_what_is_no_query_or_would_clash_is_not_renamed(sql):
    assert isinstance(renamed_query(sql, NAMES, COLUMNS), Unfit)


def test_a_query_that_sqlglot_refuses_without_a_word_is_not_renamed(monkeypatch):
    def refuse(*_, **__):
        raise sqlglot.errors.ParseError("")

    monkeypatch.setattr(sqlglot, "parse", refuse)
    unfit = renamed_query("select 1", NAMES, COLUMNS)
    assert unfit == Unfit("the query cannot be parsed: ParseError")


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table item(id integer primary key, name text, price int);"
            "insert into item values (1,'a',5),(2,'b',7);"
            "create table tag(item int references item(id), word text);"
            "create view dear as select name from item where price > 6;"
        )
    return path


def test_rows_whose_query_cannot_be_proved_are_left_out_with_the_reason(shop, tmp_path):
    system = "item(id name price)\ntag(item word)"
    rows = [
        chat_row("How dear?", "select nme from item", system, database="shop"),
        chat_row("Which?", "select name from item", "no schema", database="shop"),
        chat_row("Which?", "select name from item", system, database="other"),
        chat_row("Any cheap?", "select name from item where price < 0", system, database="shop"),
        chat_row("Now?", "select random() from item", system, database="shop"),
        # SQLite reads "word" as text out there; only the compiled programs tell that it was renamed.
        chat_row(
            "None?",
            "select name from item where exists (select 1 from tag where 0) and \"word\" = 'a'",
            system,
            database="shop",
        ),
    ]
    options = {"databases": {"shop": shop}, "databases_folder": tmp_path / "out"}
    reasons = [
        [left.reason for left in one.left_out] for one in grown(rows, "rename", seed=9, **options)
    ]
    assert "no such column: nme" in reasons[0][0]
    assert "does not show" in reasons[1][0]
    assert "names none of the databases" in reasons[2][0]
    assert reasons[3] == []
    assert "returns other rows" in reasons[4][0]
    assert "different programs" in reasons[5][0]


def test_with_one_database_a_row_need_not_name_it(shop, tmp_path):
    asked = ("Names?", "select name from item", "item(id name price)")
    rows = [chat_row(*asked), chat_row(*asked, db_id="other")]
    options = {"databases": {"shop": shop}, "databases_folder": tmp_path / "out"}
    first, second = grown(rows, "rename", **options)
    (new,) = first.made
    assert new.meta["database"].startswith("shop-")
    assert "no field `database`" in second.left_out[0].reason
    two = {**options, "databases": {"shop": shop, "store": shop}}
    (left,) = grown(rows[:1], "rename", **two)[0].left_out
    assert "no field `database`" in left.reason


def test_a_copy_has_the_same_rows_foreign_keys_and_views_under_other_names(shop, tmp_path):
    rows = [chat_row("Names?", "select name from item", "item(id name price)", database="shop")]
    made = grown(
        rows, "rename", times=3, databases={"shop": shop}, databases_folder=tmp_path / "out"
    )[0].made
    assert made
    for new in made:
        with closing(sqlite3.connect(tmp_path / "out" / f"{new.meta['database']}.sqlite")) as copy:
            assert copy.execute(new.answer).fetchall() == [("a",), ("b",)]
            assert copy.execute("select * from dear").fetchall() == [("b",)]
            assert copy.execute("pragma integrity_check").fetchall() == [("ok",)]


def test_names_in_create_table_and_dotted_names_change_but_not_words_of_a_sentence():
    text = (
        "The name of a station. CREATE TABLE station (id INTEGER, name TEXT);\n"
        "create table ride(station integer references station(id), minutes int)\n"
        "ride.station = station.id. Which name has it?"
    )
    new = spliced(text, name_spans(text, COLUMNS), NAMES)
    assert new == (
        "The name of a station. CREATE TABLE stop (id INTEGER, label TEXT);\n"
        "create table ride(stop integer references stop(id), duration int)\n"
        "ride.stop = stop.id. Which name has it?"
    )


@given(st.integers(0, 10_000))
def test_new_names_are_fresh_and_different(seed):
    columns = sorted({c for names in COLUMNS.values() for c in names})
    names = draw_names(COLUMNS, columns, ["label"], Random(seed))
    folded = [new.casefold() for new in names.values()]
    assert names
    assert len(set(folded)) == len(folded)
    assert not set(folded) & {*COLUMNS, *columns, "label"}


@pytest.mark.parametrize("seed", range(40))
def test_a_table_gets_no_name_of_a_column_nor_a_column_one_of_a_table(seed):
    names = draw_names(["branches"], ["zorp"], [], Random(seed))
    assert not re.search("col|field|value", names.get("branches", ""))
    assert not re.search("table|list|rows|all", names.get("zorp", ""))


def test_other_names_hold_the_words_of_the_name_or_synonyms():
    assert other_names("station_name")[0] == "station_label"
    assert "unitPrice" in other_names("unit_price")
    assert all("zorp" in name.casefold() for name in other_names("zorp"))


# -- execution is safe --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "drop table item",
        "insert into item values (3,'c',1)",
        "attach 'x.db' as x",
        "pragma writable_schema=1",
        "pragma table_info(item)",
        "select load_extension('x')",
        "select writefile('x','y')",
        "",
        "select 1; drop table item",
        "with recursive n(i) as (select 1 union all select i+1 from n) select count(*) from n",
        "select zeroblob(2000000000)",
        "\0",
    ],
)
def test_a_query_can_only_read_and_ends(shop, sql):
    with QueryRunner(seconds=0.2) as runner:
        file = ReadOnly(shop, runner)
        assert isinstance(file.run(sql), Failed)
        assert file.run("select count(*) from item") == Found(((2,),), 1)


def test_equal_rows_count_as_often_as_they_occur_and_types_matter():
    one, text = Found(((1,),), 1), Found((("1",),), 1)
    assert not same_rows(one, text)
    assert not same_rows(one, Found(((1,), (1,)), 1))
    assert same_rows(Found(((1, 2), (3, 4)), 2), Found(((3, 4), (1, 2)), 2))


# -- paraphrase, noise, shuffle ----------------------------------------------------------------

QUESTIONS = st.sampled_from(
    [
        "How many bikes were built before 2017?",
        "List the titles of 'Old Wolf' and \"New Fox\".",
        "what is the area of California",
        "Schema: a(b c)\n\nQuestion: Which stations have over 38 docks?",
        "Which shops sell Größe M?",
        "I lost my card. What should I do?",
    ]
)


@given(QUESTIONS, st.integers(0, 10**6), st.sampled_from(["paraphrase", "noise"]))
def test_the_answer_and_all_else_keep_their_characters(question, seed, rule):
    answer = '{"content":"caf\\u00e9 Old 1.0e2","role":"assistant"}'
    turns = '[{"role":"user" ,"content": ' + as_json(question) + "}," + answer + "]"
    text = '{"messages": ' + turns + ', "meta":{"n":1.50}}'
    row = Row("a:1", "chat", text, json.loads(text))
    (one,) = grown([row], rule, seed=seed, times=3)
    for new in one.made:
        assert answers_raw(new) == answers_raw(row)
        assert raw_at(new.text, ("meta", "n")) == "1.50"
        assert new.meta["origin"]["rule"] == rule
        assert new.question != row.question
        undone = replaced(new.text, ("messages", 0, "content"), as_json(question))
        assert undone.startswith(row.text[:-2])
    assert [one.row.text] == [row.text]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_keeps_what_is_asked_about(name):
    texts = [
        "What is the age of Simon Dale?",
        "List the clubs newer than 1960.",
        "Who's the mayor?",
    ]
    fitting = [text for text in texts if TEMPLATES[name].fits(text)]
    assert fitting
    for text in fitting:
        put_so = TEMPLATES[name].put(text)
        assert put_so != text
        assert core(put_so) == core(text)


KINDS = {
    "pair": {
        "prompt": [{"role": "user", "content": "What is dear here?"}],
        "chosen": [{"role": "assistant", "content": "select name from item where price > 6"}],
        "rejected": [{"role": "assistant", "content": "select price from item"}],
    },
    "feedback": {
        "prompt": [{"role": "user", "content": "What is dear here?"}],
        "completion": [{"role": "assistant", "content": "select name from item"}],
        "label": False,
    },
    "problem": {
        "prompt": [{"role": "user", "content": "What is dear here?"}],
        "answer": "select name from item",
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_with_a_question_grows(kind, shop, tmp_path):
    system = {"role": "system", "content": "item(id name price)\ntag(item word)"}
    value = {**KINDS[kind], "meta": {"database": "shop"}}
    value["prompt"] = [system, *value["prompt"]]
    row = Row("a:1", kind, as_json(value), value)
    options = {"databases": {"shop": shop}, "databases_folder": tmp_path / "out", "seed": 2}
    (one,) = grown([row], "paraphrase", "noise", "shuffle", "rename", **options)
    assert [left.reason for left in one.left_out] == []
    for new in one.made:
        rule = new.meta["origin"]["rule"]
        assert (answers_raw(new) == answers_raw(row)) == (rule != "rename")
        assert new.kind == kind
        assert json.loads(new.text) == new.value


def test_plain_text_does_not_grow():
    value = {"text": "What is it?", "meta": {}}
    (one,) = grown([Row("a:1", "text", as_json(value), value)], "paraphrase", "noise", "shuffle")
    assert one.made == ()
    assert len(one.left_out) == 3


def test_a_text_that_is_no_question_is_not_paraphrased():
    (one,) = grown(
        [chat_row("Ich hätte gern ein Bier", "Beer, please", "Translate.")], "paraphrase"
    )
    assert one.made == ()
    assert "plainly" in one.left_out[0].reason


def test_slips_spare_names_numbers_quotes_and_words_of_the_answer():
    question = "Which pretty 'quoted value' stations near Tower_1 in Berlin opened before 2020-01?"
    words = [question[a:b] for a, b in open_words(question, "select Opened from stations")]
    assert words == ["Which", "pretty", "near"]


def test_a_slip_never_makes_a_word_of_another_question():
    row = chat_row("show trial", "x")

    def made(known):
        rule = Noise(known)
        draws = [rule.make(row, Draw(1, Random(seed))) for seed in range(200)]
        return {one.row.question for one in draws if isinstance(one, Made)}

    assert "show trail" in made(frozenset())
    assert "show trail" not in made(vocabulary([row, chat_row("the trail", "y")]))


SYSTEM = "Answer with one query.\nartist(id name country)\nroom(id, theme, floor)\ntour(room day);"


@given(st.integers(0, 10**6))
def test_shuffled_context_holds_the_same_tables_and_columns(seed):
    row = chat_row("Which rooms?", "select theme from room", SYSTEM)
    (one,) = grown([row], "shuffle", seed=seed)
    for new in one.made:
        assert new.messages[1:] == row.messages[1:]
        assert sorted(new.messages[0]["content"]) == sorted(SYSTEM)

        def tables(text):
            lines = text.replace(",", " ").rstrip(";").split("\n")
            return sorted(
                (line.split("(")[0], *sorted(line.rstrip(");").split("(")[-1].split()))
                for line in lines
            )

        assert tables(new.messages[0]["content"]) == tables(SYSTEM)


def test_documents_and_examples_move_whole_unless_an_order_is_asked_about():
    documents = (
        "Document 1: Ada was born\nin 1815.\n\nDocument 2: Bob is old.\n\nDocument 3: C.\n\nWho?"
    )
    moved = [shuffled(documents, is_sql=False, refers=False, rng=Random(seed)) for seed in range(9)]
    assert any(what == ["documents"] for _, what in moved)
    for text, _ in moved:
        assert text.endswith("\n\nWho?")
        assert "Document 1: Ada was born\nin 1815." in text
        assert sorted(text.split("\n\n")) == sorted(documents.split("\n\n"))
    assert shuffled(documents, is_sql=False, refers=True, rng=Random(1))[1] == []
    examples = "Q: 1+1\nA: 2\n\nQ: 2+2\nA: 4\n\nQ: 3+3\nA:"
    for seed in range(5):
        text, _ = shuffled(examples, is_sql=False, refers=False, rng=Random(seed))
        assert text.endswith("\n\nQ: 3+3\nA:")


def test_lines_of_code_are_not_tables():
    row = chat_row("Fix:\nfoo(a, b)\nbar(c, d)", "foo(a, b)")
    (one,) = grown([row], "shuffle")
    assert one.made == ()


def test_statements_are_told_with_and_without_semicolons():
    text = "create table a(x int)\ncreate table b(y text, z int); rest"
    assert [text[s.start : s.end] for s in statements(text)] == [
        "create table a(x int)",
        "create table b(y text, z int);",
    ]


# -- the whole ------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_rows_whatever_their_order(sample_rows):
    rows = sample_rows[:20]
    rules = ("paraphrase", "shuffle")
    forward = {one.row.where: one.made for one in grown(rows, *rules, seed=5, times=2)}
    backward = {one.row.where: one.made for one in grown(rows[::-1], *rules, seed=5, times=2)}
    other = {one.row.where: one.made for one in grown(rows, *rules, seed=6, times=2)}
    assert forward == backward
    assert forward != other


def test_rows_plus_left_out_make_what_was_asked_for(sample_rows):
    for one in grown(sample_rows[:30], "paraphrase", "noise", "shuffle", times=2):
        assert len(one.made) + len(one.left_out) == 3 * 2
        assert all(left.reason for left in one.left_out)
        prompts = [(row.messages[0]["content"], row.question) for row in (one.row, *one.made)]
        assert len(set(prompts)) == len(prompts)


def test_nothing_is_made_that_a_held_out_row_asks():
    row = chat_row("What is the area of Ohio?", "1")
    every = [new for one in grown([row], "paraphrase", times=30) for new in one.made]
    assert len(every) > 8
    for question in ("what is the area of ohio", "Please tell me: what's the area of Ohio?"):
        held = chat_row(question, "1", where="test.jsonl:1")
        (one,) = grown([row], "paraphrase", "noise", times=30, held_out=(held,))
        assert one.made == ()
        assert len(one.left_out) == 60
        assert any("asks nearly the same: test.jsonl:1" in left.reason for left in one.left_out)


def test_a_row_of_which_another_form_is_held_out_makes_nothing():
    row = chat_row("Give the number of all red clubs in the northern league.", "select 1")
    other = chat_row(
        "Please give the number of all red clubs in the northern league.", "x", where="t:1"
    )
    (one,) = augment([row], AugmentOptions(("paraphrase",), 30, 0, (other,)))
    assert one.made == ()
    assert {left.reason for left in one.left_out} == {"a held-out row asks nearly the same: t:1"}


def test_no_new_row_asks_what_another_row_asks():
    rows = [chat_row("What is it?", "1"), chat_row("so, WHAT is it?", "2", where="a.jsonl:2")]
    first, _ = grown(rows, "paraphrase", times=30)
    assert all(new.question.casefold() != "so, what is it?" for new in first.made)
    assert "another row asks the same" in {left.reason for left in first.left_out}


class Parrot:
    """A rule that asks what it was given."""

    name = "parrot"

    def make(self, row, draw):
        return Made(chat_row("How many ducks?", row.answer))

    def close(self):
        pass


def test_no_rule_can_bring_a_held_out_question_in(monkeypatch):
    monkeypatch.setitem(RULES, "parrot", lambda options, rows: Parrot())
    held = chat_row("How many ducks", "2", where="test.jsonl:1")
    (one,) = grown([chat_row("Where is the sea?", "1")], "parrot", held_out=(held,))
    assert [left.reason for left in one.left_out] == ["a held-out row asks the same"]
    assert grown([chat_row("Where is the sea?", "1")], "parrot")[0].made


def test_a_row_made_of_a_made_row_keeps_its_parent():
    row = chat_row("What is the area of Ohio?", "1")
    first = grown([row], "paraphrase")[0].made[0]
    second = grown([first], "noise")[0].made[0]
    assert second.meta["origin"]["parent"] == first.meta["origin"]


def test_an_unknown_rule_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'noise'"):
        grown([], "noize")
    with pytest.raises(ConfigError, match="has no database"):
        grown([], "rename")


def test_a_sealed_test_split_is_not_grown_unless_asked(seal, lines):
    path = lines(
        "a.jsonl", [{"prompt": f"What is {n} + 1?", "completion": str(n + 1)} for n in range(40)]
    )
    sealed = seal({"source": {"kind": "files", "train": [str(path)]}}).artifact.dir
    with pytest.raises(DataError, match="is held out"):
        grounds_of([str(sealed / "test.jsonl")])
    assert grounds_of([str(sealed / "test.jsonl")], may_be_held_out=True).rows
    whole = grounds_of([str(sealed)])
    assert len(whole.rows) + len(whole.held_out) == 40
    assert not {row.text for row in whole.rows} & {row.text for row in whole.held_out}


@given(st.text(max_size=80))
def test_the_question_of_any_text_is_a_part_of_it(text):
    span = question_span(text)
    if span is not None:
        assert text[slice(*span)].strip() == text[slice(*span)] != ""
    asks(text)
