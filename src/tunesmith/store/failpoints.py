"""Named places where a process can be made to die, so that tests can prove that nothing is lost.

`TUNESMITH_FAILPOINT=name[:nth][=enospc|=term|=stop]` in the environment arms one, or several with a comma between:
at the nth time (the first when not given) that the program reaches it, the process is killed by SIGKILL, or
a full disk is reported there, or it gets SIGTERM and goes on, or SIGSTOP and waits for SIGCONT, so that a test
can change a file meanwhile. Unset, a failpoint costs one comparison.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.errors import ConfigError
from tunesmith.registry import nearest

__all__ = ["FAILPOINTS", "VARIABLE", "arm", "reach"]

VARIABLE = "TUNESMITH_FAILPOINT"

FAILPOINTS: Mapping[str, str] = {
    "references-batch": "before a micro batch of the reference log-probabilities",
    "references-written": "before the reference log-probabilities get their name",
    "trunk-batch": "before a micro batch of the frozen layers' pass",
    "trunk-states": "between the frozen layers' states on disk and their seal",
    "step-begin": "before the first micro batch of a step",
    "step-forward": "before a micro batch",
    "step-backward": "between a micro batch's forward and backward pass",
    "step-gradients": "after a micro batch's backward pass",
    "step-clip": "after the gradients were clipped",
    "step-optimizer": "after the optimizer changed the weights",
    "event-before": "before a step is written to the event log",
    "event-after": "after a step was written to the event log",
    "validation-before": "before a validation",
    "validation-after": "after a validation was written to the event log",
    "samples-before": "before sample answers",
    "samples-after": "after sample answers",
    "checkpoint-begin": "before a checkpoint's state is written",
    "checkpoint-state": "between a checkpoint's state and its seal",
    "checkpoint-seal": "between a checkpoint's seal and its name",
    "folder-aside": "between an older folder's going aside and the new one's getting its name",
    "checkpoint-named": "after a checkpoint got its name",
    "prune-begin": "before old checkpoints are deleted",
    "prune-one": "after one file of an old checkpoint was deleted",
    "prune-end": "after old checkpoints were deleted",
    "trained-begin": "before the trained weights are written for the seal",
    "trained-end": "after the trained weights were written",
    "data-chunk": "before a chunk of a file is parsed, in a worker or in this process",
    "data-spool": "before a parsed chunk's rows go to the spool",
    "data-settle": "between the last row's reading and the decisions about all rows",
    "data-write": "before the splits' rows are written",
    "export-reference": "before the trained model's own answers are kept",
    "export-merge": "before the merged weights are written",
    "export-form": "before a form is written",
    "export-facts": "between a form's facts and its name",
    "export-prove": "before a form is measured",
    "export-proved": "after a form's figures were kept",
    "export-sign": "between a bundle's seal and its signature",
    "seal-begin": "before the first file is hashed for the manifest",
    "seal-file": "before a file is hashed for the manifest",
    "seal-manifest": "before the manifest is written",
    "seal-end": "after the manifest was written",
}
"""Name -> where it is. Tests kill a run at every one of them."""

_SPELLED = re.compile(
    r"(?P<name>[a-z-]+)(?::(?P<nth>[1-9]\d*))?(?:=(?P<what>kill|enospc|term|stop))?"
)
# By name: not every system has all of them.
_SIGNALS = {"kill": "SIGKILL", "term": "SIGTERM", "stop": "SIGSTOP"}


@dataclass
class _Armed:
    name: str
    left: int
    what: str


class _State:
    """`armed` is empty when nothing is to happen; `read` says whether the environment was looked at."""

    armed: tuple[_Armed, ...] = ()
    read: bool = False


def arm(spelled: str) -> None:
    """Arm failpoints in this process, as the environment variable does; "" disarms.

    Raises:
        ConfigError: no such failpoint, or it is spelled wrong.
    """
    _State.read = True
    _State.armed = ()
    _State.armed = tuple(map(_armed, spelled.split(","))) if spelled else ()


def _armed(spelled: str) -> _Armed:
    found = _SPELLED.fullmatch(spelled)
    if found is None or found["name"] not in FAILPOINTS:
        hint = nearest(found["name"], FAILPOINTS) if found else ""
        raise ConfigError(
            f"{VARIABLE}={spelled} names no failpoint{hint}",
            why=f"it is name[:nth][=enospc|=term|=stop], with one of the names: {', '.join(FAILPOINTS)}",
            fix=f"mend or unset {VARIABLE}",
        )
    return _Armed(found["name"], int(found["nth"] or 1), found["what"] or "kill")


def reach(name: str) -> None:
    """Say that the program is at a failpoint; die, fail, wait or get a signal here when it is the armed one.

    Raises:
        OSError: ENOSPC, when that was asked for.
        ConfigError: the environment variable is wrong.
    """
    if not _State.read:
        arm(os.environ.get(VARIABLE, ""))
    if not _State.armed:
        return
    armed = next((one for one in _State.armed if one.name == name), None)
    if armed is None:
        return
    armed.left -= 1
    if armed.left:
        return
    _State.armed = tuple(one for one in _State.armed if one is not armed)
    if armed.what == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), signal.Signals[_SIGNALS[armed.what]])
