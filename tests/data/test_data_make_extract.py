"""Texts and the JSON that they say, each answer valid under its schema."""

from __future__ import annotations

import json

import pytest

from tunesmith.data.make import ExtractOptions, make_extract
from tunesmith.errors import ConfigError, DataError, MissingError

jsonschema = pytest.importorskip("jsonschema")

PEOPLE = "name,age,city\nAda,41,Oslo\nBen,,Lima\nCy,17,\n"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": ["integer", "null"], "minimum": 18},
        "city": {"type": "string"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def people(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(PEOPLE)
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    return path


def answers(made):
    return [json.loads(row["messages"][1]["content"]) for row in made.rows]


def test_records_are_told_by_templates_and_answers_hold_what_is_told(people):
    templates = ("{name} is {age}.", "{name} lives in {city}.")
    made = make_extract(
        people,
        ExtractOptions(templates=templates, texts_a_record=2, schema=people.parent / "schema.json"),
    )

    told = {
        row["messages"][0]["content"].split("\n\n")[1]: answer
        for row, answer in zip(made.rows, answers(made), strict=True)
    }
    assert told == {
        "Ada is 41.": {"name": "Ada", "age": 41},
        "Ada lives in Oslo.": {"name": "Ada", "age": None, "city": "Oslo"},
        "Ben lives in Lima.": {"name": "Ben", "age": None, "city": "Lima"},
    }
    assert [gone.reason for gone in made.dropped] == [
        "not valid under the schema: $.age: 17 is less than the minimum of 18"
    ]


def test_null_stands_only_where_the_schema_allows_it(people):
    schema = {**SCHEMA, "properties": {**SCHEMA["properties"], "age": {"type": "integer"}}}
    (people.parent / "schema.json").write_text(json.dumps(schema))
    options = ExtractOptions(
        templates=("{name} lives in {city}.",), schema=people.parent / "schema.json"
    )

    with pytest.raises(DataError, match="no row is left") as caught:
        make_extract(people, options)
    assert "not valid under the schema" in str(caught.value)


def test_without_a_schema_one_is_derived_that_every_record_fits(people):
    made = make_extract(people, ExtractOptions(templates=("{name} is {age} and lives in {city}.",)))

    assert made.facts["schema"]["properties"] == {
        "name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"},
    }  # fmt: skip
    assert answers(made) == [{"name": "Ada", "age": 41, "city": "Oslo"}]
    assert {gone.reason for gone in made.dropped} == {
        "no template goes without the values that it lacks"
    }


def test_a_derived_schema_asks_for_no_more_than_the_templates_tell(people):
    options = ExtractOptions(templates=("{name} is {age}.", "{name}, {city}"), texts_a_record=2)
    made = make_extract(people, options)

    assert made.facts["schema"]["required"] == ["name"]
    assert answers(made)[-1] == {"name": "Cy", "age": 17}
    only = make_extract(people, ExtractOptions(templates=("{name}",)))
    assert answers(only) == [{"name": "Ada"}, {"name": "Ben"}, {"name": "Cy"}]


def test_pairs_of_text_and_json_are_checked(tmp_path):
    rows = [
        {"text": "Ada is 41.", "json": {"name": "Ada", "age": 41}},
        {"text": "Ben is 30.", "json": '{"name": "Ben", "age": 30}'},
        {"text": "Cy is old.", "json": {"name": "Cy", "age": "old"}},
        {"text": "Di is 50.", "json": "{name: Di}"},
        {"text": "Ed is 20.", "json": [1]},
        {"text": "Fay.", "json": {"name": "Fay", "age": 33}},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    made = make_extract(
        tmp_path / "p.jsonl", ExtractOptions(schema=tmp_path / "schema.json", show="schema")
    )

    assert answers(made) == [
        {"name": "Ada", "age": 41},
        {"name": "Ben", "age": 30},
        {"name": "Fay", "age": 33},
    ]
    reasons = [gone.reason for gone in made.dropped]
    assert [reason.partition(":")[0] for reason in reasons] == [
        "its answer is not JSON", "its answer is no JSON object", "not valid under the schema",
    ]  # fmt: skip
    assert "1 of 3 answers hold a value that does not stand in the text" in made.notes[0]
    assert json.dumps(SCHEMA) in made.rows[0]["messages"][0]["content"]
    assert made.rows[0]["meta"] == {"source": "p.jsonl", "where": "p.jsonl:1", "task": "extract"}


@pytest.mark.parametrize("template", ["{nam} is.", "no slot", "{name", "{name.__class__}", "{}"])
def test_a_template_that_cannot_work_is_refused(people, template):
    with pytest.raises(ConfigError, match="template"):
        make_extract(people, ExtractOptions(templates=(template,)))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "cannot be read as a JSON schema"),
        ("[]", "no JSON schema"),
        ('{"properties": {"name": {"type": "nothing"}}}', r"no JSON schema: \$\.properties"),
        (
            '{"properties": {"name": {"$ref": "http://127.0.0.1:9/x"}}}',
            "refers to what is not in it",
        ),
    ],
)
def test_a_bad_schema_is_one_error_and_nothing_is_fetched(people, schema, said):
    (people.parent / "schema.json").write_text(schema)

    with pytest.raises(ConfigError, match=said):
        make_extract(
            people, ExtractOptions(templates=("{name}",), schema=people.parent / "schema.json")
        )


def test_a_missing_an_empty_and_a_foreign_file_are_errors(tmp_path):
    with pytest.raises(MissingError):
        make_extract(tmp_path / "none.csv")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError):
        make_extract(tmp_path / "empty.jsonl")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match=r"--text text: no such field"):
        make_extract(tmp_path / "other.jsonl")


def test_a_slot_whose_form_does_not_fit_its_value_drops_the_text(people):
    made = make_extract(people, ExtractOptions(templates=("{name} is {age:.1f}.", "{name} here.")))
    assert [row["messages"][0]["content"].rpartition("\n")[2] for row in made.rows]
    assert any("format" in gone.reason for gone in made.dropped)


def test_a_slot_in_the_form_of_a_slot_is_refused(people):
    with pytest.raises(ConfigError, match="a slot in the form"):
        make_extract(people, ExtractOptions(templates=("{name:{age}}",)))
