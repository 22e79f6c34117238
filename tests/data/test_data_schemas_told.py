"""Files with names of their own: what is told from them, from a few mapped fields, and what is said when that fails."""

from __future__ import annotations

import pytest
from rows_of_text import one, raw_row, read

from tunesmith.data.make import classify
from tunesmith.data.schemas import Options, told

SQL = "SELECT a FROM b"


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"question": "how many?", "sql": SQL, "executes": True}, "question", "sql"),
        ({"db_id": "shop", "question": "how many?", "query": SQL}, "question", "query"),
        ({"question": "how many?", "query": SQL, "sql": {"select": [1]}}, "question", "query"),
        ({"query": "how many?", "sql": SQL}, "query", "sql"),
        ({"prompt": "how many?", "completion": SQL, "sql": "x", "query": "y"}, "prompt", "completion"),
        ({"question": "how many?", "output": SQL, "query": "y"}, "question", "output"),
    ],
)  # fmt: skip
def test_questions_with_a_query_are_told_by_their_usual_names(row, prompt, completion):
    told, (found,), problems = read(row)
    assert (told.schema, problems) == ("prompt-completion", [])
    assert told.mapping == {"prompt": prompt, "completion": completion}
    assert told.why == f"the rows have {prompt} and {completion}"
    assert (found.question, found.answer) == ("how many?", SQL)
    assert found.meta == {name: row[name] for name in row if name not in (prompt, completion)}


def test_a_query_keeps_its_exact_characters():
    row = one(r'{"question": "caf\u00e9?", "sql": "SELECT \u0022a\u0022\u0020", "n": 1.50}')
    assert r'"caf\u00e9?"' in row.text
    assert r'"SELECT \u0022a\u0022\u0020"' in row.text
    assert row.text.endswith('"meta": {"n": 1.50}}')


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a text", "query": "how I found it", "url": "http://x"},
        {"text": "a text", "sql": SQL},
        {"text": "a text", "question": "asked where?"},
        {"text": "a text", "category": "news"},
    ],
)
def test_a_text_stays_a_text_beside_unrelated_fields(row):
    told, (found,), problems = read(row)
    assert (told.schema, found.kind, problems) == ("text", "text", [])
    assert found.meta == {name: value for name, value in row.items() if name != "text"}


@pytest.mark.parametrize("name", told._CLASSES)
def test_a_text_with_a_class_says_how_to_learn_the_class(name):
    found, _, _ = read({"text": "where is my card?", name: "card_arrival"})
    assert found.schema == "text"
    assert (
        f"; {name} is not learned then: for a classification `tunesmith data make classify"
        in found.why
    )
    assert f"--field prompt=text --field completion={name}" in found.why
    assert name in classify._LABELS


def test_a_class_that_is_a_number_is_no_completion_and_a_long_text_no_class():
    numbered, _, _ = read({"text": "good", "label": 1})
    assert "make classify" in numbered.why
    assert "--field" not in numbered.why
    told, _, _ = read({"text": "good", "label": "x" * 81})
    assert told.why == "the rows have text"


def test_a_mapped_field_is_completed_by_the_usual_name_of_the_other():
    told, (row,), problems = read(
        {"text": "how?", "response": "so"}, options=Options({"prompt": "text"})
    )
    assert (told.schema, problems) == ("prompt-completion", [])
    assert told.mapping == {"prompt": "text", "completion": "response"}
    assert told.why == "data.fields names prompt = text; the rows have response"
    assert (row.question, row.answer) == ("how?", "so")


def test_a_mapped_field_that_only_adds_leaves_the_schema_to_the_content():
    row = {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "sys": "s",
    }
    told, (found,), _ = read(row, options=Options({"system": "sys"}))
    assert told.schema == "sharegpt"
    assert found.messages[0] == {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        (
            {"prompt": "text"},
            "data.fields names prompt = text, and nothing says what the completion is: name it, too "
            "(--field completion=NAME); the fields are text, category",
        ),
        (
            {"prompt": "txt", "completion": "category"},
            "data.fields names prompt = 'txt' (did you mean 'text'?), which no row has; the fields are "
            "text, category",
        ),
        (
            {"text": "text", "completion": "category"},
            "data.fields names text = text, completion = category, and no schema has fields for all "
            "of these; the fields are text, category",
        ),
    ],
)
def test_mapped_fields_that_make_no_schema_are_named_once_for_the_file(mapping, said):
    row = {"text": "where is my card?", "category": "card_arrival"}
    found = told.tell([raw_row(row)] * 3, Options(mapping))
    assert (found.schema, found.why, found.others) == ("", said, {"": 3})


def test_a_field_is_not_shown_as_mapped_when_nothing_is_made_of_it():
    told, _, _ = read({"prompt": "q", "completion": "a", "label": "refund"})
    assert told.mapping == {"prompt": "prompt", "completion": "completion"}


@pytest.mark.parametrize("label", [0, "1"])
def test_a_label_that_is_a_number_is_a_verdict_only_when_it_is_called_one(label):
    row = {"prompt": "q", "completion": "a", "label": label}
    found, (read_as,), _ = read(row)
    assert (found.schema, read_as.meta) == ("prompt-completion", {"label": label})
    assert "every completion is learned: if label says whether it is good" in found.why
    verdict = one(row, Options(schema="feedback"))
    assert (verdict.kind, verdict.value["label"]) == ("feedback", label == "1")
    unlike, _, _ = read({**row, "label": 2})
    assert unlike.why == "the rows have prompt and completion"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Id", "Question", "SQL"), "--field prompt=Question --field completion=SQL"),
        (("My Text", "Klasse"), "--field prompt='My Text' --field completion=Klasse"),
        (("Intent", "utterance"), "--field prompt=utterance --field completion=Intent"),
        (("only",), "--field prompt=only --field completion=NAME"),
    ],
)
def test_a_file_that_fits_nothing_gets_the_options_that_may_read_it(names, said):
    found = told.tell([raw_row(dict.fromkeys(names, "x"))])
    assert found.why.endswith(said)


@pytest.mark.parametrize(
    ("mapping", "row"),
    [
        ({"instruction": "do"}, {"do": "q", "chosen": "a", "rejected": "b"}),
        ({"chosen": "good"}, {"prompt": "q", "good": "a", "rejected": "b"}),
        (
            {"rejected": "bad"},
            {"conversations": [{"from": "human", "value": "q"}], "chosen": "a", "bad": "b"},
        ),
    ],
)
def test_a_mapped_field_of_a_pair_is_completed_as_pairs_are(mapping, row):
    told, (found,), problems = read(row, options=Options(mapping))
    assert (told.schema.partition("-")[0], problems) == ("preference", [])
    assert (found.kind, found.question, found.answer) == ("pair", "q", "a")


def test_a_mapped_text_may_hold_chatml():
    text = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    told, (row,), _ = read({"body": text}, options=Options({"text": "body"}))
    assert (told.schema, row.kind, row.question, row.answer) == ("chatml", "chat", "q", "a")


def test_a_table_of_a_thousand_columns_is_named_in_part():
    found = told.tell([raw_row({f"column{n}": 1 for n in range(1_000)})])
    assert "column19 and 980 more: name two" in found.why
    assert "column20" not in found.why
