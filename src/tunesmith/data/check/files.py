"""Files, streams, recipes and sealed datasets through the checks, in one pass and bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tunesmith.config import ModelConfig
from tunesmith.data.check import domains
from tunesmith.data.check.checker import Checker
from tunesmith.data.check.finding import Finding, finding
from tunesmith.data.check.options import CheckOptions
from tunesmith.data.check.score import Score, Tally, has_line
from tunesmith.data.check.tokens import TokenMeter, meter_of
from tunesmith.data.check.unreadable import Noted
from tunesmith.data.check.users_words import answer_in_users_words, in_users_words
from tunesmith.data.named import fields_in, idle_fields
from tunesmith.data.parallel import ordered_map
from tunesmith.data.problems import Problems
from tunesmith.data.read import Chunk, open_source, parse_rows
from tunesmith.data.rows import RawRow, Row
from tunesmith.data.schemas import HEAD_ROWS, Options, Told, tell, to_row
from tunesmith.errors import MissingError, counted, listed

__all__ = ["CheckResult", "Wanted", "check_files"]

_LARGE_BYTES = 10_000_000


@dataclass(frozen=True)
class Wanted:
    """What is checked, and how it is read.

    Attributes:
        files: in their order; "-" is stdin.
        reading: mapping of fields, schema, system message.
        require: field -> the value that a row must have; other rows are counted and not checked.
        model: whose tokenizer measures the rows; None leaves those checks out.
        form: of the files; told from their content when "auto".
    """

    files: tuple[str, ...]
    reading: Options = field(default_factory=Options)
    require: tuple[tuple[str, Any], ...] = ()
    model: ModelConfig | None = None
    form: str = "auto"


@dataclass
class CheckResult:
    """What a check came to.

    Attributes:
        n_rows: rows that were read, those included that cannot be used.
        n_unusable: rows and lines that cannot be read or have no schema.
        n_left_out: rows that `data.require` leaves out; they are not among `n_rows`.
        schemas: file -> schema.
        told_by: file -> what its schema was told by; when none fits, what is missing.
        domains: task -> domain.
        tally: counts and first findings of each check.
    """

    n_rows: int = 0
    n_unusable: int = 0
    n_left_out: int = 0
    schemas: dict[str, str] = field(default_factory=dict)
    told_by: dict[str, str] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    @property
    def score(self) -> Score:
        """The score of what was checked."""
        return self.tally.score(self.n_rows, self.n_rows - self.n_unusable)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; of each check the first findings."""
        found = self.score.as_dict()
        for reason in found["reasons"]:
            kept = self.tally.first[reason["check"], reason["severity"]]
            reason["first"] = [one.as_dict() for one in kept]
        return {
            "rows": self.n_rows,
            "unusable_rows": self.n_unusable,
            "left_out_rows": self.n_left_out,
            "schemas": self.schemas,
            "told_by": self.told_by,
            "domains": self.domains,
            "score": found["points"],
            "colour": found["colour"],
            "reasons": found["reasons"],
        }


@dataclass(frozen=True)
class Job:
    """The same for all pieces of a file; sent to each worker once."""

    wanted: Wanted
    options: CheckOptions
    told: Told


@dataclass
class _Part:
    """What a piece of a file came to."""

    findings: list[Finding]
    checker: Checker
    n_bytes: int
    n_rows: int = 0
    n_unusable: int = 0
    n_left_out: int = 0
    named: set[str] = field(default_factory=set)

    def refuse(self, found: list[Finding], options: CheckOptions) -> None:
        """Count lines that cannot be read; a problem without a line is about the whole file."""
        n_lines = sum(has_line(one.where) for one in found)
        self.n_rows += n_lines
        self.n_unusable += n_lines
        self.findings += _allowed(found, options)


def check_files(
    wanted: Wanted,
    options: CheckOptions,
    *,
    each: Callable[[Finding], None] | None = None,
    advance: Callable[[int], None] | None = None,
    processes: int | None = None,
) -> CheckResult:
    """Check everything in one pass; the result is the same for any number of processes.

    Args:
        each: gets every finding, in the order of the rows, those about all rows last.
        advance: gets the number of bytes of each piece that is done.
        processes: worker processes; one a core, or none where there is little to do, when None.

    Raises:
        MissingError: a file or database is not there.
        EnvironmentProblem: a package that is needed is not installed.
    """
    _refuse_missing(options)
    result = CheckResult()
    if wanted.model is not None:
        options = options.drawn_of(_about_rows(wanted))
    whole = Checker(options)

    def take(found: Iterable[Finding]) -> None:
        for one in found:
            result.tally.add(one)
            if each is not None:
                each(one)

    told: dict[str, Told] = {}
    named: set[str] = set()
    for file in wanted.files:
        with closing(_parts(file, wanted, options, result, told, processes)) as parts:
            for part in parts:
                named |= part.named
                take(part.findings)
                whole.merge(part.checker)
                result.n_rows += part.n_rows
                result.n_unusable += part.n_unusable
                result.n_left_out += part.n_left_out
                if advance is not None:
                    advance(part.n_bytes)
    take(
        finding(options.name, "idle-field", f"{setting}: {why}")
        for setting, why in idle_fields(wanted.reading.mapping, told.values(), named)
        if "idle-field" not in options.allow
    )
    take(answer_in_users_words(one, told) for one in whole.closing())
    return result


def _refuse_missing(options: CheckOptions) -> None:
    missing = [f"{name}: {path}" for name, path in options.databases.items() if not path.is_file()]
    if missing:
        raise MissingError(
            f"{counted(len(missing), 'database')} not there:\n{listed(missing)}",
            fix="correct the paths under data.databases, or of --database",
        )


def _parts(
    file: str,
    wanted: Wanted,
    options: CheckOptions,
    result: CheckResult,
    every: dict[str, Told],
    processes: int | None,
) -> Generator[_Part, None, None]:
    """The pieces of one file, checked, in order; what its rows are read as goes to `every`."""
    chunks = open_source(file, form=wanted.form).chunks()
    first, rows_of_first = _head(chunks)
    head = rows_of_first[:HEAD_ROWS]
    told = tell(head, wanted.reading)
    every[file] = told
    unheard = Problems()
    rows = [to_row(raw, told, wanted.reading, unheard) for raw in head]
    here = domains.tell([row for row in rows if row is not None])
    # A file too small to tell its domain by has that of the files before it.
    options = options.told({**result.domains, **here})
    result.domains.update(here if options.domain == "auto" else {"": options.domain})
    result.schemas[file], result.told_by[file] = told.schema or "unknown", told.why
    if head and not told.schema:
        yield _Part([_no_schema(head[0], told)], Checker(options), 0)
    job = Job(wanted, options, told)
    # Each worker loads the tokenizer: seconds, which pay for themselves with many rows only.
    is_small = wanted.model is not None and _size(file) < _LARGE_BYTES
    n_workers = 1 if is_small and processes is None else processes
    yield from ordered_map(f"{__name__}:checked", job, chain(first, chunks), processes=n_workers)


def _about_rows(wanted: Wanted) -> int:
    """Rows of all files, by their sizes and the first rows of each; 0 where that cannot be known."""
    n_rows = 0
    for file in wanted.files:
        if file == "-" or not Path(file).is_file():
            return 0
        first, head = _head(open_source(file, form=wanted.form).chunks())
        n_bytes = sum(map(_n_bytes, first))
        n_rows += len(head) if n_bytes == 0 else round(len(head) * _size(file) / n_bytes)
    return n_rows


def _size(file: str) -> int:
    path = Path(file)
    return path.stat().st_size if path.is_file() else 0


def _no_schema(raw: RawRow, told: Told) -> Finding:
    return finding(
        raw.file,
        "schema",
        told.why,
        fix="name the fields by --field USE=NAME (data.fields); `tunesmith data inspect` shows them",
    )


def _head(chunks: Iterator[Chunk]) -> tuple[list[Chunk], list[RawRow]]:
    """The first chunks and all their rows, at least as many as a schema and a domain are told from."""
    taken: list[Chunk] = []
    rows: list[RawRow] = []
    for chunk in chunks:
        taken.append(chunk)
        rows += parse_rows(chunk, Problems())
        if len(rows) >= HEAD_ROWS:
            break
    return taken, rows


def checked(job: Job, chunk: Chunk) -> _Part:
    """Read and check one piece; what a worker process does."""
    checker = Checker(job.options, meter(job.wanted.model))
    unreadable, misfits = Noted("unreadable"), Noted("schema")
    part = _Part([], checker, _n_bytes(chunk))
    for raw in parse_rows(chunk, unreadable):
        part.refuse(unreadable.taken(), job.options)
        part.named.update(fields_in(raw, job.wanted.reading.mapping))
        if not job.told.schema:
            # That no schema fits was said once, for the whole file.
            part.n_rows, part.n_unusable = part.n_rows + 1, part.n_unusable + 1
            continue
        row = to_row(raw, job.told, job.wanted.reading, misfits)
        if row is None:
            part.n_rows, part.n_unusable = part.n_rows + 1, part.n_unusable + 1
            part.findings += _allowed(misfits.taken(), job.options)
        elif all(_has(row, name, value) for name, value in job.wanted.require):
            part.n_rows += 1
            part.findings += [in_users_words(one, row, job.told, raw) for one in checker.see(row)]
        else:
            part.n_left_out += 1
    part.refuse(unreadable.taken(), job.options)
    return part


def _n_bytes(chunk: Chunk) -> int:
    if isinstance(chunk.content, bytes):
        return len(chunk.content)
    return sum(len(text) for _, texts in chunk.content for text in texts)


def _allowed(found: list[Finding], options: CheckOptions) -> list[Finding]:
    return [one for one in found if one.check not in options.allow]


def _has(row: Row, name: str, value: object) -> bool:
    return name in row.meta and type(row.meta[name]) is type(value) and row.meta[name] == value


_METERS: dict[str, TokenMeter] = {}


def meter(model: ModelConfig | None) -> TokenMeter | None:
    """The meter of a model, made once in a process; None for none.

    Raises:
        As `meter_of`.
    """
    if model is None:
        return None
    key = model.model_dump_json()
    if key not in _METERS:
        _METERS[key] = meter_of(model)
    return _METERS[key]
