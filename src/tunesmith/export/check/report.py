"""What a check came to: its findings in order, facts, and the exit code that they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import ArtifactError, ModelError
from tunesmith.models.files import Finding, Findings

__all__ = ["CheckOptions", "CheckResult", "Desk"]

_ORDER = {"error": 0, "warning": 1, "note": 2}
_SEAL = "seal-"
"""Begins the names of the checks whose errors mean that a sealed artifact is not what was sealed."""


_MOST_OF_A_KIND = 20_000
"""Findings about a file whose header is sound: each tensor of a large adapter may be wrong."""


@dataclass(frozen=True)
class CheckOptions:
    """How far a check goes.

    Attributes:
        values: read every weight, too, for numbers that are not finite; None does so up to a size
            that takes seconds.
        hashes: hold every file against the manifest's SHA-256.
        base: folder or GGUF file of an adapter's base model; None looks where the adapter says.
        public_key: of who must have signed the folder; None leaves the signature alone.
        advance: called with the bytes that were read since the last call.
    """

    values: bool | None = None
    hashes: bool = True
    base: Path | None = None
    public_key: Path | None = None
    advance: Callable[[int], None] = lambda _n_bytes: None


@dataclass(frozen=True)
class CheckResult:
    """What was found.

    Attributes:
        place: what was checked.
        kinds: what it holds, such as "folder", "adapter", "gguf", "sealed export".
        findings: errors first.
        facts: file or folder -> facts, as JSON values.
    """

    place: Path
    kinds: tuple[str, ...]
    findings: tuple[Finding, ...]
    facts: Mapping[str, Mapping[str, Any]]

    def count(self, severity: str) -> int:
        """Findings of a severity."""
        return sum(one.severity == severity for one in self.findings)

    def exit_code(self, *, strict: bool = False) -> int:
        """0, or that of the error which a command would end with that loads it."""
        errors = [one for one in self.findings if one.severity == "error"]
        if any(one.check.startswith(_SEAL) for one in errors):
            return ArtifactError.exit_code
        failed = bool(errors) or (strict and self.count("warning") > 0)
        return ModelError.exit_code if failed else 0

    def as_dict(self) -> dict[str, Any]:
        """The result for `--json`; its keys stay."""
        return {
            "format": 1,
            "place": str(self.place),
            "kinds": list(self.kinds),
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "notes": self.count("note"),
            "findings": [one.as_dict() for one in self.findings],
            "facts": {name: dict(facts) for name, facts in self.facts.items()},
        }


@dataclass
class Desk:
    """What the parts of a check share.

    Attributes:
        root: what was asked for; findings name files below it.
        sealed: facts of the manifest, when it is a sealed artifact.
        kinds: what was found.
        trusted: files whose headers were found sound.
    """

    root: Path
    options: CheckOptions
    sealed: Mapping[str, Any] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    _found: list[Findings] = field(default_factory=list)

    def name(self, path: Path) -> str:
        """How findings call a file."""
        if path == self.root:
            return path.name or str(path)
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return str(path)

    def about(self, path: Path, fix: str) -> Findings:
        """Findings about a file.

        Args:
            fix: the remedy of those that name none.
        """
        found = Findings(self.name(path), fix, most=_MOST_OF_A_KIND)
        self._found.append(found)
        return found

    def take(self, path: Path, found: Iterable[Finding]) -> None:
        """Findings of a header's reader."""
        self._found.append(Findings(self.name(path), "", list(found)))

    def tell(self, path: Path, **facts: Any) -> None:
        """Facts about a file or folder."""
        self.facts.setdefault(self.name(path), {}).update(facts)

    def findings(self) -> tuple[Finding, ...]:
        """All findings so far, errors first, each once.

        Several parts read the same file. Of the same fact the last one's remedy stays: it knows what the
        file is for.
        """
        every = {
            (one.severity, one.check, one.file, one.where, one.what): one
            for found in self._found
            for one in found.found
        }
        return tuple(sorted(every.values(), key=lambda one: _ORDER[one.severity]))
