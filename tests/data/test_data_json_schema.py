"""JSON schemas of the user's that are none, or that go where nothing can follow; answers that strain the library."""

from __future__ import annotations

import json

import pytest
from rows_of_text import chat_row

from tunesmith.data.check import CheckOptions, check_rows
from tunesmith.data.grow.verify import JsonAnswer
from tunesmith.data.json_schema import JsonSchema, read_schema
from tunesmith.errors import ConfigError, MissingError


def found_in(answer, schema):
    options = CheckOptions(domain="json", json_schema=schema)
    found = check_rows([chat_row("p", answer)], options)
    return [one.what for one in found if one.check == "json-schema"]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$schema": 5}, r"\$\['\$schema'\]: 5 is not a text"),
        ({"properties": {"a": {"type": "x"}}}, r"\$\.properties\.a\.type"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "refers to what is not in it"),
        ({"$ref": "http://127.0.0.1:9/x"}, "refers to what is not in it"),
        ({"$dynamicRef": "#none"}, "refers to what is not in it"),
    ],
)
def test_a_schema_that_cannot_be_held_against_answers_is_one_error(schema, said):
    with pytest.raises(ConfigError, match=said):
        found_in('{"a": 1}', schema)


@pytest.mark.parametrize(
    ("schema", "answer", "said"),
    [
        ({"$ref": "#"}, "1", "goes in a circle"),
        ({"multipleOf": 0.5}, "1" + "0" * 400, "too large"),
        ({"$id": "http://[", "$ref": "x"}, "1", "Invalid IPv6 URL"),
    ],
)
def test_what_the_library_cannot_judge_is_a_finding(schema, answer, said):
    (what,) = found_in(answer, schema)
    assert said in what


@pytest.mark.parametrize("text", ["3", '"a"', "[]", "null", "{", "[" * 100_000])
def test_a_file_without_a_schema_is_refused_by_the_verifier_too(tmp_path, text):
    path = tmp_path / "schema.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"schema\.json"):
        JsonAnswer(json_schema=path)
    with pytest.raises(MissingError, match=r"none\.json"):
        JsonAnswer(json_schema=tmp_path / "none.json")


@pytest.mark.parametrize("answer", ["NaN", "[1e999, Infinity]", '{"a": 1, "a": 2}'])
def test_an_answer_that_the_check_calls_no_json_is_not_kept_by_the_verifier(answer):
    assert JsonAnswer().check(chat_row("p", ""), answer).why.startswith("not JSON")


def test_a_schema_with_a_byte_order_mark_is_read_and_fits(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"type": "integer"}), encoding="utf-8-sig")
    schema = JsonSchema(read_schema(path, "correct it"), "schema.json")
    assert [one.at for one in schema.mismatches("a")] == ["$"]
    assert not list(schema.mismatches(1))
