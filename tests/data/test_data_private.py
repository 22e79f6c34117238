"""Personal data and secrets: found where they are planted, not where they are not, and masked for good."""

from __future__ import annotations

import importlib.util
import itertools
import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config import PiiConfig, SecretsConfig, recipe_from
from tunesmith.data.clean.masking import Privacy
from tunesmith.data.clean.private import KINDS, PII_KINDS, Finder, Span, StandIns, find, mask
from tunesmith.data.rows import Row
from tunesmith.errors import ConfigError


def beside(name):
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


planted = beside("planted_private")
PLAIN = beside("plain_texts").PLAIN
PII, SECRETS = planted.personal_data(), planted.secret_texts()


def covers(case, spans):
    start, end = case.start, case.start + len(case.value)
    return any(s.kind == case.kind and s.start <= start and s.end >= end for s in spans)


def kinds_of(text):
    return [(span.kind, span.text) for span in find(text)]


def chat(*turns, **more):
    messages = [{"role": role, "content": text} for role, text in turns]
    return row_of({"messages": messages, "meta": {}, **more})


def row_of(value, kind="chat"):
    return Row("a.jsonl:1", kind, json.dumps(value, ensure_ascii=False), value)


def everything():
    return Privacy(PiiConfig(action="mask"), SecretsConfig(action="mask"))


def test_of_the_planted_personal_data_at_least_98_in_100_are_found_in_each_kind():
    assert len(PII) >= 400
    missed = [case for case in PII if not covers(case, find(case.text))]
    n, n_missed = Counter(c.kind for c in PII), Counter(c.kind for c in missed)
    assert set(n) == set(PII_KINDS)
    assert {kind: n_missed[kind] / n[kind] for kind in n if n_missed[kind] > 0.02 * n[kind]} == {}


def test_of_the_planted_secrets_at_least_98_in_100_are_found():
    assert len(SECRETS) >= 200
    missed = [case.text for case in SECRETS if not covers(case, find(case.text))]
    assert len(missed) <= 0.02 * len(SECRETS), missed[:5]


@pytest.mark.parametrize(
    "text",
    [
        "Access key ID,Secret access key\n{id},{key}\n",
        "id {id} secret {key}",
        '"{id}", "secret_access_key": "{key}"',
    ],
)
def test_the_secret_beside_an_access_key_is_found_by_its_length(text):
    id_, key = "AKIAIOSFODNN7ABCDEFG", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzKEY1"
    assert [value for _, value in kinds_of(text.format(id=id_, key=key))] == [id_, key]


@pytest.mark.parametrize(
    "text",
    ["glpat-YourAccessTokenGoesHere", "glpat-your-access-token-here", "glpat-XXXXXXXXXXXXXXXXXXXX"],
)
def test_what_stands_for_a_token_is_none(text):
    assert kinds_of(text) == []


@pytest.mark.parametrize("text", PLAIN)
def test_what_only_looks_like_personal_data_is_left_alone(text):
    assert kinds_of(text) == []


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("write to ada.l+x@mail.example.co.uk, please", "email", "ada.l+x@mail.example.co.uk"),
        ("(é@müller.de)", "email", "é@müller.de"),
        ("💳💳 4111 1111 1111 1111 👍🏽", "card", "4111 1111 1111 1111"),
        ("IBAN: DE89 3704 0044 0532 0130 00 at my bank", "iban", "DE89 3704 0044 0532 0130 00"),
        ("SSN 078-05-1121.", "national_id", "078-05-1121"),
        ("host 8.8.4.4:53", "ip", "8.8.4.4"),
        ("00:1b:44:11:3a:b7", "mac", "00:1b:44:11:3a:b7"),
        ("my passport lies at home; call (212) 736-5000!", "phone", "(212) 736-5000"),
        ("you know Mrs. O'Connor-Smith?", "name", "O'Connor-Smith"),
        ("aws: AKIAIOSFODNN7EXAMPLE", "secret", "AKIAIOSFODNN7EXAMPLE"),
        ("postgres://u:p%40ss@h/db", "secret", "p%40ss"),
        ("use glpat-aBcDEfGhIJkLmNoPqRsT", "secret", "glpat-aBcDEfGhIJkLmNoPqRsT"),
        ("curl -u admin:s3cret host", "secret", "s3cret"),
        ("--api-key=9f86d081884c7d659a2f", "secret", "9f86d081884c7d659a2f"),
    ],
)
def test_a_finding_begins_and_ends_where_the_value_does(text, kind, value):
    assert kinds_of(text) == [(kind, value)]
    (span,) = find(text)
    assert text[span.start : span.end] == span.text


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        ("4111 1111 1111 1112", "card"),
        ("DE88 3704 0044 0532 0130 00", "iban"),
        ("12345678A", "national_id"),
        ("111.444.777-36", "national_id"),
        ("000-12-3456", "national_id"),
        ("300.1.2.3", "ip"),
    ],
)
def test_a_wrong_check_digit_or_range_is_no_finding(broken, kind):
    assert kind not in [found for found, _ in kinds_of(f"It says {broken} here.")]


def test_numbers_of_things_are_found_only_beside_a_word_that_says_what_they_are():
    assert kinds_of("order 4155552671") == []
    assert kinds_of("call me at 4155552671") == [("phone", "4155552671")]
    assert kinds_of("44051401359") == []
    assert kinds_of("PESEL: 44051401359") == [("national_id", "44051401359")]


def test_other_regions_understand_other_numbers():
    text = "bel 010-1234 567"
    assert find("Tel: 03-1234-5678", ["phone"], regions=["JP"])[0].text == "03-1234-5678"
    assert find(text, ["email"]) == []


def test_only_the_kinds_that_are_asked_for_are_found():
    text = "ada@example.org, 8.8.8.8, hf_abcdefghijKLMNOP1234567890qrstuvWX"
    assert [s.kind for s in find(text)] == ["email", "ip", "secret"]
    assert [s.kind for s in find(text, ["ip"])] == ["ip"]
    with pytest.raises(ValueError, match="no kind 'mails'"):
        find(text, ["mails"])


def test_allowed_values_stay():
    text = "ask help@example.org or Ada@Home.example.org, not eve@example.net"
    found = find(text, allow=["HELP@example.org", "*@home.example.org"])
    assert [s.text for s in found] == ["eve@example.net"]


def test_where_findings_overlap_the_stronger_counts_alone():
    (span,) = find("postgres://app:hunter2x@db.example.org/x")
    assert (span.kind, span.text) == ("secret", "hunter2x")


def test_masks_are_numbered_by_value_whatever_its_spelling():
    text = "a@example.org, B@example.org, A@EXAMPLE.ORG; +49 30 901820, +4930901820"
    assert mask(text, find(text)) == "[EMAIL_1], [EMAIL_2], [EMAIL_1]; [PHONE_1], [PHONE_1]"


def test_masked_text_is_left_alone_and_its_numbers_are_not_given_again():
    once = mask("a@example.org", find("a@example.org"))
    assert find(once) == []
    text = f"{once} wrote to b@example.org"
    assert mask(text, find(text)) == "[EMAIL_1] wrote to [EMAIL_2]"


def test_a_row_has_the_same_mask_for_a_value_in_all_its_turns_and_fields():
    value = {
        "messages": [
            {"role": "user", "content": "I am ada@example.org"},
            {"role": "assistant", "content": "Hello ada@example.org and bob@example.org"},
        ],
        "meta": {"sender": "bob@example.org", "n": 3},
    }
    found = everything().row(row_of(value))
    assert [turn["content"] for turn in found.row.messages] == [
        "I am [EMAIL_1]",
        "Hello [EMAIL_1] and [EMAIL_2]",
    ]
    assert found.row.meta == {"sender": "[EMAIL_2]", "n": 3}
    assert found.reason == "email 4"
    assert json.loads(found.row.text) == found.row.value


def test_the_rest_of_a_changed_row_keeps_every_character():
    text = (
        '{"messages":  [{"role": "user", "content": "caf\\u00e9 \\/ a@example.org"}, '
        '{"role": "assistant", "content": "1.50e3 \\u0041"}], "meta": {"x": 1.50e3, "y": [ ]}}'
    )
    row = Row("a:1", "chat", text, json.loads(text))
    changed = everything().row(row).row.text
    assert changed == text.replace('"caf\\u00e9 \\/ a@example.org"', '"caf\\u00e9 / [EMAIL_1]"')


def test_arguments_of_tools_stay_json():
    arguments = '{"phone": 4155552671, "to": "ada@example.org", "deep": '
    arguments += '"{\\"iban\\": \\"DE89370400440532013000\\"}", "n": 4155552671}'
    call = {"id": "c1", "type": "function", "function": {"name": "send", "arguments": arguments}}
    value = {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}], "meta": {}}
    row = everything().row(row_of(value)).row
    (made,) = row.messages[0]["tool_calls"]
    found = json.loads(made["function"]["arguments"])
    assert found["phone"] == "[PHONE_1]"
    assert found["to"] == "[EMAIL_1]"
    assert json.loads(found["deep"]) == {"iban": "[IBAN_1]"}
    assert found["n"] == 4155552671
    assert made["id"] == "c1"
    assert made["function"]["name"] == "send"


def test_every_planted_value_is_gone_from_its_masked_row():
    left = []
    for case in [*PII[::3], *SECRETS[::3]]:
        row = row_of(planted.as_row(case))
        masked = everything().row(row).row
        spelled = json.dumps(case.value, ensure_ascii=False)[1:-1]
        again = json.dumps(spelled, ensure_ascii=False)[1:-1]
        if any(text in masked.text for text in (case.value, spelled, again)):
            left.append(case.text)
        json.loads(masked.text)
    assert len(left) <= 0.02 * (len(PII) + len(SECRETS)) / 3, left[:5]


def test_a_row_that_holds_what_is_to_be_dropped_goes_and_keeps_no_secret():
    privacy = Privacy(PiiConfig(action="mask"), SecretsConfig(action="drop"))
    token = "ghp_" + "a1B2c3D4e5" * 4
    found = privacy.row(chat(("user", f"use {token}"), ("assistant", "I will")))
    assert found.drop
    assert token not in found.row.text
    assert found.reason == "secret (github-token) 1"
    kept = privacy.row(chat(("user", "I am a@example.org"), ("assistant", "hi")))
    assert not kept.drop


def test_a_pair_that_differs_in_nothing_but_what_is_masked_goes():
    prompt = [{"role": "user", "content": "who?"}]
    answers = [[{"role": "assistant", "content": f"{who}@example.org"}] for who in ("ada", "ada")]
    answers[1][0]["content"] = "ADA@example.org"
    value = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], "meta": {}}
    found = everything().row(row_of(value, "pair"))
    assert found.drop
    assert "both answers are the same" in found.reason


def test_nothing_is_looked_for_unless_asked():
    privacy = Privacy(PiiConfig(), SecretsConfig())
    row = chat(("user", "a@example.org"), ("assistant", "ok"))
    assert not privacy.is_on
    assert privacy.row(row).row is row


def test_the_settings_can_go_to_another_process():
    row = chat(("user", "a@example.org"), ("assistant", "ok"))
    again = pickle.loads(pickle.dumps(everything()))
    assert again.row(row).row.text == everything().row(row).row.text


def test_settings_that_make_no_sense_are_refused():
    for section in (
        {"pii": {"kinds": ["mails"]}},
        {"pii": {"regions": ["Germany"]}},
        {"secrets": {"action": "hide"}},
    ):
        with pytest.raises(ConfigError):
            recipe_from({"data": {"clean": section}})


SOUP = st.text(
    alphabet=st.sampled_from("0123456789 +-.()/@:ABCxyz_='\"\n\\{}[],;é你💳\u202eİ"), max_size=80
)


@given(SOUP)
def test_findings_are_in_order_apart_and_exact_for_any_text(text):
    spans = find(text)
    assert all(text[s.start : s.end] == s.text and s.kind in KINDS for s in spans)
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
    masked = mask(text, spans)
    rest = text
    for span in reversed(spans):
        rest = rest[: span.start] + rest[span.end :]
    for span in spans:
        masked = masked.replace(f"[{span.kind.upper()}_", "[", 1)
    assert len(spans) <= masked.count("[")
    assert len(rest) + sum(len(s.text) for s in spans) == len(text)


@given(SOUP, SOUP)
def test_masking_any_row_leaves_json_of_the_same_shape(question, answer):
    row = chat(("user", question), ("assistant", json.dumps({"a": answer, "n": 12345678})))
    found = everything().row(row).row
    assert json.loads(found.text) == found.value
    assert [turn["role"] for turn in found.messages] == ["user", "assistant"]
    assert set(json.loads(found.messages[1]["content"])) == {"a", "n"}


@pytest.mark.timeout(60)
def test_a_finder_takes_hostile_text_in_bounded_time():
    for piece in (
        "a@",
        "1 ",
        "A1",
        "://a:",
        "key=",
        "Mr. A ",
        "12:",
        "{" * 10,
        '"',
        "-----BEGIN PRIVATE KEY-----",
        "AKIAIOSFODNN7ABCDEFG" + "_" * 60,
        "AKIAIOSFODNN7ABCDEFG" + " a" * 30,
    ):
        Finder().find(piece * 2_000)


def test_stand_ins_go_on_after_those_of_the_row():
    given_out = StandIns("[PHONE_7] and [EMAIL_2]")
    assert given_out.of(Span(0, 1, "phone", "1")) == "[PHONE_8]"
    assert given_out.of(Span(0, 1, "email", "x")) == "[EMAIL_3]"


@pytest.mark.parametrize(
    "before", ["Customer", "Our Sales Manager", "Both. In May", "Thomas Cook Travel, then Customer"]
)
def test_a_full_name_beside_other_personal_data_is_found_after_words_with_capitals(before):
    text = f"{before} Anna Berg wrote from anna.berg@example.org about it"
    assert "Anna Berg" in [span.text for span in find(text) if span.kind == "name"]
