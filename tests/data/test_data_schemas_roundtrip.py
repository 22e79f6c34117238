"""Read, written and read again: the same canonical row for each schema, to the last character."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows_of_text import raw_row, read

from tunesmith.data.problems import Problems
from tunesmith.data.schemas import ALIASES, SCHEMAS, Options, from_row, parse_sealed, tell, to_row
from tunesmith.data.schemas.slices import fields_of, items_of, object_of

words = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
).filter(str.strip)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars | words,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(words, inside, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    sorted({*(name for uses in ALIASES.values() for name in uses), "meta", "task", "id", "role"})
)
metas = st.dictionaries(names | words, values, max_size=3)
tools = st.none() | st.lists(st.dictionaries(words, values, max_size=3), min_size=1, max_size=2)


weights = st.sampled_from([{}, {}, {"weight": 0}])


@st.composite
def calls(draw):
    function = {"name": draw(words), "arguments": draw(st.dictionaries(words, values, max_size=2))}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


@st.composite
def questions(draw):
    """Turns that end with the user's or a tool's."""
    turns = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        turns += [
            {"role": "user", "content": draw(words)},
            {"role": "assistant", "content": draw(words), **draw(weights)},
        ]
    turns.append({"role": "user", "content": draw(words)})
    if draw(st.sampled_from([False, False, True])):
        turns += [draw(calls()), {"role": "tool", "content": draw(words)}]
    return turns


KINDS = ("chat", "pair", "feedback", "problem", "text")


@st.composite
def rows(draw, kinds=KINDS):
    """A canonical row of one of these kinds."""
    said, other = ({"role": "assistant", "content": draw(words)} for _ in range(2))
    kind = draw(st.sampled_from(kinds))
    prompt = draw(questions())
    row = {
        "chat": {"messages": [*prompt, said]},
        "pair": {
            "prompt": prompt,
            "chosen": [said],
            "rejected": [{**other, "content": f"not {said['content']}"}],
        },
        "feedback": {"prompt": prompt, "completion": [said], "label": draw(st.booleans())},
        "problem": {"prompt": prompt, "answer": draw(values.filter(lambda v: v not in (None, "")))},
        "text": {"text": draw(words.filter(lambda text: "<|im_start|>" not in text))},
    }[kind]
    described = draw(tools)
    if described and kind != "text":
        row["tools"] = described
    text = json.dumps({**row, "meta": draw(metas)}, ensure_ascii=draw(st.booleans()))
    return parse_sealed("rows.jsonl:1", text)


def read_as(text, schema):
    problems = Problems()
    row = to_row(raw_row(text), schema, Options(), problems)
    assert problems.lines == []
    return row


@pytest.mark.parametrize("schema", SCHEMAS)
@given(found=st.data())
def test_what_a_schema_wrote_is_told_as_it_and_read_to_the_same_row(schema, found):
    only = ("pair",) if SCHEMAS[schema].family.startswith("preference") else KINDS
    row = found.draw(rows(("feedback", "pair") if schema.startswith("feedback") else only))
    written = from_row(row, schema)
    assert bool(written.text) != bool(written.refused)
    if written.refused:
        return
    told, (first,), problems = read(written.text)
    assert problems == []
    assert SCHEMAS[told.schema].family == SCHEMAS[schema].family
    again = from_row(first, schema)
    assert again.lost == ()
    (second,) = read(again.text)[1]
    assert (second.text, second.kind) == (first.text, first.kind)
    if not written.lost:
        assert again.text == written.text
        assert first.kind == row.kind or row.kind in ("chat", "problem")
        assert first.meta == row.meta


OWN = {
    "chat": "chat",
    "pair": "preference",
    "feedback": "feedback",
    "problem": "problem",
    "text": "text",
}


@given(row=rows())
def test_a_canonical_row_in_its_own_schema_keeps_every_character_of_every_value(row):
    written = from_row(row, OWN[row.kind])
    assert written.lost == ()
    assert read_as(written.text, OWN[row.kind]).text == row.text
    # `tools` that describe nothing do not occur here; a sealed line is read as it stands, too.
    assert read_as(row.text, OWN[row.kind]).text == row.text


turn_like = st.dictionaries(
    st.sampled_from(
        [
            "role",
            "content",
            "from",
            "value",
            "tool_calls",
            "tool_call_id",
            "function_call",
            "weight",
        ]
    ),
    st.sampled_from(
        ["system", "user", "assistant", "tool", "function", "human", "gpt", "function_call"]
    )
    | values
    | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": words}), max_size=2)
    | st.lists(st.fixed_dictionaries({"function": values, "id": values}), max_size=2)
    | st.just('[{"name": "f"}]'),
    max_size=4,
)
marked = st.sampled_from(
    [
        "<|im_start|>",
        "<|im_end|>",
        "user\n",
        "\n\nHuman: ",
        "\n\nAssistant: ",
        "x",
        "[",
        "{}",
        "\0",
        "\ud800",
    ]
)
anything = (
    st.lists(turn_like, max_size=4)
    | st.lists(marked, max_size=6).map("".join)
    | st.lists(turn_like, max_size=2).map(json.dumps)
    | turn_like
    | values
)
fields = st.dictionaries(
    st.sampled_from(
        sorted({name for uses in ALIASES.values() for name in uses} | {"task", "meta"})
    ),
    anything,
    max_size=5,
)


@pytest.mark.parametrize("schema", [None, *SCHEMAS])
@given(row=fields)
def test_whatever_a_row_holds_it_is_a_row_or_a_problem(schema, row):
    raw, problems = raw_row(json.dumps(row)), Problems()
    options = Options(schema=schema)
    found = to_row(raw, tell([raw], options), options, problems)
    assert (found is None) == bool(problems.lines)
    if found is not None:
        assert json.loads(found.text) == found.value
        for name in SCHEMAS:
            written = from_row(found, name)
            assert bool(written.text) != bool(written.refused)


@given(value=st.dictionaries(words, values, max_size=4), ascii_only=st.booleans())
def test_json_that_is_cut_and_put_together_keeps_its_characters(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1)
    fields = fields_of(text)
    assert {name: field.value for name, field in fields.items()} == value
    assert all(field.raw in text for field in fields.values())
    assert json.loads(object_of(fields).raw) == value
    listed = json.dumps([*value.values()], separators=(" ,", ":"))
    assert [item.value for item in items_of(listed)] == [*value.values()]
