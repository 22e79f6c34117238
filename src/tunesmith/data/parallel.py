"""An ordered map over worker processes: bounded in flight, gone when the parent goes.

A worker is a Python process of its own, started afresh: it imports nothing of the caller's script, so
scripts need no `if __name__ == "__main__"`. It reads its work from its stdin and ends when that ends, be it that the
parent is done, was stopped or was killed. Values travel pickled through these pipes and nowhere else.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import IO, Any

from tunesmith.errors import CapacityError, ConfigError

__all__ = ["available_cores", "ordered_map", "serve", "terminable"]

WORTHWHILE = 4
"""Items from which on processes are started when their number is left to us: a start takes half a second."""
IN_FLIGHT = 3
"""Items a worker that are begun before the first is taken away."""

_LAST_WORDS_SECONDS = 10.0

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from tunesmith.data.parallel import serve; serve()"
)


@contextmanager
def terminable() -> Iterator[None]:
    """While the block runs in the main thread, SIGTERM ends it as Ctrl-C does, so that it can clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    target: str, job: Any, items: Iterable[Any], *, processes: int | None = None
) -> Generator[Any, None, None]:
    """`function(job, item)` of each item, in the order of `items`. Close the iterator when leaving it early.

    Args:
        target: "module:function"; it and everything that it takes and gives can be pickled.
        job: the same for all items; sent once to each worker.
        items: taken as results are taken: at most a few for each worker are under way.
        processes: worker processes; 1 works in this process. None: one a core, or this process where
            there is little to do. The results are the same.

    Raises:
        ConfigError: `processes` is less than 1.
        CapacityError: a worker was killed, as the system does when memory is short.
        Exception: whatever `function` raises, here as in a worker.
    """
    if processes is not None and processes < 1:
        raise ConfigError(
            f"processes={processes} does no work",
            fix="use 1 or more, or leave it out: one a core",
        )
    source = iter(items)
    if processes is None:
        first = list(islice(source, WORTHWHILE))
        source = chain(first, source)
        processes = available_cores() if len(first) == WORTHWHILE else 1
    if processes == 1:
        function = _function(target)
        for item in source:
            yield function(job, item)
        return
    yield from _shared_out(target, job, source, processes)


def _shared_out(target: str, job: Any, items: Iterator[Any], processes: int) -> Iterator[Any]:
    """The same by several workers, each with a thread here that talks to it."""
    workers: list[_Worker] = []
    free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def ask(item: Any) -> Any:
        worker = free.get()
        try:
            return worker.ask(item)
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(processes, thread_name_prefix="tunesmith-data")
    pending: deque[Future[Any]] = deque()
    try:
        for _ in range(processes):
            workers.append(_Worker(target, job))
            free.put(workers[-1])
        for item in items:
            pending.append(threads.submit(ask, item))
            if len(pending) >= IN_FLIGHT * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Killed first: a thread that waits for a worker's answer then sees its end.
        for worker in workers:
            worker.end()
        threads.shutdown(wait=True, cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker:
    """A worker process, seen from its parent."""

    def __init__(self, target: str, job: Any) -> None:
        # In a session of its own Ctrl-C does not reach it; threads of BLAS would only take memory.
        self._process = subprocess.Popen(
            # -P: a file json.py where the command was called is not Python's json.
            [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._start: tuple[str, Any] | None = (target, job)

    def ask(self, item: Any) -> Any:
        """The answer for one item."""
        questions, answers = self._pipes()
        try:
            if self._start is not None:
                pickle.dump(self._start, questions, protocol=pickle.HIGHEST_PROTOCOL)
                self._start = None
            pickle.dump(item, questions, protocol=pickle.HIGHEST_PROTOCOL)
            questions.flush()
            is_well, answer = pickle.load(answers)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise self._died() from error
        if is_well:
            return answer
        raise answer

    def end(self) -> None:
        """Kill it: it has nothing that would be lost."""
        self._process.kill()

    def close(self) -> None:
        """Take it off the system's list."""
        self._process.wait()
        for pipe in self._pipes():
            try:
                pipe.close()
            except OSError:
                continue  # It has bytes for a reader that is gone.

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("a worker is started with both pipes")
        return self._process.stdin, self._process.stdout

    def _died(self) -> CapacityError:
        try:
            code = self._process.wait(timeout=_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:  # It lives and talks nonsense.
            self._process.kill()
            code = self._process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        why = "the system kills processes when memory is short; " if code < 0 else ""
        return CapacityError(
            f"a worker process of the data stage ended {how}",
            why=f"{why}its last words, if any, are above",
            fix="run again with fewer processes (--processes 1), or free some memory",
        )


def _function(target: str) -> Callable[[Any, Any], Any]:
    module, _, name = target.partition(":")
    found: Callable[[Any, Any], Any] = getattr(importlib.import_module(module), name)
    return found


def serve() -> None:
    """What a worker runs: answers what comes on stdin until it ends. Prints go to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    questions = sys.stdin.buffer
    try:
        target, job = pickle.load(questions)
        function = _function(target)
        while True:
            item = pickle.load(questions)
            answers.write(_answer(function, job, item))
            answers.flush()
    except (EOFError, BrokenPipeError):
        # The parent is done, or gone; what is still in the buffer has no reader.
        os._exit(0)


def _answer(function: Callable[[Any, Any], Any], job: Any, item: Any) -> bytes:
    try:
        found = (True, function(job, item))
    except BaseException as error:  # noqa: BLE001 - it is raised again in the parent
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        found = (False, error)
    return pickle.dumps(found, protocol=pickle.HIGHEST_PROTOCOL)
