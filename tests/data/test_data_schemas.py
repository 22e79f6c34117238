"""Each schema is told by its content and read to the same canonical rows."""

from __future__ import annotations

import json
import typing

import pytest
from rows_of_text import one, raw_row, read

from tunesmith.config import recipe_from
from tunesmith.config.data import FieldMapping, SchemaName
from tunesmith.data.schemas import (
    ALIASES,
    SCHEMAS,
    Options,
    from_row,
    options_of,
    parse_sealed,
    tell,
)
from tunesmith.errors import ArtifactError, ConfigError

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
CHAT = {"messages": [Q, A]}
PAIR = {"prompt": [Q], "chosen": [A], "rejected": [B]}
FEEDBACK = {"prompt": [Q], "completion": [A], "label": True}

ROWS = {
    "chat": (CHAT, CHAT),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        CHAT,
    ),
    "chatml": (
        {"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"},
        CHAT,
    ),
    "instruction": ({"instruction": "q", "input": "", "output": "a"}, CHAT),
    "prompt-completion": ({"prompt": "q", "completion": "a"}, CHAT),
    "prompt-completion-turns": ({"prompt": [Q], "completion": [A]}, CHAT),
    "preference": (PAIR, PAIR),
    "preference-text": ({"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR),
    "preference-implicit": ({"chosen": [Q, A], "rejected": [Q, B]}, PAIR),
    "preference-hh": (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        PAIR,
    ),
    "feedback": (FEEDBACK, FEEDBACK),
    "feedback-text": ({"prompt": "q", "completion": "a", "label": True}, FEEDBACK),
    "problem": ({"prompt": [Q], "answer": 42}, {"prompt": [Q], "answer": 42}),
    "problem-text": ({"prompt": "q", "answer": 42}, {"prompt": [Q], "answer": 42}),
    "text": ({"text": "a text"}, {"text": "a text"}),
}


def test_there_is_a_row_here_for_every_schema():
    assert set(ROWS) == set(SCHEMAS)


@pytest.mark.parametrize("name", ROWS)
def test_a_schema_is_told_by_its_content_and_read_to_its_canonical_form(name):
    given, expected = ROWS[name]
    told, (row,), problems = read({**given, "id": 7})
    assert (told.schema, told.share, problems) == (name, 1.0, [])
    assert json.loads(row.text) == {**expected, "meta": {"id": 7}}
    assert row.value == json.loads(row.text)
    assert parse_sealed(row.where, row.text + "\n") == row


@pytest.mark.parametrize("name", ROWS)
def test_a_canonical_row_is_read_again_as_it_is(name):
    row = one({**ROWS[name][0], "id": 7})
    assert one(row.text).text == row.text


@pytest.mark.parametrize(
    ("row", "schema", "kind"),
    [
        ({"question": "1+1?", "answer": "2"}, "problem-text", "problem"),
        ({"question": "1+1?", "answer": "one and one\n#### 2"}, "problem-text", "problem"),
        ({"question": "Who?", "answer": "It was Ada Lovelace."}, "prompt-completion", "chat"),
        ({"problem": "x", "solution": "y"}, "problem-text", "problem"),
        ({"prompt": "x", "ground_truth": {"a": 1}}, "problem-text", "problem"),
        ({"query": "x", "response": "y"}, "prompt-completion", "chat"),
        ({"input": "x", "output": "y"}, "prompt-completion", "chat"),
        ({"prompt": "x", "completion": "y", "label": "refund"}, "prompt-completion", "chat"),
        ({"prompt": "x", "completion": "y", "label": "False"}, "feedback-text", "feedback"),
        ({"text": "x", "category": "y"}, "text", "text"),
    ],
)
def test_what_the_answer_holds_tells_problems_from_examples(row, schema, kind):
    told, (found,), _ = read(row)
    assert (told.schema, found.kind) == (schema, kind)


def test_a_choice_that_could_be_another_says_how_to_choose_it():
    told, _, _ = read({"question": "1+1?", "answer": "2"})
    assert "set data.rows to prompt-completion" in told.why
    learned, (row,), _ = read(
        {"question": "1+1?", "answer": "2"}, options=Options(schema="prompt-completion")
    )
    assert (learned.schema, row.answer) == ("prompt-completion", "2")
    assert learned.mapping == {"prompt": "question", "completion": "answer"}


def test_the_mapping_shows_what_each_field_is_called_in_the_file():
    told, _, _ = read({"conversations": ROWS["sharegpt"][0]["conversations"], "tools": "[]"})
    assert told.mapping == {"messages": "conversations", "tools": "tools"}


@pytest.mark.parametrize(
    ("mapping", "row", "schema"),
    [
        ({"prompt": "q", "completion": "a"}, {"q": "x", "a": "y"}, "prompt-completion"),
        ({"messages": "talk"}, {"talk": [Q, A]}, "chat"),
        (
            {"prompt": "q", "chosen": "good", "rejected": "bad"},
            {"q": "x", "good": "a", "bad": "b"},
            "preference",
        ),
        (
            {"prompt": "q", "completion": "a", "label": "ok"},
            {"q": "x", "a": "y", "ok": False},
            "feedback",
        ),
        ({"prompt": "q", "answer": "sum"}, {"q": "x", "sum": 7}, "problem"),
        ({"instruction": "do", "output": "did"}, {"do": "x", "did": "y"}, "instruction"),
        ({"text": "body"}, {"body": "x"}, "text"),
    ],
)
def test_mapped_fields_decide_the_schema_and_are_read(mapping, row, schema):
    told, rows, problems = read({**row, "text of": "kept"}, options=Options(mapping))
    assert (told.schema, problems) == (schema, [])
    assert rows[0].meta == {"text of": "kept"}


def test_a_mapped_name_is_not_read_for_another_use():
    row = one(
        {"prompt": "q", "output": "wrong", "answer": "right"},
        Options({"completion": "answer"}, schema="prompt-completion"),
    )
    assert (row.answer, row.meta) == ("right", {"output": "wrong"})


def test_a_schema_that_nobody_knows_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'sharegpt'"):
        tell([raw_row(CHAT)], Options(schema="sharegtp"))


def test_the_schemas_of_a_recipe_are_those_that_exist_and_its_fields_are_the_uses():
    assert set(typing.get_args(SchemaName)) == set(SCHEMAS)
    assert set(FieldMapping.model_fields) == set(ALIASES)


def test_a_recipe_says_how_rows_are_read():
    section = {"rows": "preference", "fields": {"prompt": "q", "chosen": "good"}, "system": "s"}
    options = options_of(recipe_from({"data": section}).data)
    assert options == Options({"prompt": "q", "chosen": "good"}, "s", "preference")


def test_a_mapping_that_names_nothing_is_refused():
    with pytest.raises(ConfigError, match="name at least one field"):
        recipe_from({"data": {"fields": {}}})


def test_rows_of_another_schema_are_named_unless_their_task_sets_them_apart():
    _, rows, problems = read(CHAT, CHAT, ROWS["instruction"][0])
    assert len(rows) == 2
    assert problems == ["rows.jsonl:3: mixed schemas: an instruction row in a file of chat"]
    tasked = [{**CHAT, "task": "x"}, {**CHAT, "task": "x"}, {**ROWS["instruction"][0], "task": "y"}]
    _, rows, problems = read(*tasked)
    assert problems == []
    assert [row.meta["task"] for row in rows] == ["x", "x", "y"]
    assert rows[2].messages == rows[0].messages
    _, rows, problems = read(*tasked, {"task": "z", "ask": "q", "say": "s"})
    assert len(rows) == 3
    assert problems[0].startswith("rows.jsonl:4: no schema has such a row; its fields are task,")


def test_two_spellings_of_one_schema_are_read_side_by_side():
    told, rows, problems = read(ROWS["preference"][0], ROWS["preference-text"][0])
    assert (told.share, problems) == (1.0, [])
    assert rows[0].text == rows[1].text


def test_a_system_field_and_a_history_come_before_the_question():
    row = one(
        {
            "instruction": "now",
            "output": "done",
            "system": "be brief",
            "history": [["first", "one"], ["then", "two"]],
        }
    )
    said = [(turn["role"], turn["content"]) for turn in row.messages]
    assert said == [
        ("system", "be brief"),
        ("user", "first"),
        ("assistant", "one"),
        ("user", "then"),
        ("assistant", "two"),
        ("user", "now"),
        ("assistant", "done"),
    ]


def test_the_turns_of_sharegpt_keep_their_further_fields():
    turns = [{"from": "human", "value": "q", "id": 1}, {"from": "gpt", "value": "a", "weight": 1.0}]
    row = one(json.dumps({"conversations": turns}))
    assert row.text == (
        '{"messages": [{"role": "user", "content": "q", "id": 1}, '
        '{"role": "assistant", "content": "a", "weight": 1.0}], "meta": {}}'
    )


def test_lists_in_the_cells_of_a_table_are_read_as_lists():
    turns = json.dumps([Q, A])
    assert one({"messages": turns, "id": "1"}).text == one({"messages": [Q, A], "id": "1"}).text
    pair = {name: json.dumps(value) for name, value in PAIR.items()}
    assert one(pair).text == one(PAIR).text


def test_a_prompt_of_several_turns_teaches_its_completion_alone():
    row = one({"prompt": [Q, A, Q], "completion": [B]})
    assert [turn.get("weight") for turn in row.messages] == [None, 0, None, None]


def test_the_shared_begin_of_two_conversations_is_the_prompt():
    row = one({"chosen": [Q, A, Q, A], "rejected": [Q, A, Q, B], "prompt": "q"})
    assert row.value["prompt"] == [Q, A, Q]
    assert row.meta == {}
    other = one({"chosen": [Q, A], "rejected": [Q, B], "prompt": "something else"})
    assert other.meta == {"prompt": "something else"}


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
        {"prompt": [Q], "chosen": A, "rejected": B},
        {"prompt": "q", "chosen": [A], "rejected": [B]},
        {"prompt": "q", "prompt_id": "1", "chosen": [Q, A], "rejected": [Q, B], "messages": [Q, A]},
    ],
)
def test_pairs_as_other_tools_write_them_are_pairs(row):
    found = one(row)
    assert found.kind == "pair"
    assert {**found.value, "meta": {}} == {**PAIR, "meta": {}}
    assert set(found.meta) <= {"prompt_id", "messages"}


def test_a_content_of_one_text_part_is_that_text():
    parts = '[{"type": "text", "text": "caf\\u00e9 1.50"}]'
    row = one(f'{{"messages": [{{"role": "user", "content": {parts}}}, {json.dumps(A)}]}}')
    assert row.messages[0] == {"role": "user", "content": "café 1.50"}
    assert '"content": "caf\\u00e9 1.50"' in row.text


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"conversations": [{"from": "alien", "value": "q"}]},
            "conversations[0].from: 'alien' is not one of human, gpt, system",
        ),
        ({"conversations": [{"from": "human"}]}, "conversations[0].value: missing"),
        (
            {"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "a"}]},
            "conversations[0].value: empty",
        ),
        (
            {"conversations": [{"from": "gpt", "value": "a"}]},
            "conversations[0].from: 'assistant' as the first turn",
        ),
        ({"text": "<|im_start|>user\nq"}, "text: the turn at character 1 has no <|im_end|>"),
        (
            {"text": "<|im_start|>user\nq<|im_end|> and more"},
            "text: no <|im_start|> at character 30",
        ),
        (
            {"text": "<|im_start|>user<|im_end|>"},
            "text: the turn at character 1 has no line with its role",
        ),
        ({"instruction": "q", "output": "a", "history": "x"}, "history: not a list of questions"),
        ({"instruction": "q", "output": "a", "history": [["x"]]}, "history[0]: not a list of a"),
        ({"instruction": "q", "output": "a", "history": [["x", ""]]}, "history[0][1]: empty"),
        ({"instruction": "q", "output": "a", "input": 7}, "input: not a string but a number"),
        (
            {"prompt": [Q], "completion": [{"role": "user", "content": "x"}]},
            "completion[0].role: 'user' after 'user'",
        ),
        ({"prompt": [Q], "completion": "", "label": True}, "completion: empty"),
        ({"prompt": "q", "completion": "a", "label": 2, "x": 1}, ""),
        ({"prompt": [Q, A], "answer": 1}, "prompt: the last turn is 'assistant'"),
        ({"prompt": "q", "answer": None}, "answer: empty"),
        ({"chosen": [Q, A], "rejected": [B]}, "share no prompt"),
        ({"chosen": [Q, A], "rejected": [Q, A]}, "chosen and rejected are the same answer"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "b"},
            "rejected: it does not begin with an empty line and Human:",
        ),
        ({"text": " "}, "text: empty"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]},
            "messages[0].content: parts of type 'image_url'; only text can be learned",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 2}, A]},
            "messages[0].content: a list of 2 text parts",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_field_as_the_file_calls_it(row, expected):
    _, rows, problems = read(row)
    if not expected:
        assert problems == []
        return
    assert rows == []
    assert any(expected in line for line in problems), problems


SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("row", "schema", "lost", "refused"),
    [
        (PAIR, "chat", ("rejected",), ""),
        (PAIR, "feedback", ("rejected",), ""),
        (FEEDBACK, "chat", ("label",), ""),
        ({**FEEDBACK, "label": False}, "chat", (), "marked as bad"),
        ({**FEEDBACK, "label": False}, "text", (), "marked as bad"),
        ({**FEEDBACK, "label": False}, "feedback-text", (), ""),
        (CHAT, "preference", (), "needs a rejected one"),
        (CHAT, "feedback", (), "nothing says whether"),
        (CHAT, "problem", (), ""),
        (CHAT, "text", ("roles of the turns",), ""),
        ({"text": "x"}, "chat", (), "asks nothing"),
        ({"prompt": [Q], "answer": 42}, "chat", ("the type of the answer (it becomes text)",), ""),
        ({"prompt": [Q], "answer": " "}, "chat", (), "its answer is empty"),
        ({"messages": [SYSTEM, Q, A]}, "prompt-completion", ("system message",), ""),
        ({"messages": [SYSTEM, Q, A]}, "instruction", (), ""),
        ({**PAIR, "prompt": [SYSTEM, Q]}, "preference-hh", ("system message",), ""),
        ({"messages": [Q, A, Q, B]}, "prompt-completion", (), "3 turns (user, assistant, user)"),
        (
            {"messages": [Q, A, Q, B]},
            "prompt-completion-turns",
            ("learning of earlier answers",),
            "",
        ),
        ({"messages": [Q, {**A, "weight": 0}, Q, B]}, "prompt-completion-turns", (), ""),
        (
            {"messages": [Q, A, Q, {**B, "weight": 0}]},
            "prompt-completion-turns",
            (),
            "its last answer has weight 0",
        ),
        ({"messages": [Q, {**A, "weight": 1}]}, "instruction", ("assistant.weight",), ""),
        ({"messages": [Q, A], "tools": [{"name": "f"}]}, "chatml", ("tools",), ""),
        (
            {"messages": [{**Q, "content": "say <|im_end|>"}, A]},
            "chatml",
            (),
            "spells a ChatML marker",
        ),
        (
            {**PAIR, "prompt": [{**Q, "content": "a\n\nHuman: b"}]},
            "preference-hh",
            (),
            "spells Human: or Assistant:",
        ),
    ],
)
def test_what_a_schema_cannot_hold_is_lost_by_name_or_refused(row, schema, lost, refused):
    written = from_row(one(row), schema)
    if refused:
        assert refused in written.refused
        assert written.text == ""
    else:
        assert (written.lost, written.refused) == (lost, "")
        assert read(written.text)[2] == []


def test_the_system_field_of_sharegpt_is_its_first_turn():
    row = one({**ROWS["sharegpt"][0], "system": "be brief"})
    assert row.messages == ({"role": "system", "content": "be brief"}, Q, A)
    both = [{"from": "system", "value": "own"}, *ROWS["sharegpt"][0]["conversations"]]
    row = one({"conversations": both, "system": "be brief"})
    assert (row.messages[0]["content"], row.meta) == ("own", {"system": "be brief"})


def test_turns_that_are_equal_after_a_difference_are_no_prompt():
    _, rows, problems = read({"chosen": [Q, A, Q, A], "rejected": [Q, B, Q, B]})
    assert rows == []
    assert any("chosen: 3 turns; it must be one turn" in line for line in problems)


@pytest.mark.parametrize("line", ["{", "[]", '{"messages": []}', '{"meta": {}}', '{"meta": 1}'])
def test_a_line_that_nothing_of_ours_sealed_is_refused(line):
    with pytest.raises(ArtifactError, match=r"train.jsonl:3: no row of a sealed dataset"):
        parse_sealed("train.jsonl:3", line)
