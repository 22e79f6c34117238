"""One tree of errors. Each says what is wrong (with the value), why, and how to mend it.

The same object becomes an exit code, an HTTP status and a studio card. An exception outside this
tree is a bug of ours and shows a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ArtifactError",
    "BusyError",
    "CapacityError",
    "ConfigError",
    "DataError",
    "EngineError",
    "EnvironmentProblem",
    "InterruptedRun",
    "MissingError",
    "ModelError",
    "ParityError",
    "StorageError",
    "TrainingError",
    "TunesmithError",
    "UsedDirectoryError",
    "counted",
    "listed",
    "reason_of",
]

_WORDLESS = (LookupError, TypeError, AttributeError, AssertionError, ArithmeticError)
"""Their texts are made for programmers: the kind belongs to them."""
_MOST_REASON = 300


class TunesmithError(Exception):
    """Base of all errors a user can mend; `exit_code` and `http_status` are fixed a class.

    Args:
        what: what is wrong, with the offending value and where it stands.
        why: the cause, in one sentence; empty when `what` says it all.
        fix: a command or an edit that mends it.
    """

    exit_code = 1
    http_status = 500

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what = what
        self.why = why
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        """The three parts, one a line."""
        parts = [self.what]
        if self.why:
            parts.append(f"why: {self.why}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "\n".join(parts)

    def as_dict(self) -> dict[str, str]:
        """The error for `--json` and HTTP bodies."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
        }


class ConfigError(TunesmithError):
    """A recipe or a flag is wrong: mend it by an edit."""

    exit_code = 2
    http_status = 400


class DataError(TunesmithError):
    """Rows of the user's data are wrong: mend the file."""

    exit_code = 3
    http_status = 422


class ModelError(TunesmithError):
    """A model cannot be loaded, or does not fit what is asked of it."""

    exit_code = 4


class MissingError(TunesmithError):
    """A file, artifact, package or model is not there: get it."""

    exit_code = 5
    http_status = 404


class ArtifactError(TunesmithError):
    """A sealed artifact is damaged, unsealed or of another kind: make it again."""

    exit_code = 6


class UsedDirectoryError(TunesmithError):
    """The directory holds a run already: resume it, or choose another."""

    exit_code = 7
    http_status = 409


class StorageError(TunesmithError):
    """The disk is full, read-only or not writable: make room or choose another place."""

    exit_code = 8
    http_status = 507


class CapacityError(TunesmithError):
    """The machine has too little memory or compute for what is asked: ask for less."""

    exit_code = 9
    http_status = 503


class TrainingError(TunesmithError):
    """Training cannot give a useful model: a mask without labels, a loss that is not finite."""

    exit_code = 10


class ParityError(TunesmithError):
    """An exported artifact is not the model that was judged; nothing was sealed."""

    exit_code = 11


class EngineError(TunesmithError):
    """The inference engine failed or is not up: see its log, restart it."""

    exit_code = 12
    http_status = 502


class BusyError(TunesmithError):
    """A port, lock or slot is taken: wait, or choose another."""

    exit_code = 13
    http_status = 409


class EnvironmentProblem(TunesmithError):
    """The installation lacks something: install it with the command in `fix`."""

    exit_code = 14


class InterruptedRun(TunesmithError):
    """The user stopped the work; what was done is saved. `fix` says how to go on."""

    exit_code = 130


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 row", "2 rows", "1,234 queries" (`plural` where it does not end in s)."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def listed(problems: Iterable[str], *, limit: int = 20) -> str:
    """Several problems as indented lines, so that one error can name them all.

    Args:
        problems: one line each.
        limit: how many are printed; the rest are counted.
    """
    lines = list(problems)
    shown = [f"  {line}" for line in lines[:limit]]
    if len(lines) > limit:
        shown.append(f"  ... and {len(lines) - limit} more")
    return "\n".join(shown)


def reason_of(error: BaseException) -> str:
    """Another library's error in one line that is never empty, for the `why` of one of ours.

    The first line of its text; with the next, where the first only announces it; the name of its kind
    where it has no text.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    told = told if len(told) <= _MOST_REASON else f"{told[:_MOST_REASON]} ..."
    kind = type(error).__name__
    if not told:
        return kind
    return f"{kind}: {told}" if isinstance(error, _WORDLESS) else told
