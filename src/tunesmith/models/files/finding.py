"""What is wrong with a model's file: one value for the loaders that refuse and the command that reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

from tunesmith.errors import ModelError, listed

__all__ = ["Finding", "Findings", "Severity", "refuse"]

Severity = Literal["error", "warning", "note"]
_MOST_OF_A_KIND = 20
_SHOWN = 6
_LEFT_OUT = ": the rest is left out"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        severity: "error": it must not be loaded; "warning": it loads, and may do the wrong thing;
            "note": a fact.
        check: a stable name, such as "gguf-bounds".
        file: the file, as its reader was given it; below the checked folder by the time it is shown.
        where: the tensor, key or byte in it; empty for the whole file.
        what: the fact, with the value.
        why: why it matters.
        fix: what mends it.
    """

    severity: Severity
    check: str
    file: str
    where: str
    what: str
    why: str
    fix: str

    def as_dict(self) -> dict[str, str]:
        """The finding for `--json`; the keys are those of its attributes and stay."""
        return asdict(self)

    @property
    def stands_for_more(self) -> bool:
        """Whether it says that findings like those before it were left out."""
        return self.what.endswith(_LEFT_OUT)

    @property
    def line(self) -> str:
        """Place and fact on one line."""
        place = f"{self.file}: {self.where}" if self.where else self.file
        return f"{place}: {self.what}"


@dataclass
class Findings:
    """Collects the findings about one file; a damaged one may give millions, of which few are kept.

    Attributes:
        file: what the findings name.
        fix: the remedy of those that name none.
        found: in the order in which they came.
        most: of a kind.
    """

    file: str
    fix: str
    found: list[Finding] = field(default_factory=list)
    most: int = _MOST_OF_A_KIND
    _counts: dict[str, int] = field(default_factory=dict)

    def error(self, check: str, where: str, what: str, why: str = "", fix: str = "") -> None:
        """Something for which the file must not be loaded."""
        self._add("error", check, where, what, why, fix)

    def warning(self, check: str, where: str, what: str, why: str = "", fix: str = "") -> None:
        """Something with which it loads, and may do the wrong thing."""
        self._add("warning", check, where, what, why, fix)

    def note(self, check: str, where: str, what: str, why: str = "", fix: str = "") -> None:
        """A fact; it needs no remedy."""
        self._add("note", check, where, what, why, fix)

    @property
    def is_sound(self) -> bool:
        """No error so far."""
        return not any(one.severity == "error" for one in self.found)

    def _add(
        self, severity: Severity, check: str, where: str, what: str, why: str, fix: str
    ) -> None:
        count = self._counts[check] = self._counts.get(check, 0) + 1
        if count > self.most:
            return
        if count == self.most:
            where, what = (
                "",
                f"there are {count} findings of this kind or more{_LEFT_OUT}",
            )
        remedy = fix or ("" if severity == "note" else self.fix)
        self.found.append(Finding(severity, check, self.file, where, what, why, remedy))


def refuse(findings: Iterable[Finding], what: str, fix: str) -> None:
    """Nothing when no finding is an error.

    Raises:
        ModelError: names all errors.
    """
    errors = [one for one in findings if one.severity == "error"]
    if not errors:
        return
    lines = [f"{one.where}: {one.what}" if one.where else one.what for one in errors]
    raise ModelError(f"{what}:\n{listed(lines, limit=_SHOWN)}", why=errors[0].why, fix=fix)
