"""The web server: uvicorn with the gateway's own order of stopping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from tunesmith.serve.app import make_app
from tunesmith.serve.guard import Guard, KeyCheck
from tunesmith.serve.service import Service

if TYPE_CHECKING:
    import socket

__all__ = ["Server"]

LAST_WORDS_SECONDS = 2.0
KEEP_ALIVE_SECONDS = 30


class Server(uvicorn.Server):
    """Guarded routes over a service. Run it by `serve(sockets=[...])`, end it by `stop`.

    Args:
        service: what is served.
        keys: who is let in.
        hosts: names that the Host header may have; None for any.
        grace_seconds: time that running answers get when it stops.
        on_ready: called in the event loop as soon as connections are taken.
    """

    def __init__(
        self,
        service: Service,
        keys: KeyCheck,
        hosts: frozenset[str] | None,
        *,
        grace_seconds: float,
        on_ready: Callable[[], None],
    ) -> None:
        app = make_app()
        app.state.service = service
        config = uvicorn.Config(
            Guard(app, keys, hosts, service.meters),
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(grace_seconds + LAST_WORDS_SECONDS) + 1,
        )
        super().__init__(config)
        self._service = service
        self._grace_seconds = grace_seconds
        self._on_ready = on_ready

    def stop(self) -> None:
        """Begin to stop; from any thread, or by a signal. A second call does not wait."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again before the engine is stopped."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, then say so."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse who waits, let running answers finish, then end them with an error."""
        self._service.drain()
        loop = asyncio.get_running_loop()
        last_words = loop.call_later(self._grace_seconds, self._service.abort)
        try:
            await super().shutdown(sockets)
        finally:
            last_words.cancel()
