"""Who is decoded now, who waits, and who is told to come back later."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tunesmith.serve.refusals import RequestError

__all__ = ["Admission"]

WAIT_SECONDS = 120.0
FIRST_GUESS_SECONDS = 1.0
NEWEST_SHARE = 0.2
LONGEST_RETRY_SECONDS = 60.0


class Admission:
    """`slots` requests run, at most `max_queue` wait in the order of their arrival.

    One event loop; not for several threads.

    Attributes:
        running: requests that hold a slot.
    """

    def __init__(self, slots: int, max_queue: int, *, wait_seconds: float = WAIT_SECONDS) -> None:
        self.slots = slots
        self.max_queue = max_queue
        self.running = 0
        self._wait_seconds = wait_seconds
        self._queue: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._mean_seconds = FIRST_GUESS_SECONDS

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queue)

    def close(self) -> None:
        """Refuse new and waiting requests from now on; running ones go on."""
        self._closed = True
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(_closing())

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot while the block runs. Cancelling gives up the place in the queue.

        Raises:
            RequestError: 429 when the queue is full or the wait too long, 503 when closing.
        """
        await self._enter()
        started = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - started
            self._mean_seconds += NEWEST_SHARE * (took - self._mean_seconds)
            self._leave()

    async def _enter(self) -> None:
        if self._closed:
            raise _closing()
        if self.running < self.slots:
            self.running += 1
            return
        if len(self._queue) >= self.max_queue:
            raise self._full(f"{self.running} requests run and {len(self._queue)} wait already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(self._wait_seconds):
                await turn
        except TimeoutError:
            self._give_up(turn)
            raise self._full(f"no slot came free in {self._wait_seconds:.0f} s") from None
        except asyncio.CancelledError:
            self._give_up(turn)
            raise

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn in self._queue:
            self._queue.remove(turn)
        elif turn.done() and not turn.cancelled() and turn.exception() is None:
            # The slot was handed over in the same moment: pass it on.
            self._leave()

    def _leave(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _full(self, why: str) -> RequestError:
        seconds = (len(self._queue) + 1) * self._mean_seconds / self.slots
        seconds = min(max(seconds, 0.05), LONGEST_RETRY_SECONDS)
        return RequestError(
            "the gateway is busy",
            why=why,
            fix=f"send it again in about {seconds:.1f} s, or raise serve.max_queue",
            status=429,
            kind="rate_limit_error",
            code="queue_full",
            headers={
                "retry-after": str(math.ceil(seconds)),
                "retry-after-ms": str(math.ceil(seconds * 1000)),
            },
        )


def _closing() -> RequestError:
    return RequestError(
        "the gateway is shutting down",
        fix="send the request again when it is up",
        status=503,
        kind="server_error",
        code="shutting_down",
        headers={"retry-after": "5"},
    )
