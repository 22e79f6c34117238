"""A run's event log (JSON lines) and its curves (TensorBoard)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tunesmith.errors import EnvironmentProblem
from tunesmith.telemetry.metrics import metric

__all__ = ["EventLog", "Recorder", "read_events"]


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


class Recorder:
    """Writes the declared metrics of each step to the event log and to TensorBoard.

    Args:
        log: the event log.
        tensorboard_dir: folder for TensorBoard's files.
        first_step: on a resumed run, the step it goes on from; later points are purged.
    """

    def __init__(self, log: EventLog, tensorboard_dir: Path, *, first_step: int = 0) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError as error:
            raise EnvironmentProblem(
                "TensorBoard files need the package tensorboardX, which is not installed",
                fix="pip install 'tunesmith[train]'",
            ) from error
        self._log = log
        purge = first_step + 1 if first_step else None
        self._board = SummaryWriter(logdir=str(tensorboard_dir), purge_step=purge)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._board.close()
        self._log.close()

    def record(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """Write metrics of a step.

        Args:
            event: what happened, such as "step" or "validation".
            step: optimizer steps so far.
            values: metric name -> value.

        Raises:
            KeyError: a metric was never declared.
        """
        for name, value in values.items():
            self._board.add_scalar(metric(name).name, value, step)
        short = {name.removeprefix("tunesmith_train_"): value for name, value in values.items()}
        self._log.write(event, step=step, **short)

    def note(self, event: str, **values: Any) -> None:
        """Write an event that is no metric: a sample answer, a checkpoint, a choice."""
        self._log.write(event, **values)
