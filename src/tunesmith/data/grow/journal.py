"""A run's journal: what was asked and answered, one line each, so that a killed run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from tunesmith.errors import ArtifactError, BusyError, UsedDirectoryError
from tunesmith.store import flush_to_disk, storage_errors, write_atomically

__all__ = ["Journal"]


class Journal:
    """An append-only file of JSON lines; the first line says what it belongs to.

    Every entry is on the disk before `add` returns. A last line that a kill cut off is dropped when
    the file is opened again. While it is open no other process can open it.

    Args:
        path: made when it is not there.
        head: what decides the entries; equal for a run that goes on.
        what: what the file belongs to, for messages.
        fix: how to start anew, for messages.

    Raises:
        UsedDirectoryError: the file belongs to something else.
        ArtifactError: a line in the middle is damaged.
        BusyError: another process has it open.
        StorageError: the disk refuses.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], *, what: str, fix: str) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f".{path.name}.lock")
            # Where no file can be made the lock would say that somebody else holds it.
            lock.touch()
            self._lock = FileLock(lock)
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise BusyError(
                    f"{path} is being written by another process",
                    fix="wait for it to end, or name another file",
                ) from error
        try:
            self._open(head, what, fix)
        except BaseException:
            self._unlock()
            raise

    def _open(self, head: Mapping[str, Any], what: str, fix: str) -> None:
        first = json.loads(json.dumps(head))
        with storage_errors(self.path):
            if self.path.is_file() and self.path.stat().st_size:
                found = self._read()
                if found != first:
                    raise UsedDirectoryError(
                        f"{self.path} belongs to another {what}: {_difference(found, first)}",
                        why="going on with other input or settings would mix the two",
                        fix=fix,
                    )
            else:
                write_atomically(self.path, json.dumps(first, ensure_ascii=False) + "\n")
            self._stream = self.path.open("ab", buffering=0)

    def _read(self) -> dict[str, Any]:
        """The head; entries go to `entries`, and a cut-off last line goes."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        try:
            values = [json.loads(line) for line in lines]
            head, self.entries = values[0], values[1:]
        except (ValueError, IndexError) as error:
            raise ArtifactError(
                f"{self.path} is damaged: {error}",
                fix="mend or delete the line, or move the file away and start anew",
            ) from error
        if len(whole) < len(data):
            with self.path.open("r+b") as stream:
                stream.truncate(len(whole))
            flush_to_disk(self.path)
        return head if isinstance(head, dict) else {}

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append an entry and wait until it is on the disk.

        Raises:
            StorageError: the disk refuses; a piece of a line that it took is dropped at the next start.
        """
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with storage_errors(self.path):
            view = memoryview(line)
            while view:
                view = view[self._stream.write(view) or 0 :]
            os.fsync(self._stream.fileno())
        self.entries.append(json.loads(line))

    def close(self) -> None:
        """Let other processes open it."""
        self._stream.close()
        self._unlock()

    def _unlock(self) -> None:
        # While it is held: after its release another process may hold the file that would go.
        self.path.with_name(f".{self.path.name}.lock").unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first field that is not the same."""
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            return f"{name} was {_short(found.get(name))}, now {_short(wanted.get(name))}"
    return "its first line differs"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
