"""What a chat request may hold, and that everything else is refused by name."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.serve.refusals import RequestError
from tunesmith.serve.request import IGNORED, MAX_MESSAGES, REFUSED, ChatRequest, parse_chat

ASK = [{"role": "user", "content": "Hi"}]


def body(**fields) -> bytes:
    return json.dumps({"model": "m", "messages": ASK, **fields}).encode()


def refused(data: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_chat(data)
    assert caught.value.http_status == 400
    assert caught.value.kind == "invalid_request_error"
    return caught.value


def test_a_bare_request_is_decoded_greedily_with_a_random_seed():
    one, two = (parse_chat(body()).sampling(7) for _ in range(2))
    assert (one.max_tokens, one.temperature, one.top_p, one.stop) == (7, 0.0, 1.0, ())
    assert one.seed != two.seed


def test_all_that_can_be_set_arrives():
    request = parse_chat(
        body(temperature=1, top_p=0.5, seed=-3, stop=["a", "b"], max_completion_tokens=9)
    )
    sampling = request.sampling(request.limit)
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (1.0, 0.5, -3)
    assert (sampling.stop, sampling.max_tokens) == (("a", "b"), 9)
    assert parse_chat(body(stop="x")).sampling(1).stop == ("x",)
    assert parse_chat(body(max_tokens=4)).limit == 4


def test_null_means_not_set():
    nothing = dict.fromkeys(set(ChatRequest.model_fields) - {"model", "messages"})
    nothing |= dict.fromkeys([*REFUSED, *IGNORED])
    assert parse_chat(body(**nothing)).limit is None


def test_text_parts_are_joined_and_developer_is_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "d"}, {"role": "user", "content": parts}]
    turns = parse_chat(body(messages=messages)).turns
    assert turns == [{"role": "system", "content": "d"}, {"role": "user", "content": "ab"}]


def test_an_answer_can_be_sent_back_as_it_came():
    answer = {"role": "assistant", "content": "Hello", "refusal": None, "tool_calls": None}
    answer |= {"annotations": [], "audio": None, "function_call": None}
    assert len(parse_chat(body(messages=[*ASK, answer, *ASK])).turns) == 3


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_parameter_that_cannot_be_honoured_is_refused_by_name(name):
    error = refused(body(**{name: {"some": "thing"}}))
    assert error.param == name
    assert error.code == "unsupported_parameter"
    for harmless in REFUSED[name].harmless:
        parse_chat(body(**{name: harmless}))


def test_true_does_not_pass_for_one():
    assert refused(body(n=True)).param == "n"
    assert refused(body(frequency_penalty=False)).param == "frequency_penalty"


@pytest.mark.parametrize("name", IGNORED)
def test_labels_are_accepted(name):
    parse_chat(body(**{name: "x"}))


def test_an_unknown_parameter_is_refused_with_the_nearest_known_one():
    error = refused(body(temprature=0.5))
    assert "did you mean 'temperature'?" in error.what
    assert (error.param, error.code) == ("temprature", "unknown_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ASK * (MAX_MESSAGES + 1)}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a\0"}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "Bo"}]}, "messages[0].name"),
        ({"messages": [*ASK, {"role": "assistant", "content": "x"}]}, "messages[1].role"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"model": None}, "model"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
    ],
)
def test_a_wrong_value_is_refused_and_named(fields, param):
    error = refused(body(**fields))
    assert error.param == param
    assert param in error.what


def test_all_problems_are_reported_at_once():
    error = refused(body(n=2, temperature=9, nonsense=1, messages=[]))
    for name in ("n", "temperature", "nonsense", "messages"):
        assert f"  {name}" in error.what


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"model": NaN}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": "\xed\xa0\x80"}',
        b"\xef\xbb\xbf{}",
        '{"model": "m"}'.encode("utf-16"),
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        json.dumps({f"p{i}": i for i in range(1000)}).encode(),
    ],
)
def test_a_body_that_is_no_small_json_object_is_a_clean_refusal(data):
    refused(data)


def test_a_huge_value_is_not_echoed_in_full():
    assert len(str(refused(body(messages={"x" * 100_000: "y" * 100_000})))) < 1000
    assert len(str(refused(body(temperature="z" * 100_000)))) < 1000
    assert len(str(refused(body(**{"z" * 100_000: 1})))) < 1000


def test_a_flood_of_fields_is_one_problem():
    flood = {f"field{number}": 1 for number in range(50_000)}
    error = refused(body(messages=[{"role": "user", "content": "x", **flood}]))
    assert error.param == "messages[0]"
    assert "50002 fields" in error.what


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
field_names = st.sampled_from([*ChatRequest.model_fields, *REFUSED, *IGNORED, "other"])


@given(st.dictionaries(field_names, json_values, max_size=6))
def test_any_json_is_either_a_request_or_a_refusal(fields):
    data = json.dumps({"model": "m", "messages": ASK, **fields}).encode()
    with contextlib.suppress(RequestError):
        parse_chat(data).sampling(1)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_cleanly(data):
    with pytest.raises(RequestError):
        parse_chat(data)
