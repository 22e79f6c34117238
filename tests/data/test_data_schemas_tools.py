"""Tool calls and their descriptions: rules, older forms, and no null that was not in the file."""

from __future__ import annotations

import json

import pytest
from rows_of_text import one, read

from tunesmith.data.schemas import from_row

CALL = '{"name": "price", "arguments": {"b": 1.50, "a": [1, 2.0, 1e3], "é": "\\u00e9"}}'
TOOLS = (
    '[{"type": "function", "function": {"name": "price", "parameters": {"z": {"type": "number"}, '
    '"a": {"enum": [1, 1.0]}}}}, {"type": "function", "function": {"name": "stop"}}]'
)
ROW = (
    '{"messages": [{"role": "user", "content": "q"}, '
    '{"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": '
    f"{CALL}}}]}}, "
    '{"role": "tool", "tool_call_id": "c1", "name": "price", "content": "7"}, '
    f'{{"role": "assistant", "content": "seven"}}], "tools": {TOOLS}, "id": 1}}'
)


def chat(*turns):
    return {"messages": list(turns)}


USER = {"role": "user", "content": "q"}
SAID = {"role": "assistant", "content": "a"}


def call(name="f", arguments=None, **others):
    function = {"name": name, "arguments": {} if arguments is None else arguments}
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": function, **others}],
    }


def answer(**others):
    return {"role": "tool", "content": "7", **others}


def test_a_row_with_tools_keeps_every_character_of_calls_and_descriptions():
    row = one(ROW)
    assert f'"function": {CALL}' in row.text
    assert f'"tools": {TOOLS}' in row.text
    assert row.kind == "chat"
    assert len(row.tools) == 2
    assert from_row(row, "chat").text == ROW


def test_tools_in_a_text_keep_the_characters_that_it_spells():
    row = one(json.loads(ROW) | {"tools": TOOLS})
    assert f'"tools": {TOOLS}' in row.text


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([USER, call()], ""),
        ([USER, call(), answer(), SAID], ""),
        ([USER, call(id="c"), answer(tool_call_id="c"), answer(tool_call_id="c"), SAID], ""),
        ([USER, call("f", "{}"), {"role": "tool", "content": ""}, SAID], ""),
        ([USER, {**call(), "content": None}], ""),
        ([USER, {**SAID, "tool_calls": None}], ""),
        ([USER, {**SAID, "tool_calls": []}], ""),
        ([USER, call(), SAID], "messages[2].role: 'assistant' after 'assistant with tool calls'"),
        ([USER, call(), USER, SAID], "messages[2].role: 'user' after 'assistant with tool calls'"),
        ([USER, call(), answer()], "messages: the last turn is 'tool'"),
        ([answer(), SAID], "messages[0].role: 'tool' as the first turn"),
        (
            [USER, call(id="c"), answer(tool_call_id="d"), SAID],
            "messages[2].tool_call_id: 'd' is no call of the assistant's turn before",
        ),
        ([USER, {"role": "assistant", "tool_calls": None}], "messages[1].content: missing"),
        ([USER, {"role": "assistant", "tool_calls": "x"}], "messages[1].tool_calls: not a list"),
        ([USER, {"role": "assistant", "tool_calls": ["x"]}], "messages[1].tool_calls[0]: not an"),
        ([USER, call(name="")], "messages[1].tool_calls[0].function.name: ''"),
        ([USER, call(arguments=3)], "messages[1].tool_calls[0].function.arguments: neither"),
        (
            [USER, {"role": "assistant", "tool_calls": [{"name": "f"}]}],
            "messages[1].tool_calls[0].arguments: missing",
        ),
        ([{**USER, "tool_calls": call()["tool_calls"]}, SAID], "only the assistant calls tools"),
    ],
)
def test_the_rules_of_tool_calls(turns, expected):
    _, rows, problems = read(chat(*turns))
    if expected:
        assert rows == []
        assert any(expected in line for line in problems), problems
    else:
        assert problems == []
        assert list(rows[0].messages) == turns


def test_the_older_function_call_becomes_a_tool_call_with_its_exact_arguments():
    row = one(
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null, '
        f'"function_call": {CALL}}}, {{"role": "function", "name": "price", "content": "7"}}, '
        '{"role": "assistant", "content": "seven"}], "functions": [{"name": "price", "a": 1.0}]}'
    )
    assert f'"tool_calls": [{{"type": "function", "function": {CALL}}}]' in row.text
    assert '"tools": [{"type": "function", "function": {"name": "price", "a": 1.0}}]' in row.text
    assert [turn["role"] for turn in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert "function_call" not in row.messages[1]


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ([{"name": "f"}, "g"], "tools: not a list of objects"),
        ('[{"name": ', "tools: not a list of objects"),
    ],
)
def test_descriptions_that_are_none_are_named(tools, expected):
    _, rows, problems = read({**chat(USER, SAID), "tools": tools})
    assert rows == []
    assert expected in problems[0]


def test_a_field_called_tools_that_describes_none_is_an_ordinary_field():
    assert one({"prompt": "q", "completion": "a", "tools": "hammer"}).meta == {"tools": "hammer"}


def test_sharegpt_calls_are_written_and_read_with_their_exact_arguments():
    row = one(ROW)
    written = from_row(row, "sharegpt")
    assert set(written.lost) == {"tool_calls.id", "tool.tool_call_id"}
    again = one(written.text)
    assert f'"function": {CALL}' in again.text
    assert f'"tools": {TOOLS}' in again.text
    assert from_row(again, "sharegpt").text == written.text


def test_several_calls_of_one_turn_stay_together_in_sharegpt():
    two = {"role": "assistant", "tool_calls": [*call("f")["tool_calls"], *call("g")["tool_calls"]]}
    row = one(chat(USER, two, answer(), answer(), SAID))
    assert one(from_row(row, "sharegpt").text).messages == row.messages


@pytest.mark.parametrize("schema", ["chatml", "instruction", "prompt-completion"])
def test_a_schema_without_calls_refuses_a_row_with_calls(schema):
    assert from_row(one(ROW), schema).refused
    assert from_row(one(ROW), schema).text == ""


def shapes(value):
    """Every object's path and keys, and every null."""
    if isinstance(value, dict):
        yield tuple(value)
        for item in value.values():
            yield from shapes(item)
    elif isinstance(value, list):
        for item in value:
            yield from shapes(item)
    elif value is None:
        yield None


TRAPS = {
    "tools with other parameters": [
        {**chat(USER, SAID), "tools": [{"name": "f", "parameters": {"a": {"type": "string"}}}]},
        {**chat(USER, SAID), "tools": [{"name": "g", "parameters": {"b": {"enum": [1]}}}]},
    ],
    "arguments with other names": [
        chat(USER, call("f", {"city": "Bern"}), answer(), SAID),
        chat(USER, call("g", {"amount": 1.5, "unit": "CHF"}), answer(), SAID),
    ],
    "turns with and without calls": [
        chat(USER, SAID),
        chat(USER, call("f", {"x": 1}, id="c"), answer(tool_call_id="c", name="f"), SAID),
    ],
    "numbers that are whole in one row": [
        chat(USER, call("f", {"x": 1}), answer(), SAID),
        chat(USER, call("f", {"x": 1.5}), answer(), SAID),
        chat(USER, call("f", {"x": None}), answer(), SAID),
    ],
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_no_form_of_file_fills_tools_with_nulls_or_changes_a_number(tmp_path, lines, trap, form):
    from tunesmith.data.conversion import Target, convert

    given = lines("given.jsonl", TRAPS[trap])
    convert([given], Target("chat", str(tmp_path / f"there.{form}")))
    convert([tmp_path / f"there.{form}"], Target("chat", str(tmp_path / "back.jsonl")))
    before = [json.loads(line) for line in given.read_text().splitlines()]
    after = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()]
    for old, new in zip(before, after, strict=True):
        assert json.dumps(new["messages"]) == json.dumps(old["messages"])
        assert json.dumps(new.get("tools")) == json.dumps(old.get("tools"))
        assert list(shapes(new["messages"])) == list(shapes(old["messages"]))
