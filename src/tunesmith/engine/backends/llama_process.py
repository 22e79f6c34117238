"""Keeps one llama.cpp child process alive: start, ready, crash, restart with backoff, stop."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from tunesmith.errors import EngineError, EnvironmentProblem, MissingError, ModelError, StorageError
from tunesmith.models.devices import default_threads
from tunesmith.models.files import refuse_damaged_gguf

__all__ = ["Endpoint", "LlamaProcess", "LlamaSettings"]

LOG_LINES_KEPT = 200
LOG_LINES_SHOWN = 12
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
MOST_FAILED_STARTS = 5
STOP_SECONDS = 5.0
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
"""How long an OpenMP thread spins at a barrier before it sleeps. Each operation of a token ends in a barrier:
without spinning it costs system calls, and with the default any other load on the cores makes a token take 100 times as
long (docs/lab-notebook.md, 19)."""


@dataclass(frozen=True)
class LlamaSettings:
    """How llama.cpp runs.

    Attributes:
        context_tokens: longest prompt and answer together, in each slot.
        slots: requests that are decoded side by side; more wait in llama.cpp's queue.
        threads: CPU threads; None takes the physical cores that this process may use.
        log_path: file that llama.cpp's log is appended to; None keeps the last lines in memory.
        start_seconds: longest time from start to ready.
        silence_seconds: longest time without a byte from the engine before it counts as hung.
        lora_path: a GGUF LoRA file that is put on the model; None for the model as it is.
        exact: keys and values in float32 and no flash attention, whose products are of float16: a
            float32 file then differs from transformers by rounding alone. Slower; for proofs.
    """

    context_tokens: int = 2_048
    slots: int = 2
    threads: int | None = None
    log_path: Path | None = None
    start_seconds: float = 120.0
    silence_seconds: float = 600.0
    lora_path: Path | None = None
    exact: bool = False


@dataclass(frozen=True)
class Endpoint:
    """Where a child listens.

    Attributes:
        url: such as `http://127.0.0.1:40123`.
        api_key: for the Authorization header; new at each start.
        pid: the child.
    """

    url: str
    api_key: str
    pid: int


class LlamaProcess:
    """Starts the child and, in a thread of its own, starts it again whenever it dies.

    Safe for use from several threads.

    Raises:
        MissingError: no such model file.
        ModelError: the file is no GGUF file, is damaged, or llama.cpp cannot run it.
        EnvironmentProblem: xllamacpp is not installed.
        EngineError: the child was not ready in time.
        StorageError: the log file cannot be written.
    """

    def __init__(self, model_path: Path, settings: LlamaSettings) -> None:
        _check_model_file(model_path)
        if settings.lora_path is not None:
            _check_model_file(settings.lora_path)
        if find_spec("xllamacpp") is None:
            raise EnvironmentProblem(
                "llama.cpp is not installed",
                why="the package xllamacpp, which carries it, is missing",
                fix="pip install 'tunesmith[serve]'",
            )
        self.model_path = model_path
        self.settings = settings
        self.restarts = 0
        self._log: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._log_file = _open_log(settings.log_path)
        self._changed = threading.Condition()
        self._endpoint: Endpoint | None = None
        self._child: subprocess.Popen[str] | None = None
        self._failure: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="llama.cpp", daemon=True)
        self._thread.start()
        try:
            self.wait_ready(settings.start_seconds + STOP_SECONDS)
        except BaseException:
            self.close()
            raise

    @property
    def endpoint(self) -> Endpoint | None:
        """Where the child listens; None while it starts."""
        with self._changed:
            return self._endpoint

    def log_tail(self, lines: int = LOG_LINES_SHOWN) -> str:
        """The last lines that llama.cpp logged."""
        return "\n".join(list(self._log)[-lines:])

    def wait_ready(self, seconds: float) -> Endpoint:
        """Wait until the child answers.

        Raises:
            EngineError: closed, not up in time, or given up after several failed starts.
            ModelError: llama.cpp refused the model.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._endpoint or self._failure, seconds)
            if self._failure is not None:
                raise self._start_error(self._failure)
            if self._endpoint is None:
                raise self._start_error(f"not ready after {seconds:.0f} s")
            return self._endpoint

    def failure(self) -> EngineError | ModelError | None:
        """Why no child runs and none will be started; None while there is hope."""
        with self._changed:
            return None if self._failure is None else self._start_error(self._failure)

    def close(self) -> None:
        """Stop the child and the supervision; returns when both are gone."""
        with self._changed:
            self._closing.set()
            self._failure = self._failure or "it was closed"
            self._endpoint = None
            child = self._child
            self._changed.notify_all()
        if child is not None:
            _stop(child)
        self._thread.join()
        if self._log_file is not None and not self._log_file.closed:
            self._log_file.close()

    def _start_error(self, reason: str) -> EngineError | ModelError:
        kind = ModelError if reason.startswith("cannot load") else EngineError
        return kind(
            f"llama.cpp does not run {self.model_path}: {reason}",
            why=f"its last log lines are:\n{self.log_tail() or '(none)'}",
            fix="export the model again" if kind is ModelError else "start it again",
        )

    def _supervise(self) -> None:
        failed_starts = 0
        pause = FIRST_PAUSE_SECONDS
        while not self._closing.is_set():
            ready, reason = self._run_once()
            if ready:
                failed_starts, pause = 0, FIRST_PAUSE_SECONDS
            else:
                failed_starts += 1
            first_start = self.restarts == 0 and not ready
            if first_start or failed_starts >= MOST_FAILED_STARTS:
                with self._changed:
                    self._failure = self._failure or reason
                    self._changed.notify_all()
                return
            if self._closing.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            self.restarts += 1

    def _run_once(self) -> tuple[bool, str]:
        """One life of a child: whether it became ready, and why it did not."""
        api_key = secrets.token_urlsafe(32)
        with self._changed:
            if self._closing.is_set():
                return False, "it was closed"
            child = self._child = _spawn()
        drain = threading.Thread(target=self._drain, args=(child.stderr,), daemon=True)
        drain.start()
        timer = threading.Timer(self.settings.start_seconds, child.kill)
        timer.daemon = True
        timer.start()
        report = self._ask(child, api_key)
        timer.cancel()
        url = report.get("url")
        if url is not None:
            with self._changed:
                if not self._closing.is_set():
                    self._endpoint = Endpoint(url, api_key, child.pid)
                    self._changed.notify_all()
        code = child.wait()
        with self._changed:
            self._endpoint = None
        drain.join(STOP_SECONDS)
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                _close_pipe(pipe)
        if "error" in report:
            return False, f"cannot load it: {report['error']}"
        return url is not None, _exit_reason(code, self.settings.start_seconds)

    def _ask(self, child: subprocess.Popen[str], api_key: str) -> dict[str, str]:
        """Send the options and read the report; empty when the child died first."""
        settings = self.settings
        options = {
            "model_path": str(self.model_path),
            "lora_path": None if settings.lora_path is None else str(settings.lora_path),
            "exact": settings.exact,
            "api_key": api_key,
            "threads": settings.threads or default_threads(),
            "slots": settings.slots,
            "context_tokens": settings.context_tokens,
            "parent_pid": os.getpid(),
        }
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(options) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            return {}
        report: dict[str, str] = json.loads(line) if line else {}
        return report

    def _drain(self, stream: IO[str]) -> None:
        """Read the child's log so that it never blocks on a full pipe."""
        for line in stream:
            self._log.append(line.rstrip("\n"))
            if self._log_file is not None:
                self._log_file.write(line)


def _spawn() -> subprocess.Popen[str]:
    # -P: a file called json.py in the user's folder must not be imported instead of ours.
    # A new session: Ctrl-C in the terminal is for the parent, which then stops the child.
    environment = {**WAITING, **os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "tunesmith.engine.backends.llama_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        env=environment,
    )


def _stop(child: subprocess.Popen[str]) -> None:
    """The end of its stdin stops the child; one that hangs in native code is killed."""
    if child.stdin is not None:
        _close_pipe(child.stdin)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _close_pipe(pipe: IO[str]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        # The child died with unread input; closing was all that was wanted.
        return


def _exit_reason(code: int, start_seconds: float) -> str:
    if code == -9:
        return f"it was killed (out of memory, or not ready after {start_seconds:.0f} s)"
    return f"it ended by signal {-code}" if code < 0 else f"it ended with status {code}"


def _open_log(path: Path | None) -> IO[str] | None:
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise StorageError(
            f"llama.cpp's log {path} cannot be written: {error.strerror}",
            fix="choose another place for the log",
        ) from error


def _check_model_file(path: Path) -> None:
    """llama.cpp is C++ and trusts much of a file: one that is not sound never reaches it.

    Its own messages are buried in its log, too.
    """
    if not path.is_file():
        raise MissingError(f"no model file at {path}", fix="export the model, or mend the path")
    try:
        refuse_damaged_gguf(path)
    except OSError as error:
        raise MissingError(
            f"the model file {path} cannot be read: {error.strerror}",
            fix="check its permissions",
        ) from error
