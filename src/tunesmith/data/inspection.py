"""What a file is taken for: form, schema and fields, before any of it is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.data.problems import Problems
from tunesmith.data.read import AUTO, STDIN, Source, open_source, survey
from tunesmith.data.rows import RawRow, json_kind
from tunesmith.data.schemas import HEAD_ROWS, Options, tell

__all__ = ["FieldFound", "FileFound", "Inspection", "inspect"]

_SHOWN_CHARACTERS = 120


@dataclass(frozen=True)
class FieldFound:
    """A field of the rows that were looked at.

    Attributes:
        holds: kind of value -> rows.
        rows: rows that have the field.
        example: the begin of its first value, as it stands in the file.
    """

    name: str
    holds: Mapping[str, int]
    rows: int
    example: str


@dataclass(frozen=True)
class FileFound:
    """What one file is taken for.

    Attributes:
        form: what it is; empty when it cannot be read.
        told_by: what the form was told from.
        bytes: its size on the disk; None for stdin.
        schema: of its rows; empty when no schema fits.
        mapping: what a field is for -> its name in the file.
        share: part of the rows looked at that have this schema.
        schema_told_by: what the schema was told from; when none fits, what is missing.
        looked_at: rows that were read for this.
        is_whole: these are all rows of the file.
        first: the first rows: where, and the begin of each field's value.
        problems: what is wrong in the part that was read, the first 50.
        n_problems: how many there are.
    """

    path: str
    form: str
    told_by: str
    compression: str
    encoding: str
    delimiter: str
    container: str
    bytes: int | None
    schema: str
    mapping: Mapping[str, str]
    share: float
    schema_told_by: str
    looked_at: int
    is_whole: bool
    fields: tuple[FieldFound, ...]
    first: tuple[Mapping[str, Any], ...]
    problems: tuple[str, ...]
    n_problems: int


@dataclass(frozen=True)
class Inspection:
    """Files, and what was passed over in folders, with the reason."""

    files: tuple[FileFound, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_problems(self) -> int:
        """Problems of all files."""
        return sum(file.n_problems for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"files": [asdict(file) for file in self.files], "skipped": dict(self.skipped)}


def inspect(
    places: Iterable[Path | str],
    *,
    form: str = AUTO,
    options: Options | None = None,
    n_shown: int = 3,
) -> Inspection:
    """Look at the first 1,000 rows of each file and say how they would be read.

    Args:
        places: files, folders, patterns, datasets of the hub, or `-` for stdin.
        form: a name of `read.FORMS` when the content does not tell it.
        options: schema and fields that the user names.
        n_shown: rows to show of each file.

    Raises:
        ConfigError: no form or schema has the name that was given.
        MissingError: a place is not there.
        EnvironmentProblem: a package that a form needs is not installed.
    """
    found = survey(places)
    files = tuple(
        _inspected(open_source(path, form=form), options, n_shown) for path in found.files
    )
    return Inspection(files, {str(path): why for path, why in found.skipped.items()})


def _inspected(source: Source, options: Options | None, n_shown: int) -> FileFound:
    problems = Problems()
    rows = source.rows(problems)
    head = list(islice(rows, HEAD_ROWS))
    is_whole = len(head) < HEAD_ROWS or next(rows, None) is None
    rows.close()
    told = tell(head, options)
    is_file = str(source.path) != STDIN
    return FileFound(
        path=source.name,
        form=source.form,
        told_by=source.why,
        compression=source.compression,
        encoding=source.encoding,
        delimiter=source.delimiter,
        container=source.container,
        bytes=source.path.stat().st_size if is_file else None,
        schema=told.schema,
        mapping=dict(told.mapping),
        share=told.share,
        schema_told_by=told.why if head else "no rows",
        looked_at=len(head),
        is_whole=is_whole,
        fields=_fields(head),
        first=tuple(_shown(row) for row in head[:n_shown]),
        problems=tuple(problems.lines),
        n_problems=problems.n_problems,
    )


def _fields(head: Sequence[RawRow]) -> tuple[FieldFound, ...]:
    holds: dict[str, Counter[str]] = {}
    examples: dict[str, str] = {}
    for row in head:
        for name, found in row.fields.items():
            holds.setdefault(name, Counter())[json_kind(found.value)] += 1
            examples.setdefault(name, found.raw[:_SHOWN_CHARACTERS])
    return tuple(
        FieldFound(name, dict(counts), counts.total(), examples[name])
        for name, counts in holds.items()
    )


def _shown(row: RawRow) -> dict[str, Any]:
    """A row for the screen: long values are cut."""
    shown = {name: found.raw for name, found in row.fields.items()}
    cut = {
        name: raw if len(raw) <= _SHOWN_CHARACTERS else f"{raw[:_SHOWN_CHARACTERS]}..."
        for name, raw in shown.items()
    }
    return {"where": row.where, "fields": cut}
