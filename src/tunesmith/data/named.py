"""What the user named: files, each once, and fields, which some row must have."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tunesmith.data.rows import BadRow, RawRow, Row
from tunesmith.data.schemas import SCHEMAS, Told
from tunesmith.errors import ConfigError

__all__ = ["conditions_in", "fields_in", "idle_conditions", "idle_fields", "once"]


def once(paths: Sequence[Path], what: str = "") -> Sequence[Path]:
    """The files, unless one stands there twice: its rows would too.

    Args:
        what: names the files; the command line when empty.

    Raises:
        ConfigError: names them.
    """
    seen: dict[str, Path] = {}
    again: list[str] = []
    for path in paths:
        first = seen.setdefault(os.path.realpath(path), path)
        if first is not path:
            again.append(f"{path}" if path == first else f"{path}, which is {first}")
    if again:
        raise ConfigError(
            f"{what or 'the command line'} means a file twice: {'; '.join(again)}",
            why="each of its rows would be there twice",
            fix="name it once, alone or by a pattern or folder"
            + ("; rows are weighted by a mix" if what else ""),
        )
    return paths


def fields_in(raw: RawRow | BadRow, mapping: Mapping[str, str]) -> Iterator[str]:
    """Those of the mapped fields that a row has."""
    if isinstance(raw, RawRow):
        yield from (name for name in mapping.values() if name in raw.fields)


def conditions_in(row: Row, drop_where: Mapping[str, object]) -> Iterator[str]:
    """Settings of `data.clean.drop_where` whose field a row has, for `idle_conditions`."""
    yield from (_condition(name) for name in drop_where if name in row.meta)


def idle_conditions(
    drop_where: Mapping[str, object], there: Collection[str], *, n_rows: int
) -> Iterator[tuple[str, str]]:
    """Settings of `data.clean.drop_where` that can drop no row, as when a name is misspelled: (setting, why).

    Args:
        there: what `conditions_in` gave for the rows.
        n_rows: how many there were; of none nothing is said.
    """
    for name in drop_where if n_rows else ():
        if _condition(name) not in there:
            yield _condition(name), f"no row has a field {name!r}"


def _condition(name: str) -> str:
    return f"data.clean.drop_where.{name}"


def idle_fields(
    mapping: Mapping[str, str], told: Iterable[Told], there: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Fields that are mapped and have no effect, as when a name is misspelled: (setting, why).

    Args:
        mapping: use -> name of a field.
        told: of each file that was read.
        there: those of the names that stand in any row.
    """
    found = list(told)
    if not found or not all(one.schema for one in found):
        return  # Why no schema fits is said of the file.
    schemas = dict.fromkeys(name for one in found for name in (one.schema, *one.others) if name)
    for use, name in mapping.items():
        setting = f"data.fields.{use} (--field {use}={name})"
        if not any(use in SCHEMAS[schema].uses for schema in schemas):
            yield setting, f"rows that are read as {' and '.join(schemas)} have no place for it"
        elif name not in there:
            yield setting, f"no row has a field {name!r}"
