"""Checks in tokens: what the model's own renderer says of lengths, masks and stop tokens."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tunesmith.cli.data.check import check
from tunesmith.data.check import Checker, CheckOptions, TokenMeter
from tunesmith.data.rows import Row
from tunesmith.errors import MissingError
from tunesmith.models.chat import ChatRenderer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def renderer(short_tokenizer):
    return ChatRenderer(short_tokenizer)


def chat(question, answer, line=1):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return row("chat", line, messages=turns)


def row(kind, line=1, **value):
    value = {**value, "meta": {}}
    return Row(f"rows.jsonl:{line}", kind, json.dumps(value), value)


def findings(renderer, rows, **options):
    checker = Checker(CheckOptions(domain="none", **options), TokenMeter(renderer, "embedded"))
    return [one for one_row in rows for one in checker.see(one_row)] + checker.finish()


def test_a_row_over_the_limit_is_an_error_only_where_training_refuses_it(renderer):
    question, answer = "How long is it? " * 20, "It is long."
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    n_tokens = len(renderer.render(turns).token_ids)

    def severity(limit, policy):
        said = findings(
            renderer, [chat(question, answer)], max_row_tokens=limit, on_long_row=policy
        )
        return [one.severity for one in said if one.check == "truncation"]

    assert severity(n_tokens, "refuse") == []
    assert severity(n_tokens - 1, "refuse") == ["error"]
    assert severity(n_tokens - 1, "drop") == ["warning"]
    assert severity(n_tokens - 1, "cut_prompt") == ["warning"]


def test_rows_far_longer_or_shorter_than_the_rest_are_named(renderer):
    rows = [
        chat(f"How many are {i} and {i}?", f"That makes {2 * i} in all.", i) for i in range(1, 80)
    ]
    rows[40] = chat("How many words are there? " * 30, "Very many. " * 30, 41)

    said = [one.where for one in findings(renderer, rows) if one.check == "length"]

    assert said == ["rows.jsonl:41"]


def test_the_share_of_learned_tokens_is_that_of_the_renderer(renderer):
    rows = [chat(f"How many are {i} and {i}?", f"That makes {2 * i}.", i) for i in range(1, 5)]
    rendered = [renderer.render(one.messages) for one in rows]
    n_tokens = sum(len(one.token_ids) for one in rendered)
    share = sum(sum(one.trained) for one in rendered) / n_tokens

    (said,) = [one for one in findings(renderer, rows) if one.check == "trained-tokens"]

    assert said.severity == "note"
    assert said.what.startswith(f"{share:.1%} of {n_tokens} tokens")


def test_a_learned_share_of_next_to_nothing_is_a_warning(renderer):
    (said,) = [
        one
        for one in findings(renderer, [chat("Is this a very long question? " * 60, "no")])
        if one.check == "trained-tokens"
    ]
    assert said.severity == "warning"


def test_of_a_pair_the_longer_answer_counts(renderer):
    prompt = [{"role": "user", "content": "Which is it?"}]
    long = [{"role": "assistant", "content": "It is " + "very " * 50 + "long."}]
    short = [{"role": "assistant", "content": "It is short."}]
    limit = len(renderer.render([*prompt, *short]).token_ids) + 5
    pairs = [
        row("pair", 1, prompt=prompt, chosen=long, rejected=short),
        row("pair", 2, prompt=prompt, chosen=short, rejected=long),
    ]

    said = findings(renderer, pairs, max_row_tokens=limit)

    too_long = [one.where for one in said if one.check == "truncation"]
    assert too_long == ["rows.jsonl:1", "rows.jsonl:2"]


def test_plain_text_is_learned_whole_and_a_problem_not_at_all(renderer):
    text = row("text", text="Once upon a time there was a row.")
    problem = row("problem", prompt=[{"role": "user", "content": "2 + 2?"}], answer=4)

    (said,) = [one for one in findings(renderer, [text]) if one.check == "trained-tokens"]

    assert said.what.startswith("100.0% of")
    checks = {one.check for one in findings(renderer, [problem])}
    assert not checks & {"stop-token", "template", "trained-tokens", "tokens-left-out"}


def test_a_conversation_that_the_models_template_cannot_write_is_an_error(renderer):
    call = {"function": {"name": "weather", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]
    said = [
        one for one in findings(renderer, [row("chat", messages=turns)]) if one.where[-2:] == ":1"
    ]

    assert [(one.check, one.severity) for one in said] == [("template", "error")]


def test_without_a_model_it_is_said_what_was_left_out():
    checker = Checker(CheckOptions(domain="none"))
    checker.see(chat("Is it so?", "It is."))

    assert "tokens-left-out" in {one.check for one in checker.finish()}


def test_of_many_rows_some_are_measured_and_every_row_that_is_too_long(renderer):
    rows = [chat(f"How many are {i} and {i}?", f"That makes {2 * i}.", i) for i in range(1, 201)]
    rows[150] = chat("How long is it? " * 160, "Long.", 151)
    options = CheckOptions(domain="none", max_row_tokens=400, token_rows=20).drawn_of(200)

    def over(parts):
        whole = Checker(options)
        found = []
        for part in parts:
            checker = Checker(options, TokenMeter(renderer, "embedded"))
            found += [one for one_row in part for one in checker.see(one_row)]
            whole.merge(checker)
        return found + whole.finish()

    said = over([rows])

    assert [one.where for one in said if one.check == "truncation"] == ["rows.jsonl:151"]
    (left_out,) = [one for one in said if one.check == "tokens-left-out"]
    n_measured = int(left_out.what.split(" of ")[0])
    assert 5 <= n_measured <= 50
    assert over([rows[:70], rows[70:]]) == said


def test_a_model_that_cannot_be_had_is_an_error_only_when_it_was_asked_for(lines, tmp_path):
    rows = [{"prompt": f"Is {i} odd?", "completion": f"It is: {i}."} for i in range(20)]
    words = [str(lines("rows.jsonl", rows)), "--set", f"model.base={tmp_path / 'nope'}"]

    unasked = CliRunner().invoke(check, words)
    asked = CliRunner().invoke(check, [*words, "--model"])

    assert unasked.exit_code == 0
    assert "checks in tokens are left out: no model at" in unasked.stderr
    assert isinstance(asked.exception, MissingError)
