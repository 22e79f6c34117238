"""The rules of conversations and pairs: what is read, kept to the letter, or named as wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.problems import Problems
from tunesmith.data.read import open_source
from tunesmith.data.schemas import Options, tell, to_row

words = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(str.strip)
meta_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("ab\n")
    | (st.lists(st.integers()))
)
metas = st.dictionaries(st.text("xyz", min_size=2), meta_values, max_size=3).map(
    lambda found: {k: v for k, v in found.items() if v not in (float("inf"), float("-inf"))}
)


def converted(path, fields=None, system=None):
    problems = Problems()
    mapping = dict(zip(("prompt", "completion"), fields, strict=True)) if fields else {}
    options = Options(mapping, system)
    rows = list(open_source(path).rows(problems))
    told = tell(rows, options)
    found = [to_row(raw, told, options, problems) for raw in rows]
    return told.schema, [row for row in found if row is not None], problems.lines


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@given(
    turns=st.lists(st.tuples(words, words), min_size=1, max_size=3),
    system=st.none() | words,
    meta=metas,
)
def test_a_chat_row_read_written_and_read_again_is_the_same(tmp_path_factory, turns, system, meta):
    said = [("system", system)] if system else []
    for question, answer in turns:
        said += [("user", question), ("assistant", answer)]
    given_row = {**meta, **chat(*said)}
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jsonl").write_text(json.dumps(given_row) + "\n", encoding="utf-8")
    schema, (row,), problems = converted(folder / "a.jsonl")
    assert (schema, problems) == ("chat", [])
    assert json.loads(row.text) == {"messages": given_row["messages"], "meta": meta}
    (folder / "b.jsonl").write_bytes(f"{row.text}\n".encode())
    _, (again,), problems = converted(folder / "b.jsonl")
    assert problems == []
    assert again.text == row.text


def test_the_three_schemas_give_the_same_conversation(lines):
    asked, answered = "How many?\n\nBooks", "42"
    by_chat = lines("chat.jsonl", [chat(("user", asked), ("assistant", answered))])
    by_instruction = lines(
        "instruction.jsonl", [{"instruction": "How many?", "input": "Books", "output": answered}]
    )
    by_completion = lines("completion.jsonl", [{"prompt": asked, "completion": answered}])
    by_fields = lines("mapped.jsonl", [{"question": asked, "sql": answered}])
    found = [
        converted(by_chat),
        converted(by_instruction),
        converted(by_completion),
        converted(by_fields, fields=("question", "sql")),
    ]
    assert [schema for schema, _, _ in found] == [
        "chat",
        "instruction",
        "prompt-completion",
        "prompt-completion",
    ]
    assert [problems for _, _, problems in found] == [[]] * 4
    assert len({rows[0].text for _, rows, _ in found}) == 1


def test_an_empty_input_adds_nothing_to_the_instruction(lines):
    _, rows, problems = converted(
        lines("a.jsonl", [{"instruction": "Go", "input": "", "output": "Gone"}])
    )
    assert problems == []
    assert rows[0].messages[0]["content"] == "Go"


def test_all_other_fields_go_to_meta_with_their_exact_characters(lines):
    path = lines(
        "a.jsonl", ['{"id": 1.50, "prompt": "p", "t\\u00e9": [1,2,  null], "completion": "c"}']
    )
    _, rows, _ = converted(path)
    assert rows[0].text.endswith('"meta": {"id": 1.50, "t\\u00e9": [1,2,  null]}}')


def test_a_system_message_is_added_only_where_there_is_none(lines):
    turns = [("user", "q"), ("assistant", "a")]
    path = lines("a.jsonl", [chat(*turns), chat(("system", "own"), *turns)])
    _, rows, _ = converted(path, system='say "é"')
    assert [row.messages[0]["content"] for row in rows] == ['say "é"', "own"]
    assert [json.loads(row.text)["messages"][0]["content"] for row in rows] == ['say "é"', "own"]
    assert len(json.loads(rows[0].text)["messages"]) == 3


GOOD = chat(("user", "q"), ("assistant", "a"))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat(("human", "q"), ("assistant", "a")), "messages[0].role: 'human' is not one of"),
        (chat(("user", "q"), ("gpt", "a")), "messages[1].role: 'gpt' is not one of"),
        ({"messages": [{"content": "q"}]}, "messages[0].role: None is not one of"),
        (
            chat(("assistant", "a")),
            "messages[0].role: 'assistant' as the first turn; expected system or user",
        ),
        (
            chat(("user", "q"), ("user", "r"), ("assistant", "a")),
            "messages[1].role: 'user' after 'user'",
        ),
        (
            chat(("user", "q"), ("system", "s"), ("assistant", "a")),
            "messages[1].role: 'system' after 'user'; expected assistant",
        ),
        (chat(("user", "q")), "messages: no assistant turn"),
        (
            {"messages": [GOOD["messages"][0], {**GOOD["messages"][1], "weight": 0}]},
            "messages: every assistant turn has weight 0",
        ),
        (
            chat(("user", "q"), ("assistant", "a"), ("user", "q")),
            "messages: the last turn is 'user'",
        ),
        (chat(("user", "q"), ("assistant", " \n")), "messages[1].content: empty"),
        (chat(("user", ""), ("assistant", "a")), "messages[0].content: empty"),
        (
            chat(("user", "q"), ("assistant", None)),
            "messages[1].content: not a string but null",
        ),
        (chat(("user", ["q"]), ("assistant", "a")), "messages[0].content: not a string but a list"),
        (
            chat(("user", "q"), ("assistant", "a\0")),
            "messages[1].content: a NUL character at character 2",
        ),
        (
            chat(("user", "\ud800"), ("assistant", "a")),
            "messages[0].content: half of a surrogate pair",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content: missing"),
        ({"messages": ["q"]}, "messages[0]: not an object with role and content"),
        ({"messages": []}, "messages: not a list with at least one message"),
        ({"messages": "q"}, "messages: not a list with at least one message"),
        (
            {"prompt": "q", "completion": "a"},
            "mixed schemas: a prompt-completion row in a file of chat",
        ),
        (
            {"instruction": "q", "output": "a"},
            "mixed schemas: an instruction row in a file of chat",
        ),
        ({"text": "q"}, "mixed schemas: a text row in a file of chat"),
        ({"sql": "q"}, "the field 'messages' is missing (a chat row; it has sql)"),
    ],
)
def test_a_wrong_chat_row_is_named_with_line_and_field(lines, row, expected):
    path = lines("a.jsonl", [GOOD, GOOD, row, GOOD])
    _, rows, problems = converted(path)
    assert len(rows) == 3
    assert any(problem.startswith(f"{path}:3: ") and expected in problem for problem in problems)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q"}, "the field 'completion' is missing"),
        ({"completion": "a"}, "the field 'prompt' is missing"),
        ({"prompt": "q", "completion": ""}, "completion: empty"),
        ({"prompt": 7, "completion": "a"}, "prompt: not a string but a number '7'"),
    ],
)
def test_a_wrong_completion_row_is_named_with_line_and_field(lines, row, expected):
    path = lines("a.jsonl", [{"prompt": "q", "completion": "a"}, row])
    _, _, problems = converted(path)
    assert problems == [problem for problem in problems if problem.startswith(f"{path}:2: ")]
    assert expected in problems[0]


def test_all_problems_of_a_file_are_named_not_only_the_first(lines):
    path = lines(
        "a.jsonl", [{"prompt": "", "completion": ""}, {"prompt": "q", "completion": 1}, "{"]
    )
    _, _, problems = converted(path)
    assert [problem.split(": ")[0].rsplit(":", 1)[1] for problem in problems] == [
        "3",
        "1",
        "1",
        "2",
    ]


def test_fields_of_another_name_are_named_with_the_setting_that_maps_them(lines):
    problems = Problems()
    path = lines("a.jsonl", [{"ask": "q", "say": "s"}] * 3)
    told = tell(list(open_source(path).rows(problems)))
    assert (told.schema, told.share) == ("", 0.0)
    assert "ask, say" in told.why
    assert "data.fields.prompt" in told.why
    assert "--field prompt=ask --field completion=say" in told.why


def test_a_conversation_with_tools_keeps_its_order(lines):
    good = chat(("user", "q"), ("assistant", "call"), ("tool", "7"), ("assistant", "seven"))
    _, rows, problems = converted(lines("a.jsonl", [good]))
    assert problems == []
    assert [turn["role"] for turn in rows[0].messages] == ["user", "assistant", "tool", "assistant"]


def pair(prompt, chosen, rejected, **others):
    return {
        "prompt": [{"role": role, "content": content} for role, content in prompt],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **others,
    }


@given(turns=st.lists(words, min_size=1, max_size=3), answers=st.tuples(words, words), meta=metas)
def test_a_pair_read_written_and_read_again_is_the_same(tmp_path_factory, turns, answers, meta):
    said = [("user", turns[0])]
    for turn in turns[1:]:
        said += [("assistant", turn), ("user", turn)]
    given_row = pair(said, "good " + answers[0], "bad " + answers[1])
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "a.jsonl").write_text(json.dumps({**meta, **given_row}) + "\n", encoding="utf-8")
    schema, (row,), problems = converted(folder / "a.jsonl")
    assert (schema, problems) == ("preference", [])
    assert json.loads(row.text) == {**given_row, "meta": meta}
    assert list(row.messages) == [*given_row["prompt"], *given_row["chosen"]]
    assert list(row.rejected) == given_row["rejected"]
    (folder / "b.jsonl").write_bytes(f"{row.text}\n".encode())
    _, (again,), problems = converted(folder / "b.jsonl")
    assert problems == []
    assert again.text == row.text


def test_a_system_message_stands_once_before_the_prompt_of_a_pair(lines):
    _, (row,), _ = converted(lines("a.jsonl", [pair([("user", "q")], "a", "b")]), system="be brief")
    assert [turn["role"] for turn in json.loads(row.text)["prompt"]] == ["system", "user"]
    assert row.messages[0]["content"] == "be brief"


ASKED = [("user", "q")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (pair(ASKED, "same", " same\n"), "chosen and rejected are the same answer"),
        (pair(ASKED, "a", " "), "rejected[0].content: empty"),
        (pair([("assistant", "q")], "a", "b"), "prompt[0].role: 'assistant' as the first turn"),
        (pair([*ASKED, ("assistant", "x")], "a", "b"), "chosen[0].role: 'assistant' after"),
        (
            {**pair(ASKED, "a", "b"), "rejected": [{"role": "user", "content": "b"}]},
            "rejected[0].role: 'user' after 'user'",
        ),
        ({**pair(ASKED, "a", "b"), "chosen": []}, "chosen: not a list with at least one message"),
        ({**pair(ASKED, "a", "b"), "prompt": 7}, "prompt: not a string but a number '7'"),
        (
            {**pair(ASKED, "a", "b"), "chosen": [*pair(ASKED, "a", "b")["chosen"]] * 2},
            "chosen: 2 turns",
        ),
        ({"prompt": [], "chosen": []}, "the field 'rejected' is missing (a preference row"),
    ],
)
def test_what_is_wrong_with_a_pair_is_named_with_its_line(lines, row, expected):
    _, rows, problems = converted(lines("a.jsonl", [pair(ASKED, "a", "b"), row]))
    assert len(rows) == 1
    assert any(line.split(":", 1)[1].startswith("2: ") for line in problems)
    assert any(expected in line for line in problems), problems
