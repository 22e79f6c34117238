"""Decisions of a person about rows, each in the journal at once, and the files that follow from them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tunesmith.data.annotate.editing import on_one_line
from tunesmith.data.annotate.queue import Suspect
from tunesmith.data.grow.journal import Journal
from tunesmith.data.grow.pieces import as_json
from tunesmith.data.problems import Problems
from tunesmith.data.read.objects import Refused, fields_of
from tunesmith.data.rows import RawRow, Row
from tunesmith.data.schemas import Options, to_row
from tunesmith.errors import ArtifactError
from tunesmith.store import write_atomically

__all__ = ["Choice", "Decision", "Review", "ReviewPlaces", "edited"]

Choice = Literal["accept", "reject", "edit", "skip"]


@dataclass(frozen=True)
class Decision:
    """What was decided about one row; `text` is the new row of an edit."""

    index: int
    choice: Choice
    text: str = ""


@dataclass(frozen=True)
class ReviewPlaces:
    """The files of a review.

    Attributes:
        journal: every decision, as it is made.
        out: the rows after the review: accepted, edited, and those that nobody looked at.
        side: rejected and edited rows as they were, as JSON lines.
    """

    journal: Path
    out: Path
    side: Path

    @classmethod
    def beside(cls, file: Path, out: Path | None = None) -> ReviewPlaces:
        """Beside the file: `NAME.review.jsonl`, `NAME.reviewed.jsonl`, `NAME.reviewed-side.jsonl`."""
        name = file.name
        for end in (".gz", ".zst", ".jsonl", ".json"):
            name = name.removesuffix(end)
        out = out or file.with_name(f"{name}.reviewed.jsonl")
        return cls(
            file.with_name(f"{name}.review.jsonl"),
            out,
            out.with_name(f"{out.name.removesuffix('.jsonl')}-side.jsonl"),
        )


class Review:
    """A review that can be stopped at any moment, by a kill as well, and goes on where it was.

    Args:
        rows: the file, in its order.
        queue: the same rows in the order in which they are shown.
        places: files.
        only_accepted: rows that nobody decided about are left out of the result.

    Raises:
        UsedDirectoryError: the journal belongs to other rows.
        ArtifactError: the journal is damaged.
        BusyError: another process reviews the file.
        StorageError: the journal cannot be written.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        queue: Sequence[Suspect],
        places: ReviewPlaces,
        *,
        only_accepted: bool = False,
    ) -> None:
        self.rows, self.queue, self.places = rows, queue, places
        self._only_accepted = only_accepted
        digest = hashlib.sha256()
        for row in rows:
            digest.update(row.text.encode("utf-8", "surrogatepass") + b"\n")
        head = {"journal": 1, "rows": len(rows), "sha256": digest.hexdigest()}
        fix = f"move {places.journal} away to start anew, or review the file as it was"
        self._journal = Journal(places.journal, head, what="file", fix=fix)
        self._made: list[Decision] = []
        try:
            for entry in self._journal.entries:
                self._replay(entry)
        except (KeyError, TypeError, IndexError) as error:
            self._journal.close()
            raise ArtifactError(
                f"{places.journal} is damaged: {error!r}", fix="move it away and start anew"
            ) from error

    def _replay(self, entry: Mapping[str, Any]) -> None:
        if entry["do"] == "undo":
            self._made.pop()
        else:
            self._made.append(Decision(entry["row"], entry["do"], entry.get("text", "")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes open the journal."""
        self._journal.close()

    @property
    def decisions(self) -> dict[int, Decision]:
        """Row's index -> the last decision about it."""
        return {decision.index: decision for decision in self._made}

    @property
    def counts(self) -> Counter[str]:
        """How many rows were accepted, rejected, edited, skipped."""
        return Counter(decision.choice for decision in self.decisions.values())

    @property
    def n_left(self) -> int:
        """Rows that nobody decided about."""
        return len(self.rows) - len(self.decisions)

    def next(self) -> Suspect | None:
        """The first row of the queue without a decision."""
        done = self.decisions
        return next((suspect for suspect in self.queue if suspect.index not in done), None)

    def decide(self, index: int, choice: Choice, text: str = "") -> None:
        """Make a decision; it is on the disk when this returns.

        Raises:
            StorageError: the disk refuses.
        """
        entry: dict[str, Any] = {"row": index, "do": choice, "time": _now()}
        if text:
            entry["text"] = text
        self._journal.add(entry)
        self._made.append(Decision(index, choice, text))

    def undo(self) -> int | None:
        """Take the last decision back; returns its row, or None when there is none.

        Raises:
            StorageError: the disk refuses.
        """
        if not self._made:
            return None
        self._journal.add({"do": "undo", "time": _now()})
        return self._made.pop().index

    def write(self) -> None:
        """Write the result and the side file; every row of the file is in one of them.

        Raises:
            StorageError: the disk refuses.
        """
        kept: list[str] = []
        side: list[str] = []
        for index, row in enumerate(self.rows):
            decision = self.decisions.get(index)
            choice = decision.choice if decision else None
            if decision is not None and choice == "edit":
                kept.append(decision.text)
                side.append(_side(row, "edited", decision.text))
            elif choice == "reject":
                side.append(_side(row, "rejected", ""))
            elif self._only_accepted and choice != "accept":
                side.append(_side(row, "skipped" if choice else "not looked at", ""))
            else:
                kept.append(row.text)
        write_atomically(self.places.out, "".join(f"{line}\n" for line in kept))
        write_atomically(self.places.side, "".join(f"{line}\n" for line in side))


def _side(row: Row, reason: str, text: str) -> str:
    head = as_json({"where": row.where, "rule": "review", "reason": reason})[:-1]
    after = f', "to": {text}' if text else ""
    return f'{head}, "row": {row.text}{after}}}'


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def edited(row: Row, text: str) -> Row | str:
    """A row that a person edited, on one line, its values with their characters; or what is wrong with it.

    Args:
        row: as it was.
        text: the whole row as JSON, on as many lines as it likes.
    """
    file, _, line = row.where.rpartition(":")
    problems = Problems()
    try:
        fields_of(text.strip(), MAX_DEPTH)
        fields = fields_of(on_one_line(text), MAX_DEPTH)
    except Refused as error:
        return str(error)
    raw = RawRow(file or row.where, int(line) if line.isdigit() else 1, fields)
    found = to_row(raw, _SCHEMAS[row.kind], Options(), problems)
    if found is None or problems.n_problems:
        return "; ".join(said.removeprefix(f"{raw.where}: ") for said in problems.lines)
    if found.kind != row.kind:
        return f"it was a {row.kind} row and would be a {found.kind} row"
    return found


MAX_DEPTH = 64
_SCHEMAS: Mapping[str, str] = {
    "chat": "chat",
    "pair": "preference",
    "feedback": "feedback",
    "problem": "problem",
    "text": "text",
}
"""Kind -> the schema of its canonical rows."""
