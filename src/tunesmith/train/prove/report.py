"""What the proofs found: one line each, green or red, with the measured figure and the remedy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tunesmith.errors import InterruptedRun, StorageError, TunesmithError

__all__ = [
    "FORMAT",
    "NEEDS",
    "PROOFS",
    "QUICK",
    "Finding",
    "Ledger",
    "Proof",
    "Report",
    "Status",
    "with_needs",
]

FORMAT = 1
"""Of `Report.as_dict`; raised when a key changes its meaning."""

Status = Literal["green", "red", "skipped"]

PROOFS: Mapping[str, str] = {
    "mask": "trained tokens are the assistant's text and nothing else",
    "stop": "rows whose answers all end with a trained stop token",
    "whole": "no answer is cut",
    "build": "model, method and optimizer are built",
    "split": "any split into micro batches gives the same gradients",
    "packed": "packed rows have the gradients of rows alone",
    "fast": "the fast path has the gradients of the plain path",
    "resume": "resumed equals never stopped",
    "save": "saved and loaded equals before",
    "merge": "merged equals base + adapter",
    "longest": "rehearsed: the longest batch fits into memory",
    "training": "rehearsed: a short training, validated and sealed",
    "evaluation": "rehearsed: an evaluation",
    "export": "rehearsed: an export of every form",
}
"""Name -> what is proved, in the order of the page."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "mask": ("stop",),
    "whole": ("mask",),
    "split": ("build",),
    "packed": ("build",),
    "fast": ("build",),
    "resume": ("build",),
    "save": ("build",),
    "merge": ("save",),
    "longest": ("build",),
    "training": ("build",),
    "evaluation": ("training",),
    "export": ("training",),
}
"""Name -> the proofs without which this one cannot be taken; a red one does not stop any other."""

QUICK = ("mask", "stop", "whole")
"""The proofs that need no model: step 0 of every training."""


def with_needs(names: Iterable[str]) -> frozenset[str]:
    """Names, the quick ones, and all that they need."""
    found: set[str] = set()
    waiting = [*QUICK, *names]
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting += NEEDS.get(name, ())
    return frozenset(found)


@dataclass(frozen=True)
class Finding:
    """What one proof measured.

    Attributes:
        ok: whether the claim holds.
        figure: the measured figure, and `limit`, what it is held against; None when there is none.
        unit: of both.
        detail: on what it was measured, with n.
        why: what a red figure means.
        remedy: a command or an edit; only for a red one.
        skipped: why there is nothing to prove; then the other values mean nothing.
    """

    ok: bool = True
    figure: float | None = None
    limit: float | None = None
    unit: str = ""
    detail: str = ""
    why: str = ""
    remedy: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Proof:
    """One line of the page; `why` and `remedy` are empty unless it is red."""

    name: str
    title: str
    status: Status
    figure: float | None
    limit: float | None
    unit: str
    detail: str
    why: str
    remedy: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """All proofs of one command.

    Attributes:
        proofs: in the order of `PROOFS`.
        facts: recipe, dataset, base, method, precision, device, and the sample of rows.
        seconds: wall time of everything.
    """

    proofs: tuple[Proof, ...]
    facts: Mapping[str, Any]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no proof is red."""
        return not any(proof.status == "red" for proof in self.proofs)

    def as_dict(self) -> dict[str, Any]:
        """The report for `--json` and for `proofs.json`."""
        return {
            "format": FORMAT,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            **self.facts,
            "proofs": [asdict(proof) for proof in self.proofs],
        }


@dataclass
class Ledger:
    """Takes proofs one after the other; a red one stops only those that need it.

    Attributes:
        tell: called with the name of a proof before it is taken.
        asked: the proofs to take; others are passed over and do not show.
    """

    tell: Callable[[str], None]
    asked: frozenset[str] = frozenset(PROOFS)
    proofs: dict[str, Proof] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    """Proofs that ended with an error, or were skipped."""

    def take(self, name: str, work: Callable[[], Finding], hint: str = "") -> bool:
        """Do `work` and note what it found; returns whether the proof is green.

        An error of ours makes the proof red with the error's own remedy, or `hint`.

        Raises:
            KeyboardInterrupt: the user stopped a rehearsal, which says nothing about the proof.
        """
        if name not in self.asked:
            return False
        missing = [other for other in NEEDS.get(name, ()) if not self.is_taken(other)]
        if missing:
            return self.skip(name, f"needs {', '.join(missing)}")
        self.tell(name)
        began = time.monotonic()
        try:
            found = work()
        except InterruptedRun:
            # Of a rehearsed stage, whose way of going on is not that of the proofs.
            raise KeyboardInterrupt from None
        except TunesmithError as error:
            self.failed.add(name)
            why = error.why
            if isinstance(error, StorageError) and not why:
                why = "the disk refuses"
            found = Finding(False, detail=error.what, why=why, remedy=error.fix or hint)
        return self.note(name, found, time.monotonic() - began)

    def note(self, name: str, found: Finding, seconds: float = 0.0) -> bool:
        """Write a finding down; returns whether it is green."""
        if found.skipped:
            return self.skip(name, found.skipped)
        self.proofs[name] = Proof(
            name=name,
            title=PROOFS[name],
            status="green" if found.ok else "red",
            figure=found.figure,
            limit=found.limit,
            unit=found.unit,
            detail=found.detail,
            why="" if found.ok else found.why,
            remedy="" if found.ok else found.remedy,
            seconds=round(seconds, 3),
        )
        return found.ok

    def skip(self, name: str, reason: str) -> bool:
        """Note that a proof was not taken, and why; returns False."""
        if name not in self.asked:
            return False
        self.failed.add(name)
        self.proofs[name] = Proof(
            name, PROOFS[name], "skipped", None, None, "", reason, "", "", 0.0
        )
        return False

    def is_taken(self, name: str) -> bool:
        """Whether the proof gave what later ones need: red by its figure is enough, an error is not."""
        return name in self.proofs and name not in self.failed

    def is_green(self, name: str) -> bool:
        """Whether the proof was taken and holds."""
        return name in self.proofs and self.proofs[name].status == "green"

    def in_order(self) -> tuple[Proof, ...]:
        """What was noted, in the order of the page."""
        return tuple(self.proofs[name] for name in PROOFS if name in self.proofs)
