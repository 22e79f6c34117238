"""Settings of the data stage have an effect, or are refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tunesmith import data
from tunesmith.config import CleanConfig, recipe_from
from tunesmith.data.clean import clean_files, plan_clean
from tunesmith.data.read import survey
from tunesmith.data.samples import load_sample
from tunesmith.errors import ConfigError, DataError


def files(path, **more):
    return {"source": {"kind": "files", "train": str(path)}, **more}


def questions(n):
    words = ["river", "castle", "lantern", "orchard", "temple", "window", "forest", "island"]
    return [
        {"prompt": f"Where is the {words[k % 8]} of {words[k // 8]}?", "completion": f"at {k}"}
        for k in range(n)
    ]


HOW = {"near_threshold": 0.6, "semantic_threshold": 0.9, "semantic_model": "x", "against_words": 9}


def test_settings_of_rules_that_are_off_are_refused(seal, lines):
    with pytest.raises(ConfigError) as caught:
        seal(files(lines("rows.jsonl", questions(20)), clean=HOW))
    assert all(f"data.clean.{name} " in caught.value.what for name in HOW)


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"check": {"domain": "sql", "json_schema": "none.json"}}, "data.check.json_schema"),
        ({"check": {"domain": "json", "sql_dialect": "postgres"}}, "data.check.sql_dialect"),
        (
            {"clean": {"pii": {"action": "mask", "kinds": ["email"], "regions": ["DE"]}}},
            "data.clean.pii.regions",
        ),
    ],
)
def test_settings_that_another_one_leaves_without_use_are_refused(seal, lines, more, key):
    with pytest.raises(ConfigError, match="no effect") as caught:
        seal(files(lines("rows.jsonl", questions(20)), **more))
    assert f"{key} " in caught.value.what


def test_a_rule_on_a_field_that_no_row_has_is_refused(seal, lines, tmp_path):
    rows = [{**row, "source": "shop"} for row in questions(20)]
    path = lines("rows.jsonl", rows)
    said = "data.clean.drop_where.sourc: no row has a field 'sourc'"
    with pytest.raises(DataError) as caught:
        seal(files(path, clean={"drop_where": {"sourc": "forum"}}))
    assert said in caught.value.what
    with pytest.raises(DataError) as caught:
        clean_files([path], CleanConfig(drop_where={"sourc": "forum", "source": "forum"}), out=None)
    assert said in caught.value.what
    assert "drop_where.source:" not in caught.value.what


def test_limits_that_cross_are_mended_by_other_limits():
    crossed = CleanConfig(min_answer_characters=9, max_answer_characters=3)
    with pytest.raises(ConfigError) as caught:
        plan_clean(crossed)
    assert caught.value.fix == "lower the least, or raise the most"


def test_settings_of_rules_that_are_on_reach_the_plan(tmp_path):
    on = {"near": "drop", "semantic": "drop", "against": (str(tmp_path),)}
    plan = plan_clean(CleanConfig(**HOW, **on))
    assert {name: getattr(plan, name) for name in HOW} == HOW


@pytest.mark.parametrize(
    "on",
    [
        {"near": "drop"},
        {"normalize": True},
        {"max_answer_characters": 9},
        {"secrets": {"action": "mask"}},
    ],
)
def test_a_plan_does_something_only_where_a_rule_is_on(on):
    assert not plan_clean(CleanConfig()).does_something
    assert plan_clean(CleanConfig(**on)).does_something


def test_the_schema_of_answers_is_one_of_the_files_that_make_the_dataset(lines):
    rows = lines("rows.jsonl", [{"prompt": "p", "completion": "{}"}])
    schema = rows.with_name("schema.json")
    found = []
    for text in ('{"type": "object"}', '{"type": "array"}'):
        schema.write_text(text, encoding="utf-8")
        recipe = recipe_from({"data": files(rows, check={"json_schema": str(schema)})})
        found.append(
            [parent.sha256 for parent in data.sources(recipe) if parent.path == str(schema)]
        )
    assert len(found[0]) == 1
    assert found[0] != found[1]


@pytest.mark.parametrize("rule", ["exact", "near"])
def test_rows_that_were_dropped_as_duplicates_are_no_findings(seal, lines, rule):
    path = lines("rows.jsonl", [*questions(30), questions(1)[0]])
    kept = seal(files(path), name="kept")
    dropped = seal(files(path, clean={rule: "drop"}), name="dropped")

    def checks(result):
        text = result.artifact.path("findings.jsonl").read_text(encoding="utf-8")
        return [json.loads(line)["check"] for line in text.splitlines()]

    assert checks(kept).count("duplicate") == 1
    assert "duplicate" not in checks(dropped)
    assert "duplicate" not in [reason["check"] for reason in dropped.report["score"]["reasons"]]


def test_leaks_are_said_of_rows_that_stay(seal, lines, rows_of):
    train, other = questions(24), [{"prompt": f"Why {n}?", "completion": "so"} for n in range(9)]
    near = {**train[3], "prompt": train[3]["prompt"].replace("Where", "So, where")}
    source = {
        "kind": "files",
        "train": str(lines("a.jsonl", train)),
        "validation": str(lines("v.jsonl", other[2:])),
        "test": str(lines("t.jsonl", [near, other[0]])),
    }
    there = []
    for seed in range(6):
        result = seal({"source": source, "max_test_rows": 1}, seed=seed, name=str(seed))
        (row,) = rows_of(result, "test")
        there.append(row["messages"][0]["content"] == near["prompt"])
        assert result.report["near_overlaps"]["found"] == there[-1]
    assert set(there) == {True, False}


@pytest.mark.parametrize(
    ("mapped", "why"),
    [
        ({"history": "prompt"}, "rows that are read as prompt-completion have no place for it"),
        ({"tools": "toolz"}, "no row has a field 'toolz'"),
    ],
)
def test_a_field_that_is_mapped_without_effect_is_refused(seal, lines, mapped, why):
    path = lines("rows.jsonl", questions(20))
    with pytest.raises(DataError) as caught:
        seal(files(path, fields=mapped))
    ((use, name),) = mapped.items()
    assert f"data.fields.{use} (--field {use}={name}): {why}" in caught.value.what


def test_a_field_that_is_mapped_may_stand_in_few_rows_of_few_files(seal, lines):
    rows = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": "x"},
            ]
        }
        for row in questions(20)
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    paths = [
        lines("a.jsonl", rows[:10]),
        lines("b.jsonl", [*rows[10:], {**rows[0], "toolz": tools}]),
    ]
    source = {"kind": "files", "train": [str(path) for path in paths]}
    assert sum(seal({"source": source, "fields": {"tools": "toolz"}}).rows.values()) == 21


def test_the_card_of_a_sample_that_was_written_out_is_no_row(tmp_path):
    sample = load_sample("support")
    for path in (*sample.row_files().values(), sample.CARD):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = survey(tmp_path)
    assert [path.name for path in found.files] == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    assert found.skipped == {tmp_path / "CARD.md": "it tells of the data"}


def test_every_module_of_the_room_is_there_without_an_import_of_its_own():
    code = "from tunesmith import data; data.look.stats, data.annotate.Review, data.grow.augment"
    subprocess.run([sys.executable, "-c", code], check=True)
