"""A run's event log (JSON lines) and its curves (TensorBoard)."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.errors import EnvironmentProblem
from tunesmith.telemetry.metrics import metric

__all__ = ["EventLog", "Recorder", "read_events"]

FLUSH_SECONDS = 10.0
"""So often are TensorBoard's points brought to the disk."""


class EventLog:
    """Appends one JSON object a line, flushed at once, so a killed process loses nothing.

    Args:
        path: the file; made when it is not there. A half-written last line is cut off first.
    """

    def __init__(self, path: Path) -> None:
        _drop_half_line(path)
        self._stream = path.open("a", encoding="utf-8")

    def write(self, event: str, **values: Any) -> None:
        """Append an event with the time and its values.

        Raises:
            OSError: the disk refuses; the line may be cut off and is dropped at the next opening.
        """
        line = {"time": round(time.time(), 3), "event": event, **values}
        self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log, oldest first."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def _drop_half_line(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb+") as stream:
        data = stream.read()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            stream.truncate(whole)


class _Board:
    """A file for TensorBoard, written by the thread that calls.

    The package's own writer has a thread, which a full disk ends, and a queue of ten, which is then
    never emptied: training would wait for it for ever.

    Args:
        folder: made when it is not there.
        purge_step: points of earlier files from this step on are hidden.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        try:
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.record_writer import RecordWriter
        except ModuleNotFoundError as error:
            raise EnvironmentProblem(
                "TensorBoard files need the package tensorboardX, which is not installed",
                fix="pip install 'tunesmith[train]'",
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._flushed_at = time.monotonic()
        self._writer = RecordWriter(str(_new_file(folder)))
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=purge_step, session_log=start))

    def add(self, name: str, value: float, step: int) -> None:
        """A point of a curve; on the disk after some seconds."""
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._write(self._event(step=step, summary=summary))
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())


def _new_file(folder: Path) -> Path:
    """A name as TensorBoard wants it; an attempt in the same second of the same process gets another one."""
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
    paths = (folder / f"{name}.{number}" for number in itertools.count())
    return next(path for path in paths if not path.exists())


class Recorder:
    """Writes the declared metrics of each step to the event log and to TensorBoard.

    Args:
        log: the event log.
        tensorboard_dir: folder for TensorBoard's files.
        first_step: on a resumed run, the step it goes on from; later points are purged.
    """

    def __init__(self, log: EventLog, tensorboard_dir: Path, *, first_step: int = 0) -> None:
        self._log = log
        with ExitStack() as opened:
            opened.callback(log.close)
            self._board = _Board(tensorboard_dir, first_step + 1 if first_step else None)
            opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # With an error in flight, a disk that refuses once more must not take its place.
        with suppress(OSError) if error is not None else nullcontext(), ExitStack() as opened:
            opened.callback(self._log.close)
            opened.callback(self._board.close)

    def record(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """Write metrics of a step.

        Args:
            event: what happened, such as "step" or "validation".
            step: optimizer steps so far.
            values: metric name -> value.

        Raises:
            KeyError: a metric was never declared.
            OSError: the disk refuses.
        """
        for name, value in values.items():
            self._board.add(metric(name).name, value, step)
        short = {name.removeprefix("tunesmith_train_"): value for name, value in values.items()}
        self._log.write(event, step=step, **short)

    def note(self, event: str, **values: Any) -> None:
        """Write an event that is no metric: a sample answer, a checkpoint, a choice."""
        self._log.write(event, **values)
