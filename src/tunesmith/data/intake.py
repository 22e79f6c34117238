"""A chunk of a file to canonical rows, their numbers and their side lines: what a worker process does."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tunesmith.data.check import Checker, CheckOptions, Finding
from tunesmith.data.clean.cleaner import Cleaner
from tunesmith.data.clean.plan import CleanPlan, Decision
from tunesmith.data.clean.sets import exact_key
from tunesmith.data.databases import check_row
from tunesmith.data.named import conditions_in, fields_in
from tunesmith.data.problems import Problems
from tunesmith.data.read import Chunk, parse_each
from tunesmith.data.rows import BadRow, RawRow, Row
from tunesmith.data.schemas import Options, Told, read_row
from tunesmith.data.schemas.slices import fields_of, object_of
from tunesmith.data.similar import Said, said, sketch
from tunesmith.data.split import hash64, prompt_text, template_of
from tunesmith.data.spool import FACTS, Digest, numpy
from tunesmith.data.unreadable import RULE
from tunesmith.store import reach

__all__ = ["Intake", "Piece", "digest", "finding_line", "side_line"]

_SECONDS = re.compile(r"[0-9]{9,11}(\.[0-9]+)?")


@dataclass(frozen=True)
class Intake:
    """What is done with every row, whichever file it comes from.

    Attributes:
        options: how rows are read: mapping of fields, system message.
        require: field -> the value that a row must have to be kept.
        databases: names of the dataset's databases; rows are held to them when there are any.
        stratify, group, time: fields that the split goes by.
        by_template: the split goes by the prompts' templates.
        sketches: nearly equal rows are looked for.
        clean: rules that drop and change rows one by one.
        check: what the checks look for.
        source_field: field that gets the name of a row's part of a mix.
    """

    options: Options
    require: Mapping[str, Any] = field(default_factory=dict)
    databases: tuple[str, ...] = ()
    stratify: str | None = None
    group: str | None = None
    time: str | None = None
    by_template: bool = False
    sketches: bool = False
    clean: CleanPlan = field(default_factory=CleanPlan)
    check: CheckOptions = field(default_factory=CheckOptions)
    source_field: str = ""


@dataclass(frozen=True)
class Piece:
    """A chunk and what is known of its file.

    Attributes:
        file: the file's number in the plan, from 0.
        split: number of the split that it was given for.
        part: name of its part of a mix, else empty.
    """

    chunk: Chunk
    told: Told
    file: int
    split: int
    part: str = ""


def digest(intake: Intake, piece: Piece) -> Digest:
    """Parse, check and clean a chunk's rows, and note what the later decisions need of each."""
    reach("data-chunk")
    taken = _Taking(intake, piece)
    for raw in parse_each(piece.chunk, taken.problems):
        taken.take(raw)
    return taken.digest()


def side_line(where: str, rule: str, reason: str, row: str, to: str = "") -> bytes:
    """One line of `dropped.jsonl` or `changed.jsonl`; `row` and `to` are rows as JSON text, kept as they are."""
    head = json.dumps({"where": where, "rule": rule, "reason": reason}, ensure_ascii=False)
    after = f', "to": {to}' if to else ""
    return _bytes(f'{head[:-1]}, "row": {row}{after}}}\n')


def change_of(text: str, steps: Sequence[Decision]) -> bytes:
    """A changed row as it came, and what was done, as two lines: see `Spool.changes`."""
    rules = ", ".join(dict.fromkeys(step.rule for step in steps))
    done = {"rule": rules, "reason": "; ".join(step.reason for step in steps)}
    return _bytes(f"{text}\n{json.dumps(done, ensure_ascii=False)}\n")


def finding_line(found: Finding) -> bytes:
    """One line of `findings.jsonl`."""
    return _bytes(f"{json.dumps(found.as_dict(), ensure_ascii=False)}\n")


def _bytes(text: str) -> bytes:
    """JSON text as it is sealed: half of a surrogate pair, which has no UTF-8, as its escape."""
    return text.encode("utf-8", "backslashreplace")


class _Taking:
    """The rows of one chunk on their way."""

    def __init__(self, intake: Intake, piece: Piece) -> None:
        self.intake, self.piece = intake, piece
        self.problems = Problems()
        self._rows: list[bytes] = []
        self._prompts: list[bytes] = []
        self._said: list[Said] = []
        self._changed: list[int] = []
        self._before: list[bytes] = []
        self._findings: list[bytes] = []
        self._found_in: list[int] = []
        self._sides: dict[str, list[bytes]] = {}
        self._numbers: list[tuple[Any, ...]] = []
        n_bytes = _n_bytes(piece.chunk)
        nothing = numpy().zeros(0, dtype=FACTS)
        self._checker = Checker(intake.check)
        self._cleaner = Cleaner(intake.clean) if intake.clean.does_something else None
        self._found = Digest(piece.file, n_bytes, b"", nothing, problems=self.problems)

    def take(self, raw: RawRow | BadRow) -> None:
        """Read one row, and keep it, drop it or note what is wrong with it."""
        found = self._found
        found.counts["read"] += 1
        if isinstance(raw, BadRow):
            self._leave_out(raw)
            return
        found.named.update(fields_in(raw, self.intake.options.mapping))
        row = read_row(raw, self.piece.told, self.intake.options)
        if isinstance(row, BadRow):
            self._leave_out(row)
            return
        found.counts["rows"] += 1
        row = self._with_part(row)
        found.named.update(conditions_in(row, self.intake.clean.drop_where))
        if not _has_required(row, self.intake.require):
            self._drop(row, "require", f"data.require asks for {_spelled(self.intake.require)}")
            return
        cleaned = self._cleaned(row)
        if cleaned is not None:
            self._look(cleaned)
            self._keep(raw, cleaned)

    def digest(self) -> Digest:
        """All of it."""
        np, found = numpy(), self._found
        facts = np.zeros(len(self._rows), dtype=FACTS)
        if self._rows:
            prompts = np.frombuffer(b"".join(self._prompts), dtype=np.uint8)
            facts["prompt"] = prompts.reshape(-1, 32)
            names = [name for name, *_ in FACTS if name != "prompt"]
            for name, values in zip(names, zip(*self._numbers, strict=True), strict=True):
                facts[name] = values
        found.rows, found.facts = b"".join(self._rows), facts
        if self.intake.sketches:
            found.sketches = sketch(self._said)
        found.changed, found.before = self._changed, b"".join(self._before)
        found.checker = self._checker
        found.findings, found.found_in = b"".join(self._findings), self._found_in
        found.unread.n_all = found.counts["read"]
        found.sides = {name: b"".join(lines) for name, lines in self._sides.items()}
        return found

    def _with_part(self, row: Row) -> Row:
        """The row with the name of its part of the mix; a field of that name in it becomes `own_` and the name."""
        name, part = self.intake.source_field, self.piece.part
        if name and name in row.meta:
            row = _renamed(row, name)
        if not part:
            return row
        # `meta` is the last field of a canonical row: its text is all of the row up to two braces.
        comma = ", " if row.meta else ""
        added = f"{comma}{json.dumps(name)}: {json.dumps(part, ensure_ascii=False)}"
        meta = {**row.meta, name: part}
        return Row(row.where, row.kind, f"{row.text[:-2]}{added}}}}}", {**row.value, "meta": meta})

    def _cleaned(self, row: Row) -> Row | None:
        """The row as the rules leave it; None when they drop it."""
        if self._cleaner is None:
            return row
        cleaned = self._cleaner.row(row)
        if cleaned.row is None:
            last = cleaned.decisions[-1]
            self._drop(row, last.rule, last.reason)
            return None
        if cleaned.decisions:
            self._changed.append(len(self._rows))
            self._before.append(change_of(self._shown(row), cleaned.decisions))
        return cleaned.row

    def _look(self, row: Row) -> None:
        """Check a row that stays."""
        for found in self._checker.see(row):
            self._findings.append(finding_line(found))
            self._found_in.append(len(self._rows))

    def _keep(self, raw: RawRow, row: Row) -> None:
        found, intake = self._found, self.intake
        found.kinds.add(row.kind)
        found.meta_fields.update(row.meta)
        if intake.databases:
            check_row(row, intake.databases, self.problems)
        prompt = prompt_text(row)
        text = _bytes(row.text)
        self._rows.append(text + b"\n")
        if intake.sketches:
            self._said.append(said(row))
        self._prompts.append(hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest())
        self._numbers.append(
            (
                exact_key(row) if intake.clean.exact else 0,
                hash64(template_of(row.question or row.answer)) if intake.by_template else 0,
                self._hash_of(raw, row, intake.group, "group"),
                self._hash_of(raw, row, intake.stratify, "stratify"),
                self._seconds(raw, row),
                self.piece.file,
                raw.line,
                len(text),
                self.piece.split,
            )
        )

    def _shown(self, row: Row) -> str:
        """A row as side files may hold it: what is private is masked there too, since they are sealed."""
        return row.text if self._cleaner is None else self._cleaner.shown(row)

    def _leave_out(self, bad: BadRow) -> None:
        """Drop a row that cannot be read, or note what is wrong with it."""
        clean = self.intake.clean
        reason = self._found.unread.take(bad, self.problems, drop=clean.drop_unreadable)
        if reason:
            self._found.counts[RULE] += 1
            text = bad.text
            if clean.privacy is not None:
                # Reasons quote values; both at once, so that equal values get equal stand-ins.
                said, text = clean.privacy.text(f"{json.dumps(reason)}\n{text}").split("\n")
                reason = json.loads(said)
            self._side("dropped", side_line(bad.where, RULE, reason, text))

    def _drop(self, row: Row, rule: str, reason: str) -> None:
        self._found.counts[rule] += 1
        self._side("dropped", side_line(row.where, rule, reason, self._shown(row)))

    def _side(self, name: str, line: bytes) -> None:
        self._sides.setdefault(name, []).append(line)

    def _hash_of(self, raw: RawRow, row: Row, name: str | None, setting: str) -> int:
        """Hash of a field's value, by which rows are grouped."""
        if name is None:
            return 0
        if name == "answer" and setting == "stratify":
            return hash64(row.answer)
        found = self._value(raw, row, name, setting)
        return hash64(json.dumps(found, sort_keys=True, ensure_ascii=False))

    def _seconds(self, raw: RawRow, row: Row) -> float:
        """A row's time in seconds since 1970, when the split goes by time."""
        name = self.intake.time
        if name is None:
            return 0.0
        n_before = self.problems.n_problems
        value = self._value(raw, row, name, "field")
        seconds = _seconds_of(value)
        if seconds is None and self.problems.n_problems == n_before:
            self.problems.add(
                row.where,
                f"{name}: {repr(value)[:60]} is neither ISO 8601 (2026-03-01T12:00:00Z) nor seconds since 1970",
            )
        return seconds or 0.0

    def _value(self, raw: RawRow, row: Row, name: str, setting: str) -> Any:
        """A field's value: in the row as it is kept, or in the file where it became a part of a turn."""
        if name in row.meta:
            return row.meta[name]
        if name in raw.fields:
            return raw.fields[name].value
        has = ", ".join(dict.fromkeys([*raw.fields, *row.meta])) or "none"
        self.problems.add(
            row.where,
            f"the field {name!r} is missing, which data.split.{setting} asks for (it has {has})",
        )
        return None


def _n_bytes(chunk: Chunk) -> int:
    """About how many bytes of the file a chunk is."""
    if isinstance(chunk.content, bytes):
        return len(chunk.content)
    return sum(len(text) for _, texts in chunk.content for text in texts)


def _renamed(row: Row, name: str) -> Row:
    """The row whose field `name` is called `own_` and the name, in its place; values keep their characters."""
    other = f"own_{name}"
    while other in row.meta:
        other = f"own_{other}"
    meta = fields_of(row.text)["meta"]
    made = object_of(
        {
            (other if key == name else key): (replace(one, raw_key="") if key == name else one)
            for key, one in fields_of(meta.raw).items()
        }
    )
    text = f"{row.text[: -len(meta.raw) - 1]}{made.raw}}}"
    return Row(row.where, row.kind, text, {**row.value, "meta": made.value})


def _has_required(row: Row, require: Mapping[str, Any]) -> bool:
    """Whether the fields have exactly these values; true is not 1."""
    return all(
        name in row.meta and type(row.meta[name]) is type(value) and row.meta[name] == value
        for name, value in require.items()
    )


def _spelled(require: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in require.items())


def _seconds_of(value: object) -> float | None:
    """A time in seconds since 1970, UTC where it names no zone; None when it is no time.

    In a table every cell is a text: nine to eleven digits there are seconds of the years 1973 to 5138.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, int | float) or _SECONDS.fullmatch(value.strip()):
        try:
            seconds = float(value)
        except OverflowError:
            return None
        return seconds if math.isfinite(seconds) else None
    try:
        found = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
