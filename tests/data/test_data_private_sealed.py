"""No file of a sealed dataset holds what masking removed: not the side files, whatever rule wrote their line."""

from __future__ import annotations

import json

import pytest

from tunesmith.config import CleanConfig, PiiConfig, SecretsConfig
from tunesmith.data.clean import Cleaner, CleanPlan, Rows, drops, plan_clean
from tunesmith.data.clean.masking import Privacy
from tunesmith.data.rows import Row

MAIL, CARD = "gerda.quint@example.org", "4111 1111 1111 1111"
TOKEN = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
VALUES = (MAIL, CARD, TOKEN, "gerda", "quint", CARD.replace(" ", ""))
SAID = f"Write to {MAIL}, card {CARD}, token {TOKEN}."


def rows():
    made = [
        {"prompt": f"What does item {n} cost in shop {n * n}?", "completion": f"{n} coins"}
        for n in range(80)
    ]
    return [
        *made,
        {"prompt": f"Which address? {SAID}", "completion": "That one."},
        {"prompt": f"Empty answer? {SAID}", "completion": "N/A"},
        {"prompt": f"Too long? {SAID}", "completion": "long " * 200},
        {"prompt": f"Refused? {SAID}", "completion": "I'm sorry, but I cannot help with that."},
        {"prompt": f"Wo ist das Haus? {SAID}", "completion": "Das ist nicht hier, aber es ist da."},
        {"prompt": f"Unwanted? {SAID}", "completion": "Yes.", "kind": "old"},
        {"prompt": f"Not asked for? {SAID}", "completion": "Yes.", "keep": "no"},
        {"prompt": f"Which address? {SAID}", "completion": "That one."},
        {"prompt": f"which adress? {SAID}", "completion": "That one."},
        {"prompt": f"Known to the benchmark, is it? {SAID}", "completion": "It is."},
        {"prompt": "An entity: gerda.quint&#64;example.org?", "completion": "Yes, an entity."},
        {"prompt": "A tag: <b>gerda</b>.quint@example.org?", "completion": "Yes, a tag."},
        {"prompt": "No width: gerda.quint@exa\u200bmple.org?", "completion": "Yes, no width."},
        {"prompt": "Soft: gerda.qu\u00adint@example.org, is it?", "completion": "Yes."},
        {"prompt": "In a field?", "completion": "Yes.", "owner": {MAIL: [CARD, TOKEN]}},
        {"prompt": f"Spaces \u200b? {SAID}", "completion": "Trailing.  \n "},
    ]


UNREADABLE = [
    f'{{"prompt": "cut off: {SAID}',
    json.dumps({"prompt": f"No answer? {SAID}", "mail": MAIL}),
    json.dumps({"prompt": f"A list? {SAID}", "completion": [SAID]}),
]


CLEAN = {
    "exact": "drop",
    "near": "drop",
    "unreadable": "drop",
    "normalize": True,
    "html": "strip",
    "empty": "drop",
    "refusals": "drop",
    "languages": ["en"],
    "max_answer_characters": 500,
    "drop_where": {"kind": "old"},
}


@pytest.mark.parametrize("action", ["mask", "drop"])
def test_no_sealed_file_holds_a_value_that_was_masked_or_dropped(seal, lines, tmp_path, action):
    for row in (made := rows()):
        row.setdefault("keep", "yes")
        row.setdefault("kind", "new")
    path = lines("a.jsonl", [*made, *UNREADABLE])
    (tmp_path / "bench").mkdir()
    bench = lines("bench/b.jsonl", [made[89]])
    private = {"pii": {"action": action}, "secrets": {"action": action}, "against": [str(bench)]}
    found = seal(
        {
            "source": {"kind": "files", "train": str(path)},
            "require": {"keep": "yes"},
            "clean": {**CLEAN, **private},
        }
    )
    sealed = {
        name: found.artifact.path(name).read_text(encoding="utf-8") for name in found.artifact.files
    }
    held = [
        (name, value, line[:200])
        for name, text in sealed.items()
        for line in text.split("\n")
        for value in VALUES
        if value.casefold() in line.casefold()
    ]
    assert held == []
    assert found.report["left_out"]["by_rule"]["unreadable"] == len(UNREADABLE)
    rules = {"empty", "length", "refusal", "language", "field", "require"}
    expected = {*rules, "exact", "contamination"} if action == "mask" else {"private", "require"}
    assert expected <= set(found.report["left_out"]["by_rule"]) | {"require"}


def chat(answer, **meta):
    turns = [{"role": "user", "content": "who?"}, answer]
    value = {"messages": turns, "meta": meta}
    return Row("a.jsonl:1", "chat", json.dumps(value, ensure_ascii=False), value)


def masked(row):
    return Privacy(PiiConfig(action="mask"), SecretsConfig(action="mask")).row(row).row


def test_arguments_with_white_space_around_them_are_still_json_when_a_number_in_them_is_masked():
    arguments = ' \n{"phone": 4155552671, "n": 1}'
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    found = masked(chat({"role": "assistant", "content": None, "tool_calls": [call]}))
    said = found.value["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(said) == {"phone": "[PHONE_1]", "n": 1}


def test_short_names_and_pins_go_where_their_field_says_what_they_are():
    said = {"first_name": "Anna", "customer_name": "Lee", "pin": "4071", "code": "Anna", "n": 4071}
    found = masked(chat({"role": "assistant", "content": "ok"}, **said))
    assert found.value["meta"] == {
        **said,
        "first_name": "[NAME_1]",
        "customer_name": "[NAME_2]",
        "pin": "[SECRET_1]",
    }


def test_a_phone_number_that_a_table_made_a_fraction_of_goes():
    found = masked(chat({"role": "assistant", "content": "ok"}, phone=4155552671.0, share=0.25))
    assert found.value["meta"] == {"phone": "[PHONE_1]", "share": 0.25}


def test_a_benchmark_row_is_found_in_training_rows_that_were_masked():
    plan = plan_clean(CleanConfig(near="keep", pii=PiiConfig(action="mask")))
    turns = [
        {"role": "user", "content": f"Is the card {CARD} of {MAIL} known to the shop?"},
        {"role": "assistant", "content": "It is."},
    ]
    value = {"messages": turns, "meta": {}}
    row = Row("bench.jsonl:1", "chat", json.dumps(value), value)
    here = masked(row)
    rows = Rows(1, row_of=lambda _: here, where_of=lambda _: "a.jsonl:1")
    assert [drop.rule for drop in drops(plan, rows, benchmark=[row])] == ["contamination"]


def test_half_of_a_surrogate_pair_stays_an_escape_when_its_text_is_mended():
    text = '{"messages": [{"role": "user", "content": "é \\ud800 x  "}], "meta": {}}'
    row = Row("a.jsonl:1", "chat", text, json.loads(text))
    mended = Cleaner(CleanPlan(normalize=True)).row(row).row
    assert mended.text.encode("utf-8").decode("utf-8") == mended.text
    assert mended.value["messages"][0]["content"] == "é \ud800 x"
