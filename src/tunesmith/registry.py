"""Lazy tables: a name leads to "module:attribute", imported only when it is used."""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from tunesmith.errors import ConfigError, EnvironmentProblem

__all__ = ["Table", "nearest"]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as " (did you mean 'rank'?)", or "" when nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


@functools.cache
def _added(group: str) -> Mapping[str, str]:
    """What installed packages add. Looking it up reads a file of every installed package."""
    return {point.name: point.value for point in entry_points(group=group)}


class Table(Mapping[str, str]):
    """A named table of variants. Packages add rows by the entry point group `tunesmith.<kind>`.

    Args:
        kind: what a row is, in the singular ("method"); it names the entry point group.
        rows: name -> "module:attribute".
        extra: the pip extra that brings the rows' dependencies, named when an import fails.
    """

    def __init__(self, kind: str, rows: Mapping[str, str], *, extra: str = "") -> None:
        self.kind = kind
        self._own = dict(rows)
        self._extra = extra

    def _rows(self) -> dict[str, str]:
        return {**_added(f"tunesmith.{self.kind}"), **self._own}

    def __getitem__(self, name: str) -> str:
        return self._rows()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows())

    def __len__(self) -> int:
        return len(self._rows())

    def load(self, name: str) -> Any:
        """The object behind `name`.

        Raises:
            ConfigError: no such row; the message names the nearest one.
            EnvironmentProblem: the row's module needs a package that is not installed.
        """
        rows = self._rows()
        if name not in rows:
            raise ConfigError(
                f"no {self.kind} is called {name!r}{nearest(name, rows)}",
                fix=f"use one of: {', '.join(sorted(rows))}",
            )
        module, _, attribute = rows[name].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.startswith("tunesmith"):
                raise
            extra = f"tunesmith[{self._extra}]" if self._extra else str(error.name)
            raise EnvironmentProblem(
                f"{self.kind} {name!r} needs the package {error.name!r}, which is not installed",
                fix=f"pip install '{extra}'",
            ) from error
