"""SIGINT and SIGTERM while training: noted at once, acted on where nothing is half done."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["Check", "StopSignal", "Stopped", "checked", "go_on", "stop_signal", "terminable"]

Check = Callable[[], None]
"""Called where work may be left: raises `Stopped` when a signal came."""


def go_on() -> None:
    """The check when nothing asks for a stop."""


class Stopped(Exception):
    """SIGINT or SIGTERM came; its text is the signal's name."""


class StopSignal:
    """Whether SIGINT or SIGTERM came; a second one stops at once, without saving."""

    def __init__(self) -> None:
        self.wanted = ""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; whoever works acts on it at the next check."""
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = signal.Signals(number).name
        # Raised from here, an error would come out of whatever line runs now. With `|& tee log` the
        # same Ctrl-C ends `tee`, and stderr has no reader any more.
        with suppress(OSError):
            os.write(2, b"\nstopping; press Ctrl-C again to stop without saving\n")

    def check(self) -> None:
        """Called between micro batches and between their layers.

        Raises:
            Stopped: a signal came.
        """
        if self.wanted:
            raise Stopped(self.wanted)


@contextmanager
def checked(layers: Iterable[Any], check: Check, *, backward: bool = True) -> Iterator[None]:
    """While the block runs, `check` is called before each layer, so that a long pass ends early.

    What it raises comes out of the forward or backward pass, which then leaves half of its gradients.

    Args:
        layers: torch modules whose first argument is a tensor.
        check: see `Check`.
        backward: also where the backward pass leaves a layer. Not when weights change inside of it.
    """

    def before(_layer: Any, inputs: tuple[Any, ...]) -> None:
        check()
        if backward and inputs and inputs[0].requires_grad:
            inputs[0].register_hook(lambda _gradient: check())

    with ExitStack() as hooks:
        for layer in layers if check is not go_on else ():
            hooks.callback(layer.register_forward_pre_hook(before).remove)
        yield


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Catch SIGINT and SIGTERM while the block runs, in the main thread."""
    stop = StopSignal()
    with _caught({signal.SIGINT: stop, signal.SIGTERM: stop}):
        yield stop


@contextmanager
def terminable() -> Iterator[None]:
    """While the block runs, SIGTERM ends it as Ctrl-C does, so that it can clean up."""
    with _caught({signal.SIGTERM: signal.default_int_handler}):
        yield


@contextmanager
def _caught(
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]],
) -> Iterator[None]:
    """Other handlers while the block runs; only the main thread may set them, others change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
