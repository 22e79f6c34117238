"""Runs asyncio work for synchronous callers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tunesmith.errors import EngineError, TunesmithError

__all__ = ["LoopThread", "side_by_side"]

Result = TypeVar("Result")


async def side_by_side(
    one: Callable[[int, int], Coroutine[Any, Any, Result]], count: int, slots: int
) -> list[Result]:
    """Run `one(index, slot)` for all indices, at most one at a time in each slot, in order."""
    results: dict[int, Result] = {}
    indices = iter(range(count))

    async def work(slot: int) -> None:
        for index in indices:
            results[index] = await one(index, slot)

    try:
        async with asyncio.TaskGroup() as group:
            for slot in range(min(slots, count)):
                group.create_task(work(slot))
    except* TunesmithError as errors:
        # All slots fail for the same cause; one error is what the caller can act on.
        raise errors.exceptions[0] from None
    return [results[index] for index in range(count)]


class LoopThread:
    """An event loop in a thread, started on first use and never again after `close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self._loop is not None

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine there and wait; Ctrl-C while waiting cancels it.

        Raises:
            EngineError: it was closed.
        """
        with self._lock:
            if self._closed:
                work.close()
                raise EngineError("the engine was closed", fix="open it again")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
                self._thread.start()
            loop = self._loop
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and its thread; a second call does nothing."""
        with self._lock:
            self._closed = True
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
