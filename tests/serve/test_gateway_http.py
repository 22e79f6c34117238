"""The gateway over HTTP, in front of an engine that does what each test wants."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import openai
import pytest

from tunesmith.errors import ConfigError, EngineError
from tunesmith.serve import chat
from tunesmith.serve.keys import KeysFile, create_key, remove_key
from tunesmith.serve.request import MAX_BODY_BYTES

ASK = [{"role": "user", "content": "Hi"}]
BODY = json.dumps({"model": "small", "messages": ASK}).encode()
CHAT = "/v1/chat/completions"


def call(server, method, path, body=None, **headers):
    """Status, headers, body; header names with underscores for dashes; None leaves one out."""
    address = urlsplit(server.base_url)
    sent = {"authorization": f"Bearer {server.key}", "content-type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    try:
        present = {name: value for name, value in sent.items() if value is not None}
        connection.request(method, path, body, present)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def error_of(body: bytes) -> dict:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def client(server, **options):
    return openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0, **options)


def events_of(body: bytes) -> list:
    assert body.endswith(b"\n\n")
    lines = body.decode("ascii").split("\n\n")[:-1]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def ask(server, **fields):
    body = json.dumps({"model": "small", "messages": ASK, **fields}).encode()
    return call(server, "POST", CHAT, body)


# -- who is let in -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", CHAT, "/metrics", "/", "/docs", "/openapi.json"])
@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer ", "Bearer sk-wrong", "Basic c2s6", "sk-scripted"]
)
def test_without_the_key_nothing_but_the_probes_answers(scripted_once, path, sent):
    status, headers, body = call(scripted_once, "GET", path, authorization=sent)
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert error_of(body)["code"] == "invalid_api_key"
    assert b"sk-wrong" not in body


def test_the_probes_need_no_key(scripted_once):
    assert call(scripted_once, "GET", "/healthz", authorization=None)[0] == 200
    assert call(scripted_once, "GET", "/readyz", authorization=None)[0] == 200


def test_the_key_is_admitted_whatever_the_case_of_bearer(scripted_once):
    status, _, body = call(scripted_once, "GET", "/v1/models", authorization="bearer sk-scripted")
    assert status == 200
    assert json.loads(body)["data"][0]["id"] == "small"


def test_no_page_describes_the_gateway_even_with_the_key(scripted_once):
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert call(scripted_once, "GET", path)[0] == 404


def test_a_removed_key_is_refused_from_the_next_request_on(scripted, tmp_path):
    path = tmp_path / "keys"
    create_key(path, "keeper")
    key = create_key(path, "leaver")
    server = scripted(keys=KeysFile(path))
    server.key = key.secret
    assert call(server, "GET", "/v1/models")[0] == 200
    remove_key(path, "leaver")
    assert call(server, "GET", "/v1/models")[0] == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_name_in_the_host_header_is_refused_on_loopback(scripted_once, host):
    for path in ("/healthz", "/v1/models"):
        status, _, body = call(scripted_once, "GET", path, host=host)
        assert status == 403
        assert error_of(body)["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_names_of_loopback_are_accepted(scripted_once, host):
    assert call(scripted_once, "GET", "/healthz", host=host)[0] == 200


def test_a_page_of_another_origin_gets_no_cors_headers(scripted_once):
    status, headers, _ = call(
        scripted_once,
        "OPTIONS",
        CHAT,
        origin="https://evil.example",
        access_control_request_method="POST",
    )
    assert status in (401, 405)
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_the_key_is_in_no_log_line_and_no_metric(scripted, caplog, until):
    server = scripted()
    caplog.set_level("DEBUG")
    call(server, "GET", "/v1/models")
    call(server, "GET", f"/v1/models/{server.key}")
    ask(server)
    metrics = call(server, "GET", "/metrics")[2].decode()
    until(lambda: caplog.text.count("/v1/chat/completions 200") == 1)
    assert "GET /v1/models 200" in caplog.text
    assert server.key not in caplog.text + metrics


# -- what is asked -----------------------------------------------------------------------------


def test_a_whole_answer_has_text_reason_and_counts(scripted_once):
    status, headers, body = ask(scripted_once)
    answer = json.loads(body)
    assert status == 200
    assert headers["x-request-id"].startswith("req_")
    assert headers["cache-control"] == "no-store"
    assert answer["choices"][0]["message"]["content"] == "Hello world"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["system_fingerprint"] == "abcdef"


def test_an_unknown_model_is_a_404_that_names_the_known_one(scripted_once):
    status, _, body = ask(scripted_once, model="smal")
    error = error_of(body)
    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert "'small'" in error["message"]
    assert call(scripted_once, "GET", "/v1/models/other")[0] == 404
    assert call(scripted_once, "GET", "/v1/models/small")[0] == 200


def test_unknown_paths_and_methods_have_the_same_error_body(scripted_once):
    status, _, body = call(scripted_once, "GET", "/v1/embeddings")
    assert (status, error_of(body)["code"]) == (404, "not_found")
    status, headers, body = call(scripted_once, "DELETE", "/v1/models")
    assert (status, error_of(body)["code"]) == (405, "not_allowed")
    assert "GET" in headers["allow"]


@pytest.mark.parametrize("words", [600, 400_000 // 2])
def test_a_prompt_longer_than_the_context_is_refused(scripted_once, words):
    messages = [{"role": "user", "content": "a " * words}]
    status, _, body = ask(scripted_once, messages=messages)
    error = error_of(body)
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "512" in error["message"]


def test_an_answer_that_cannot_fit_is_refused_not_cut(scripted_once):
    status, _, body = ask(scripted_once, max_tokens=500)
    error = error_of(body)
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "max_tokens")


def test_an_answer_has_the_default_length_when_the_request_does_not_say(scripted):
    server = scripted()
    ask(server)
    ask(server, max_completion_tokens=5)
    assert [sampling.max_tokens for sampling in server.engine.asked] == [64, 5]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"\xff", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"model": "small", "messages": [{"role": "user", "content": "\\ud800"}]}', {}, 400),
        (b'{"model": "small", "messages": [{"role": "user", "content": "\\u0000"}]}', {}, 400),
        (b"x" * (MAX_BODY_BYTES + 1), {}, 413),
        (BODY, {"content_type": "text/plain"}, 415),
        (BODY, {"content_type": None}, 415),
        (BODY, {"content_encoding": "gzip"}, 415),
    ],
)
def test_a_hostile_body_is_a_clean_refusal(scripted_once, body, headers, status):
    got, _, answer = call(scripted_once, "POST", CHAT, body, **headers)
    assert got == status
    error_of(answer)


def test_a_chunked_body_without_a_length_is_limited_too(scripted_once):
    parts = (b"x" * 100_000 for _ in range(12))
    status, _, body = call(scripted_once, "POST", CHAT, parts)
    assert (status, error_of(body)["code"]) == (413, "body_too_large")


def test_bytes_that_are_no_http_do_not_disturb_the_next_request(scripted_once):
    address = urlsplit(scripted_once.base_url)
    for junk in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 100_000):
        with socket.create_connection((address.hostname, address.port), timeout=20) as raw:
            raw.sendall(junk)
    assert ask(scripted_once)[0] == 200


def test_a_template_that_refuses_the_turns_is_the_clients_error(scripted, monkeypatch):
    server = scripted()
    tokenizer = server.service.model.renderer.tokenizer
    template = "{% if messages[0].content == 'no' %}{{ raise_exception('alternate') }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template + tokenizer.chat_template)
    status, _, body = ask(server, messages=[{"role": "user", "content": "no"}])
    assert (status, error_of(body)["code"]) == (400, "invalid_messages")


# -- streams -----------------------------------------------------------------------------------


def test_a_stream_has_role_pieces_reason_usage_and_done(scripted_once):
    status, headers, body = ask(scripted_once, stream=True, stream_options={"include_usage": True})
    events = events_of(body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    pieces = [event["choices"][0]["delta"].get("content") for event in events[:-2]]
    assert pieces == ["", "Hello", " world", None]
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == 3
    assert all(event["usage"] is None for event in events[:-2])
    assert events[-1] == "data: [DONE]"
    assert len({event["id"] for event in events[:-1]}) == 1


def test_a_stream_without_the_option_carries_no_usage(scripted_once):
    events = events_of(ask(scripted_once, stream=True)[2])
    assert not any("usage" in event for event in events[:-1])


TRICKY = ["é", "漢字", "🎉\n\n", "data: [DONE]\n\n", "\r\n", "\u2028\u2029", '"\\', "\x7f\x1f"]


def test_no_text_can_break_the_framing(scripted):
    server = scripted()
    server.engine.steps = TRICKY
    events = events_of(ask(server, stream=True)[2])
    assert [e["choices"][0]["delta"]["content"] for e in events[1:-2]] == TRICKY
    with client(server) as asking:
        stream = asking.chat.completions.create(model="small", messages=ASK, stream=True)
        with stream:
            assert "".join(c.choices[0].delta.content or "" for c in stream) == "".join(TRICKY)


def test_tokens_are_sent_as_they_come(scripted, until):
    server = scripted()
    server.engine.steps = ["first", "hold", "second"]
    with client(server) as asking:
        stream = asking.chat.completions.create(model="small", messages=ASK, stream=True)
        with stream:
            pieces = (c.choices[0].delta.content for c in stream if c.choices[0].delta.content)
            assert next(pieces) == "first"
            assert server.engine.running == 1  # the engine still waits: nothing was held back
            server.engine.go.set()
            assert next(pieces) == "second"


def test_an_engine_that_fails_before_the_first_token_is_a_502(scripted, caplog):
    server = scripted()
    server.engine.steps = [EngineError("it broke at /secret/path")]
    for stream in (True, False):
        status, _, body = ask(server, stream=stream)
        assert (status, error_of(body)["code"]) == (502, "engine_failed")
        assert b"secret" not in body
    assert "/secret/path" in caplog.text


def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error_event(scripted):
    server = scripted()
    server.engine.steps = ["Hel", EngineError("it broke")]
    events = events_of(ask(server, stream=True)[2])
    assert events[-1]["error"]["code"] == "engine_failed"
    assert "data: [DONE]" not in events
    with client(server) as asking:
        stream = asking.chat.completions.create(model="small", messages=ASK, stream=True)
        with stream, pytest.raises(openai.APIError, match="engine failed"):
            list(stream)
    assert server.service.admission.running == 0


def test_an_engine_that_refuses_a_request_is_a_400(scripted):
    server = scripted()
    server.engine.steps = [ConfigError("not like this")]
    assert ask(server)[0] == 400


def test_a_bug_is_a_500_that_tells_nothing_and_frees_the_slot(scripted, caplog, until):
    server = scripted()
    server.engine.steps = [ZeroDivisionError("private")]
    status, _, body = ask(server)
    assert (status, error_of(body)["code"]) == (500, "internal_error")
    assert b"private" not in body
    until(lambda: "ZeroDivisionError" in caplog.text)
    server.engine.steps = ["fine"]
    assert ask(server)[0] == 200


# -- coming, waiting, leaving ------------------------------------------------------------------


def hold(server, **fields):
    """A request that is sent and not read; close it to leave."""
    address = urlsplit(server.base_url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    headers = {"authorization": f"Bearer {server.key}", "content-type": "application/json"}
    body = json.dumps({"model": "small", "messages": ASK, **fields})
    connection.request("POST", CHAT, body, headers)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_the_generation_and_frees_the_slot(scripted, until, stream):
    server = scripted()
    server.engine.steps = ["first", "hold"]
    leaver = hold(server, stream=stream)
    until(lambda: server.engine.running == 1)
    leaver.close()
    until(lambda: server.engine.cancelled == 1 and server.service.admission.running == 0)
    server.engine.steps = ["fine"]
    assert ask(server)[0] == 200


def test_a_client_that_leaves_while_it_waits_never_reaches_the_engine(scripted, until):
    server = scripted(max_queue=3)
    server.engine.steps = ["hold"]
    runner, leaver = hold(server), None
    until(lambda: server.engine.running == 1)
    leaver = hold(server)
    until(lambda: server.service.admission.waiting == 1)
    leaver.close()
    until(lambda: server.service.admission.waiting == 0)
    server.engine.go.set()
    assert runner.getresponse().read()
    runner.close()
    assert len(server.engine.asked) == 1


def test_a_full_queue_is_a_429_that_says_when_to_come_back(scripted, until):
    server = scripted(slots=1, max_queue=1)
    server.engine.steps = ["hold"]
    runner = hold(server)
    until(lambda: server.service.admission.running == 1)
    waiter = hold(server)
    until(lambda: server.service.admission.waiting == 1)
    status, headers, body = ask(server)
    assert (status, error_of(body)["type"]) == (429, "rate_limit_error")
    assert int(headers["retry-after"]) >= 1
    assert int(headers["retry-after-ms"]) >= 50
    metrics = call(server, "GET", "/metrics")[2].decode()
    assert "tunesmith_serve_requests_running 1.0" in metrics
    assert "tunesmith_serve_requests_waiting 1.0" in metrics
    server.engine.go.set()
    for connection in (runner, waiter):
        assert connection.getresponse().status == 200
        connection.close()


def test_the_openai_client_retries_a_429_by_itself_and_gets_its_answer(scripted, until):
    server = scripted(slots=1, max_queue=0)
    server.engine.steps = ["hold", "answer"]
    runner = hold(server)
    until(lambda: server.service.admission.running == 1)
    turned_away = 'status="429"'
    releaser = threading.Thread(
        target=lambda: (
            until(lambda: turned_away in server.service.meters.text().decode()),
            server.engine.go.set(),
        )
    )
    releaser.start()
    with openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=9) as asking:
        answer = asking.chat.completions.create(model="small", messages=ASK)
    assert answer.choices[0].message.content == "answer"
    releaser.join()
    runner.close()


def test_a_client_that_reads_nothing_loses_its_slot(scripted, until, monkeypatch, caplog):
    monkeypatch.setattr(chat, "SEND_SECONDS", 0.2)
    server = scripted()
    server.engine.steps = ["x" * 1_000_000] * 50
    stuck = hold(server, stream=True)
    until(lambda: server.engine.cancelled == 1 and server.service.admission.running == 0)
    stuck.close()
    until(lambda: "read nothing" in caplog.text)


# -- up, down ----------------------------------------------------------------------------------


def test_readiness_follows_the_engine_and_health_does_not(scripted):
    server = scripted()
    server.engine.healthy = False
    status, _, body = call(server, "GET", "/readyz")
    assert (status, error_of(body)["code"]) == (503, "not_ready")
    assert call(server, "GET", "/healthz")[0] == 200
    assert b"tunesmith_serve_engine_up 0.0" in call(server, "GET", "/metrics")[2]


def test_restarts_are_counted_once(scripted):
    server = scripted()
    server.engine.restarts = 2
    for _ in range(2):
        assert b"tunesmith_serve_engine_restarts_total 2.0" in call(server, "GET", "/metrics")[2]


def test_answers_and_refusals_are_counted_by_route_and_status(scripted, until):
    server = scripted()
    ask(server)
    ask(server, n=2)
    call(server, "GET", "/v1/models/a-name-that-must-not-become-a-label")
    call(server, "GET", "/another")
    expected = [
        f'tunesmith_serve_requests_total{{route="{route}",status="{status}"}} 1.0'
        for route, status in (
            (CHAT, 200),
            (CHAT, 400),
            ("/v1/models/{model}", 404),
            ("other", 404),
        )
    ]
    expected.append("tunesmith_serve_answer_tokens_total 3.0")
    expected.append("tunesmith_serve_first_token_seconds_count 1.0")
    until(lambda: set(expected) <= set(call(server, "GET", "/metrics")[2].decode().splitlines()))


def test_stopping_lets_running_answers_finish_and_refuses_who_waits(scripted, until):
    server = scripted(slots=1, max_queue=2)
    server.engine.steps = ["first", "hold", " last"]
    runner = hold(server, stream=True)
    until(lambda: server.engine.running == 1)
    waiter = hold(server)
    until(lambda: server.service.admission.waiting == 1)
    server.server.stop()
    response = waiter.getresponse()
    assert (response.status, error_of(response.read())["code"]) == (503, "shutting_down")
    address = urlsplit(server.base_url)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname, address.port), timeout=5)
    server.engine.go.set()
    assert events_of(runner.getresponse().read())[-1] == "data: [DONE]"
    server.thread.join(20)
    assert not server.thread.is_alive()
    runner.close()
    waiter.close()


def test_an_answer_that_outlasts_the_grace_time_ends_with_an_error_event(scripted, until):
    server = scripted(grace_seconds=0.2)
    server.engine.steps = ["first", "hold"]
    runner = hold(server, stream=True)
    until(lambda: server.engine.running == 1)
    server.server.stop()
    events = events_of(runner.getresponse().read())
    assert events[1]["choices"][0]["delta"]["content"] == "first"
    assert events[-1]["error"]["code"] == "shutting_down"
    server.thread.join(20)
    assert not server.thread.is_alive()
    runner.close()


def test_a_slow_body_is_refused_in_time(scripted, monkeypatch):
    from tunesmith.serve import app

    monkeypatch.setattr(app, "BODY_SECONDS", 0.1)
    server = scripted()
    address = urlsplit(server.base_url)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.key}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with socket.create_connection((address.hostname, address.port), timeout=20) as raw:
        raw.sendall(head.encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 408")
