"""Child processes that cost no imports: forks of one process, which has the heavy packages imported.

A child is a process in all that is asked of it: its signals, its death, its exit code, its files and its memory.
What it cannot show is whether a program imports by itself what it needs: for that, start it as a user does.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

PRELOADED = [
    "torch",
    "transformers.generation",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.llama.tokenization_llama",
    "peft",
    "peft.tuners.lora",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "plotext",
    "tensorboardX",
    "gguf",
    "conversion.llama",
    "tunesmith.engine.backends.llama_cpp",
    "pytest",
    "tunesmith.cli.main",
    "tunesmith.cli.run",
    "tunesmith.data.stage",
    "tunesmith.train.stage",
    "tunesmith.evaluate.stage",
    "tunesmith.export.stage",
]
"""Nothing here starts a thread when it is imported: a fork has only the thread that forks."""


class Child:
    """As much of `subprocess.Popen` as is needed here; what it prints goes to two files."""

    def __init__(
        self, words: list[str], cwd: Path, environment: Mapping[str, str], errors: Path | None
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="child-"))
        weakref.finalize(self, shutil.rmtree, folder)
        self.printed = folder / "printed"
        self.errors = errors or folder / "errors"
        places = (str(self.printed), str(self.errors))
        for place in places:
            Path(place).touch()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.process = context.Process(
            target=run, args=(words, str(cwd), dict(environment), places), daemon=True
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        code = self.poll()
        if code is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait; what it printed."""
        self.wait(timeout)
        return self.printed.read_text(encoding="utf-8"), self.errors.read_text(encoding="utf-8")


def command(*args: object, cwd: Path, environment: Mapping[str, str] = os.environ) -> Child:
    """`tunesmith ARGS`, started."""
    return Child(["tunesmith", *map(str, args)], cwd, environment, None)


def complete(
    words: list[str], cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """`tunesmith WORDS`, run to its end."""
    child = command(*words, cwd=cwd, environment=environment)
    printed, errors = child.communicate(timeout=500)
    return subprocess.CompletedProcess(words, child.wait(), printed, errors)


def script(
    code: str,
    *args: object,
    environment: Mapping[str, str] = os.environ,
    errors: Path | None = None,
) -> Child:
    """`python -c CODE ARGS`, started; its stderr goes to `errors`."""
    return Child(["-c", code, *map(str, args)], Path.cwd(), environment, errors)


def run(words: list[str], cwd: str, environment: dict[str, str], places: tuple[str, str]) -> None:
    """In the child."""
    gc.freeze()  # What is imported stays: to look through it takes a third of a second each time.
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, place in zip((1, 2), places, strict=True):
        target = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(target, number)
        os.close(target)
    sys.stdout.reconfigure(encoding="utf-8")
    sys.stderr.reconfigure(encoding="utf-8", line_buffering=True)
    if words[0] == "-c":
        sys.argv = [words[0], *words[2:]]
        exec(compile(words[1], "<script>", "exec"), {"__name__": "__main__"})
        return
    from tunesmith.cli.main import main

    sys.argv = words
    main(words[1:])
