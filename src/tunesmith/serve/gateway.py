"""The gateway as a whole: port, bundle, engine and web server, from start to clean stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tunesmith.config import Recipe, refuse_unread
from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings
from tunesmith.errors import EngineError
from tunesmith.serve.admission import Admission
from tunesmith.serve.bundle import gguf_of, served_model
from tunesmith.serve.guard import KeyCheck
from tunesmith.serve.keys import Keys, KeysFile, new_secret
from tunesmith.serve.listening import Listener, listen
from tunesmith.serve.server import Server
from tunesmith.serve.service import Limits, Service
from tunesmith.store import Artifact, signatures

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Gateway", "Ready", "run"]

LOG = logging.getLogger("tunesmith.serve")
GRACE_SECONDS = 10.0
SILENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Ready:
    """What a user needs once the gateway answers.

    Attributes:
        base_url: for OpenAI's clients, such as `http://127.0.0.1:8321/v1`.
        key: the generated key, to be shown once; None when a keys file is used.
        model: name of the served model.
        warnings: what the user should know about how it listens.
        start_seconds: from the call to the first moment that a request is answered.
    """

    base_url: str
    key: str | None = field(repr=False)
    model: str
    warnings: tuple[str, ...]
    start_seconds: float


@dataclass(frozen=True)
class _Parts:
    """All that was opened; `_opened` closes it."""

    service: Service
    engine: LlamaBackend
    listener: Listener
    keys: KeyCheck
    ready: Ready

    def server(self, grace_seconds: float, on_ready: Callable[[], None]) -> Server:
        """The web server over these parts."""
        hosts = self.listener.hosts
        return Server(
            self.service, self.keys, hosts, grace_seconds=grace_seconds, on_ready=on_ready
        )


def run(
    recipe: Recipe,
    bundle: Artifact,
    *,
    on_ready: Callable[[Ready], None] | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> None:
    """Serve a bundle until SIGINT or SIGTERM; call it from the main thread.

    Then no more requests are taken, running answers have `grace_seconds` to finish, the rest ends
    with an error, and the engine's process is stopped. A second signal does not wait.

    Args:
        recipe: its `serve` section and its name are used.
        bundle: a sealed export.
        on_ready: called once, when requests are answered; it must not send one itself.
        grace_seconds: time for running answers after the signal.

    Raises:
        BusyError: the port is taken; nothing was loaded.
        ConfigError: a setting cannot be used.
        ArtifactError, MissingError: the bundle lacks a file, or one was changed.
        ModelError, EngineError: the engine does not run the model.
    """
    with _opened(recipe, bundle) as parts:
        tell = partial(on_ready, parts.ready) if on_ready else _nothing
        server = parts.server(grace_seconds, tell)
        asyncio.run(_serve(parts, server, signals=(signal.SIGINT, signal.SIGTERM)))


class Gateway:
    """The same in a thread of this process: `with Gateway(recipe, bundle) as gateway: ...`.

    Raises:
        as `run`, when the block is entered.
    """

    def __init__(
        self, recipe: Recipe, bundle: Artifact, *, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self._recipe = recipe
        self._bundle = bundle
        self._grace_seconds = grace_seconds
        self._stack = ExitStack()
        self._parts: _Parts | None = None

    @property
    def ready(self) -> Ready:
        """Address, key and model.

        Raises:
            EngineError: it was never started.
        """
        return self._running.ready

    @property
    def base_url(self) -> str:
        """For OpenAI's clients, with `/v1`."""
        return self.ready.base_url

    @property
    def key(self) -> str | None:
        """The generated key; None when a keys file is used."""
        return self.ready.key

    @property
    def engine_pid(self) -> int | None:
        """The engine's process; None while it is started again."""
        return self._running.engine.pid

    def __enter__(self) -> Self:
        """Start; returns when a request would be answered."""
        answering: Future[None] = Future()
        with ExitStack() as stack:
            parts = stack.enter_context(_opened(self._recipe, self._bundle))
            server = parts.server(self._grace_seconds, lambda: answering.set_result(None))
            thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="gateway"))
            stack.callback(server.stop)
            serving = thread.submit(lambda: asyncio.run(_serve(parts, server, signals=())))
            wait((answering, serving), return_when=FIRST_COMPLETED)
            if not answering.done():
                serving.result()
            self._parts = parts
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop as `run` does; returns when thread and engine are gone. A second call does nothing."""
        self._stack.close()

    @property
    def _running(self) -> _Parts:
        if self._parts is None:
            raise EngineError("the gateway was not started", fix="use it in a `with` statement")
        return self._parts


@contextmanager
def _opened(recipe: Recipe, bundle: Artifact) -> Iterator[_Parts]:
    """Port first, then files, then engine and tokenizer at the same time."""
    started = time.monotonic()
    config = recipe.serve
    form, keys_path, name = config.form, config.keys_path, recipe.name
    limits = Limits(config.context_tokens, config.max_answer_tokens)
    settings = LlamaSettings(
        context_tokens=config.context_tokens, slots=config.slots, silence_seconds=SILENCE_SECONDS
    )
    admission = Admission(config.slots, config.max_queue)
    host, port, public_key = config.host, config.port, config.public_key
    refuse_unread(recipe, "serve")
    listener = listen(host, port)
    with ExitStack() as stack:
        stack.callback(listener.socket.close)
        if public_key is not None:
            signatures.verify(bundle.dir, Path(public_key).expanduser())
        gguf = gguf_of(bundle, form)
        secret = new_secret() if keys_path is None else None
        keys = Keys.of(secret) if secret is not None else KeysFile(Path(str(keys_path)))
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(LlamaBackend, gguf, settings)
            try:
                model = served_model(bundle, name, limits)
            finally:
                # The child must be stopped even when the tokenizer is refused meanwhile.
                engine = stack.enter_context(closing(starting.result()))
        service = Service(model, engine, admission)
        stack.callback(service.close)
        seconds = time.monotonic() - started
        ready = Ready(listener.base_url, secret, model.name, listener.warnings, seconds)
        yield _Parts(service, engine, listener, keys, ready)


async def _serve(parts: _Parts, server: Server, *, signals: Iterable[signal.Signals]) -> None:
    for number in signals:
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    try:
        await server.serve(sockets=[parts.listener.socket])
    finally:
        await parts.engine.aclose_session()


def _nothing() -> None:
    """Nobody wants to know."""
