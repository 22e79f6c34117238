"""A row on its way through an editor: readable there, and nothing changes that nobody touched."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.annotate.editing import on_lines, on_one_line
from tunesmith.data.annotate.review import edited
from tunesmith.data.rows import Row

TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from('"\\{}[]:,\n\u2028\ud800'))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


@given(VALUES, st.booleans())
def test_lines_for_an_editor_are_those_of_json_and_lead_back_to_the_value(value, ascii_only):
    lines = on_lines(json.dumps(value, ensure_ascii=ascii_only))
    assert json.loads(lines) == value
    one = on_one_line(lines)
    assert "\n" not in one
    assert json.loads(one) == value
    if "\\ud" not in json.dumps(value):
        assert lines == json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        assert one == json.dumps(value, ensure_ascii=False)


def test_what_an_edit_does_not_touch_keeps_its_characters():
    call = '{"function": {"name": "f", "arguments": {"x": 1.0, "y": 1e5, "z": 1E+400, "w": 0.10}}}'
    text = (
        '{"messages": [{"role": "user", "content": "\\u041a\\u0442\\u043e?"}, '
        f'{{"role": "assistant", "tool_calls": [{call}]}}], "meta": {{}}}}'
    )
    row = Row("a.jsonl:1", "chat", text, json.loads(text))
    lines = on_lines(row.text)
    assert '"content": "Кто?"' in lines
    found = edited(row, lines.replace("Кто", "Где"))
    assert isinstance(found, Row)
    assert call in found.text
    assert found.question == "Где?"
