"""Near-duplicates: what counts as near, and how such rows find each other."""

import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.near import Said, are_near, said
from tunesmith.data.rows import Row
from tunesmith.data.similar import WIDTH, clusters, matches, sketch
from tunesmith.data.wording import is_code, same_word, wording

ROOT = Path(__file__).resolve().parents[2]


def _planted():
    spec = importlib.util.spec_from_file_location(
        "planted", ROOT / "benchmarks" / "data" / "planted.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = module
    spec.loader.exec_module(module)
    return module


planted = _planted()

SAME = [
    ("What is the capital of Texas?", "what is the capital of texas"),
    ("What is the capital of Texas?", "WHAT IS THE  CAPITAL OF TEXAS!!"),
    ("What is the capital of Texas?", "what is the capitol of texas"),
    ("What is the capital of Texas?", "In Texas, what is the capital?"),
    ("What is the capital of Texas?", "Please, what is the capital of Texas? Thank you."),
    ("Why hasn't my card arrived?", "why hasnt my card arrived"),
    ("Which rivers flow through Ohio?", "Which river flows through Ohio?"),
]
DIFFERENT = [
    ("What is the capital of Texas?", "What is the capital of Ohio?"),
    ("Orders above 50 euro", "Orders above 500 euro"),
    ("Can I use my card abroad?", "Can I not use my card abroad?"),
    ("Flights from Boston to Denver", "Flights from Denver to Boston"),
    ("The capital of the largest state", "The state with the largest capital"),
    ("People called 'Ann'", "People called 'Eva'"),
    ("The population of Iran", "The population of Iraq"),
    ("Show the third order", "Show the fourth order"),
    ("my order A17 is late", "my order A18 is late"),
    ("", "What is the capital of Ohio?"),
    ("???", "!!!"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_questions_that_say_the_same_are_near_without_any_answer(one, other):
    assert are_near(Said(one), Said(other))
    assert are_near(Said(other), Said(one))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_questions_that_ask_for_something_else_are_not_near_even_with_equal_answers(one, other):
    assert not are_near(Said(one), Said(other))
    if one:
        assert not are_near(Said(one), Said(other), answers="help")


def test_a_synonym_is_near_only_when_the_answers_say_so():
    one, other = "What is the biggest city of Texas?", "What is the largest city of Texas?"
    query = "SELECT name FROM city WHERE state = 'texas' ORDER BY population DESC LIMIT 1"

    assert are_near(Said(one, query), Said(other, query.lower() + " ;"))
    assert not are_near(Said(one, query), Said(other, query.replace("1", "2")))
    assert not are_near(Said(one), Said(other))


def test_a_paraphrase_is_a_leak_but_no_duplicate():
    answer = "You can cancel it in your account, as long as it has not been sent."
    one, other = Said("cancel order pls", answer), Said("How do I cancel my order?", answer)

    assert not are_near(one, other)
    assert are_near(one, other, answers="help")


def test_a_class_that_many_rows_share_does_not_vouch_for_another_word():
    one, other = (
        Said("Can I return the shoes?", "returns"),
        Said("Can I return the lamp?", "returns"),
    )

    assert not are_near(one, other, common_answer=True)


def test_the_same_question_with_other_answers_is_a_leak_but_no_duplicate():
    one, other = Said("Is it open on Sunday?", "yes"), Said("is it open on sunday", "no")

    assert not are_near(one, other)
    assert are_near(one, other, answers="help")


def test_short_answers_are_not_forgiven_a_letter():
    assert not are_near(
        Said("Where does she live?", "Austin"), Said("where does she live", "Dustin")
    )


def test_long_prompts_that_share_a_schema_are_told_apart_by_their_answers():
    schema = " ".join(
        f"CREATE TABLE table{n} (id INTEGER, name TEXT, size REAL)" for n in range(30)
    )
    one = Said(f"{schema} List all rivers in the north.", "SELECT name FROM river")
    other = Said(f"{schema} Count the cities by state.", "SELECT state, COUNT(*) FROM city")

    assert not are_near(one, other)
    assert not are_near(one, other, answers="help")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("texas", "texsa", True),
        ("largest", "largset", True),
        ("iran", "iraq", False),
        ("card", "cart", False),
        ("north", "south", False),
        ("australia", "austria", False),
        ("information", "infromtion", True),
        ("2024a", "2025a", False),
    ],
)
def test_a_typing_error_is_one_slip_in_a_word_that_is_long_enough(one, other, same):
    assert same_word(one, other) is same
    assert same_word(other, one) is same


def test_a_row_is_compared_without_its_system_message_and_with_its_database():
    def row(system, database):
        turns = [
            {"role": "system", "content": system},
            {"role": "user", "content": "How many?"},
            {"role": "assistant", "content": "SELECT 1"},
        ]
        return Row("f:1", "chat", "", {"messages": turns, "meta": {"database": database}})

    assert said(row("a", "x")) == said(row("b", "x"))
    assert not are_near(said(row("a", "x")), said(row("a", "y")))


def test_a_call_of_a_tool_is_an_answer():
    def row(city):
        call = {"type": "function", "function": {"name": "weather", "arguments": city}}
        turns = [
            {"role": "user", "content": "Weather, please"},
            {"role": "assistant", "tool_calls": [call]},
        ]
        return Row("f:1", "chat", "", {"messages": turns, "meta": {}})

    assert not are_near(said(row("Bonn")), said(row("Rome")))
    assert are_near(said(row("Bonn")), said(row("Bonn")))


def test_sketches_depend_on_their_row_alone():
    rows = [Said(q, a) for q, a in planted.long_texts(20, 3)] + [Said(q) for q, _ in SAME]
    whole = sketch(rows)

    assert whole.shape == (len(rows), WIDTH)
    assert whole.nbytes == 512 * len(rows)
    for size in (1, 3, 7):
        parts = [sketch(rows[at : at + size]) for at in range(0, len(rows), size)]
        assert np.array_equal(np.concatenate(parts), whole)


@given(st.lists(st.tuples(st.text(max_size=80), st.text(max_size=40)), max_size=8))
def test_any_texts_cluster_and_equal_rows_always_do(pairs):
    rows = [Said(*pair) for pair in [*pairs, *pairs]]
    first = clusters(sketch(rows), rows.__getitem__)

    assert all(first[at] <= at and first[first[at]] == first[at] for at in range(len(rows)))
    assert all(first[at + len(pairs)] == first[at] for at in range(len(pairs)))


def test_each_row_of_a_cluster_is_near_to_its_first_so_small_steps_do_not_add_up():
    query = "SELECT name FROM lake"
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]
    others = ["india", "juliet", "kilo", "lima", "mike", "november", "oscar", "papa"]
    chain = [Said(" ".join(others[:n] + words[n:]), query) for n in range(9)]

    first = clusters(sketch(chain), chain.__getitem__)
    assert all(are_near(chain[at], chain[f]) for at, f in enumerate(first) if at != f)
    assert len(set(first.tolist())) > 2
    assert set(clusters(sketch(chain), chain.__getitem__, by="chain").tolist()) == {0}


def test_every_copy_of_a_test_question_is_found_however_many_there_are():
    targets = [Said(f"How much is item {n} in the shop?", f"price {n}") for n in range(50)]
    queries = [Said(f"how much is item {n} in the shop", f"price {n}") for n in range(50)] * 40

    found = dict(
        matches(sketch(queries), sketch(targets), queries.__getitem__, targets.__getitem__)
    )
    assert found == {at: at % 50 for at in range(2000)}


def test_a_thousand_rows_of_one_template_are_not_near_and_cost_few_comparisons():
    rows = [
        Said(f"What is the price of article {n}?", f"SELECT price WHERE id = {n}")
        for n in range(999)
    ]
    asked = []
    first = clusters(sketch(rows), lambda at: asked.append(at) or rows[at])

    assert first.tolist() == list(range(999))
    assert len(asked) < 100


def scores(items, first):
    """(recall of planted copies, share of dropped rows that repeat their row)."""
    n_planted = sum(item.change in planted.CHANGES for item in items)
    dropped = [
        (item, items[at]) for item, at in zip(items, first, strict=True) if items[at] is not item
    ]
    # Equal queries ask the same, whoever wrote them.
    right = [
        item
        for item, kept in dropped
        if item.origin == kept.origin or (item.answer == kept.answer and " " in item.answer)
    ]
    found = [item for item in right if item.change in planted.CHANGES]
    return len(found) / n_planted, len(right) / max(1, len(dropped))


def support_questions():
    """Short questions with one of a few classes, every one about something else."""
    things = [
        "card",
        "statement",
        "transfer",
        "refund",
        "passcode",
        "account",
        "mortgage",
        "voucher",
        "receipt",
        "currency",
    ]
    acts = [
        "order",
        "cancel",
        "replace",
        "activate",
        "verify",
        "print",
        "change",
        "delete",
        "find",
        "share",
    ]
    ends = [
        "from the mobile app",
        "while I am abroad",
        "for my business",
        "within 3 days",
        "after the weekend",
    ]
    return [
        (f"How can I {act} my {thing} {end}?", f"{act}_{thing}")
        for act in acts
        for thing in things
        for end in ends
    ]


def sample_rows():
    """The shipped text-to-SQL questions, each once."""
    import json

    path = ROOT / "src" / "tunesmith" / "data" / "samples" / "text_to_sql" / "train.jsonl"
    rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [(turns[-2]["content"], turns[-1]["content"]) for turns in rows]
    return list(dict.fromkeys(pairs))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("support", support_questions),
        ("sql", sample_rows),
        pytest.param("long", lambda: planted.long_texts(600, 5), marks=pytest.mark.slow),
    ],
)
def test_planted_duplicates_are_found_and_little_else(name, rows):
    items = planted.planted(rows(), name, seed=1)
    rows = [Said(item.question, item.answer) for item in items]

    recall, precision = scores(items, clusters(sketch(rows), rows.__getitem__))

    assert recall >= 0.95
    assert precision >= 0.95


def test_the_words_of_a_templates_slot_are_no_synonyms_but_a_pair_of_words_may_be():
    things = [
        "bottle",
        "candle",
        "drawer",
        "engine",
        "feather",
        "garden",
        "hammer",
        "island",
        "jacket",
        "kettle",
        "ladder",
        "mirror",
    ]
    slot = [Said(f"Can I bring my old {thing} back to the shop?", "returns") for thing in things]
    pair = [
        Said(f"When will the {word} reach my house?", "returns") for word in ("parcel", "package")
    ]
    rows = [*slot, *pair, *(Said(f"Something else about {n} hats", "returns") for n in range(30))]

    first = clusters(sketch(rows), rows.__getitem__)

    assert first.tolist()[: len(slot)] == list(range(len(slot)))
    assert first[len(slot) + 1] == len(slot)


def test_the_order_of_rows_changes_which_is_kept_but_not_what_is_together():
    items = planted.planted(support_questions()[:100], "order", seed=2)
    shuffled = random.Random(4).sample(items, len(items))
    together = []
    for some in (items, shuffled):
        rows = [Said(item.question, item.answer) for item in some]
        first = clusters(sketch(rows), rows.__getitem__, by="chain")
        groups = {}
        for item, at in zip(some, first, strict=True):
            groups.setdefault(int(at), set()).add((item.question, item.answer))
        together.append({frozenset(group) for group in groups.values()})

    assert together[0] == together[1]


def test_a_text_of_many_negations_is_read_in_time_that_grows_with_its_length():
    n_words = 100_000
    guarded = wording("No. " + "not " * n_words + "! Never.").guarded
    assert guarded == {f"not {n}" for n in range(n_words + 2)}


def test_a_query_is_told_from_words_about_one_in_time_that_grows_with_the_length():
    assert is_code("first\nwe select the best rows from here")
    assert is_code("SELECT\na FROM b")
    assert not is_code("from here select\nnothing")
    assert not is_code("select " * 50_000)
