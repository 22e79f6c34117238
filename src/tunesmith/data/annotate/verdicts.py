"""What annotators made of rows: Label Studio's JSON export, their agreement, and the rows that follow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.annotate.agreement import Agreement, agreement_of, majority
from tunesmith.data.annotate.label_studio import Form, label_of, left_is_chosen, row_id
from tunesmith.data.grow.pieces import as_json, put, raw_at, replaced
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, listed

__all__ = ["Annotated", "Imported", "OnConflict", "form_in", "import_results", "read_results"]

OnConflict = Literal["majority", "drop", "keep"]
MAX_EXPORT_BYTES = 2 * 2**30
_CONTROL: Mapping[Form, str] = {"chat": "verdict", "classification": "label", "pairs": "better"}
"""Form -> name of the control whose value is the vote: a choice, or of pairs also a `Pairwise`."""


@dataclass(frozen=True)
class Annotated:
    """One row with what annotators said.

    Attributes:
        votes: annotator -> vote: a label; "accept" or "reject"; or of a pair the better answer,
            "chosen" or "rejected", or "equal".
        better: annotator -> answer that was written instead.
        ratings: annotator -> 1 to 5.
        ground_truth: the vote that was marked as such, if one was.
    """

    row: Row
    votes: Mapping[str, str]
    better: Mapping[str, str] = field(default_factory=dict)
    ratings: Mapping[str, int] = field(default_factory=dict)
    ground_truth: str | None = None


@dataclass(frozen=True)
class Imported:
    """Rows after annotation.

    Attributes:
        rows: what stays, in the order of the file; annotated ones say so in `meta.annotation`.
        dropped: side lines (JSON) of rows that annotators rejected or could not agree on.
        changed: side lines of rows with another answer or label.
        conflicts: rows on which annotators differ, with all votes.
        n_annotated: rows with at least one vote.
    """

    rows: tuple[Row, ...]
    dropped: tuple[str, ...]
    changed: tuple[str, ...]
    conflicts: tuple[Mapping[str, Any], ...]
    agreement: Agreement
    n_annotated: int

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "rows": len(self.rows),
            "annotated": self.n_annotated,
            "dropped": len(self.dropped),
            "changed": len(self.changed),
            "conflicts": list(self.conflicts),
            "agreement": self.agreement.as_dict(),
        }


def read_results(path: Path, rows: Sequence[Row], form: Form) -> list[Annotated]:
    """Label Studio's export of the type JSON (not JSON-MIN) beside the rows it was made of.

    Tasks are told by `data.row_id`. Cancelled annotations do not count; of one annotator's several
    annotations of a task the last counts. Without annotations a task's predictions are the votes, one
    an annotator by `model_version`.

    Raises:
        DataError: the file is no such export, or tasks are of other rows; all are named.
    """
    tasks = _tasks(path)
    by_id = {row_id(row): row for row in rows}
    problems: list[str] = []
    found: dict[str, Annotated] = {}
    for number, task in enumerate(tasks, 1):
        where = f"{path}: task {number}"
        row = by_id.get(_id_of(task))
        if row is None:
            problems.append(f"{where}: its data.row_id {_id_of(task)!r} is no row of the file")
            continue
        try:
            found[row_id(row)] = _annotated(row, task, form)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            problems.append(
                f"{where}: not as Label Studio writes it: {type(error).__name__} {error}"
            )
    if problems:
        raise DataError(
            f"{len(problems)} of {len(tasks)} tasks cannot be taken:\n{listed(problems, limit=50)}",
            why="annotations are matched to rows by the content of the row",
            fix="give the file that was exported, unchanged, and the export type JSON",
        )
    return [found[row_id(row)] for row in rows if row_id(row) in found]


def form_in(path: Path) -> Form:
    """What annotators did, told by the fields of the tasks' data.

    Raises:
        DataError: the file is no export of tasks that were made here.
    """
    for task in _tasks(path):
        data = task.get("data") if isinstance(task, dict) else None
        if isinstance(data, dict) and "row_id" in data:
            return "pairs" if "left" in data else "classification" if "text" in data else "chat"
    raise DataError(
        f"{path} has no task that `tunesmith data annotate export` made",
        why="none has data.row_id",
        fix="export from Label Studio as JSON, from the project that the tasks were imported into",
    )


def _tasks(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > MAX_EXPORT_BYTES:
            raise DataError(f"{path} is larger than {MAX_EXPORT_BYTES // 2**30} GiB")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is no JSON: {error}", fix="export from Label Studio again, as JSON"
        ) from error
    if not isinstance(value, list):
        raise DataError(f"{path} is no list of tasks", fix="export from Label Studio as JSON")
    return value


def _id_of(task: Any) -> str:
    data = task.get("data") if isinstance(task, dict) else None
    return str(data.get("row_id")) if isinstance(data, dict) else "None"


def _annotated(row: Row, task: Mapping[str, Any], form: Form) -> Annotated:
    votes: dict[str, str] = {}
    better: dict[str, str] = {}
    ratings: dict[str, int] = {}
    truth: str | None = None
    for who, annotation in _annotations(task):
        vote, text, rating = _read(annotation["result"], form, row)
        if vote is not None:
            votes[who] = vote
            truth = vote if annotation.get("ground_truth") else truth
        if text is not None:
            better[who] = text
        if rating is not None:
            ratings[who] = rating
    return Annotated(row, votes, better, ratings, truth)


def _annotations(task: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Who and what, oldest first."""
    made = [a for a in task.get("annotations") or () if not a.get("was_cancelled")]
    made.sort(key=lambda annotation: str(annotation.get("created_at") or ""))
    for number, annotation in enumerate(made, 1):
        yield _who(annotation.get("completed_by"), number), annotation
    if not made:
        for number, prediction in enumerate(task.get("predictions") or (), 1):
            yield f"model {prediction.get('model_version') or number}", prediction


def _who(completed_by: Any, number: int) -> str:
    """An annotator's name: his e-mail or number, as the export has it."""
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return f"annotator {number}" if completed_by is None else str(completed_by)


def _read(
    results: Sequence[Mapping[str, Any]], form: Form, row: Row
) -> tuple[str | None, str | None, int | None]:
    """Vote, better answer and rating of one annotation."""
    vote: str | None = None
    text: str | None = None
    rating: int | None = None
    for result in results:
        value = result["value"]
        if result["from_name"] == _CONTROL[form] and result["type"] in ("choices", "pairwise"):
            vote = _vote(value, form, row)
        elif result["type"] == "textarea":
            said = value["text"]
            text = said if isinstance(said, str) else "\n".join(said)
        elif result["type"] == "rating":
            rating = int(value["rating"])
    return vote, (text if text and text.strip() else None), rating


def _vote(value: Mapping[str, Any], form: Form, row: Row) -> str:
    (choice,) = [value["selected"]] if "selected" in value else value["choices"]
    side = str(choice)
    if form != "pairs" or side == "equal":
        return side
    if side not in ("left", "right"):
        raise ValueError(f"{side!r} is no side")
    return "chosen" if (side == "left") == left_is_chosen(row) else "rejected"


def import_results(
    rows: Sequence[Row],
    annotated: Sequence[Annotated],
    form: Form,
    *,
    on_conflict: OnConflict = "majority",
    adjudicator: str | None = None,
) -> Imported:
    """The rows after annotation.

    A vote marked as ground truth decides; else the adjudicator's, when he voted; else the majority.
    Without a majority, or with `drop` at any difference, the row is dropped; with `keep` it stays as
    it was. A rejected answer drops its row unless a better one was written, which then replaces it;
    another label replaces the label; a pair whose rejected answer is better is turned round.

    Args:
        rows: the file.
        annotated: what `read_results` found.
        form: as exported.
        on_conflict: what to do when annotators differ.
        adjudicator: whose vote settles it.

    Raises:
        DataError: the adjudicator voted nowhere.
    """
    by_id = {row_id(item.row): item for item in annotated if item.votes or item.better}
    voters = sorted({who for item in by_id.values() for who in item.votes})
    if adjudicator is not None and adjudicator not in voters:
        raise DataError(
            f"no annotation is by {adjudicator!r}",
            fix=f"use one of: {', '.join(voters) or 'nobody voted'}",
        )
    after = _After()
    for row in rows:
        item = by_id.get(row_id(row))
        if item is None:
            after.rows.append(row)
            continue
        decision, how = _decision(item, adjudicator)
        if len(set(item.votes.values())) > 1:
            after.conflicts.append({"where": row.where, "votes": dict(item.votes), "settled": how})
            if on_conflict != "majority" and how not in ("ground truth", "adjudicated"):
                decision, how = None, on_conflict
        after.take(item, decision, how, form, keep=on_conflict == "keep")
    agreement = agreement_of([item.votes for item in by_id.values()])
    return Imported(
        tuple(after.rows),
        tuple(after.dropped),
        tuple(after.changed),
        tuple(after.conflicts),
        agreement,
        len(by_id),
    )


def _decision(item: Annotated, adjudicator: str | None) -> tuple[Hashable | None, str]:
    if item.ground_truth is not None:
        return item.ground_truth, "ground truth"
    if adjudicator is not None and adjudicator in item.votes:
        return item.votes[adjudicator], "adjudicated"
    decision = majority(item.votes)
    return decision, "one vote" if len(item.votes) == 1 else "majority" if decision else "tie"


@dataclass
class _After:
    """Rows on their way out."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    conflicts: list[Mapping[str, Any]] = field(default_factory=list)

    def take(
        self, item: Annotated, decision: Hashable | None, how: str, form: Form, *, keep: bool
    ) -> None:
        """Keep, change or drop one annotated row."""
        text, reason = item.row.text, ""
        if decision is None and item.votes and keep:
            self.rows.append(_noted(item, text, None, "not settled"))
            return
        if decision is None and item.votes:
            reason = f"annotators differ: {_counted(item.votes)}"
        elif form == "chat":
            text, reason = _chat(item, decision)
        elif form == "classification":
            text = _labelled(item.row, str(decision))
        elif decision == "rejected":
            text = _turned(item.row)
        elif decision == "equal":
            reason = "annotators find both answers equal"
        if reason:
            self.dropped.append(_side(item.row, reason, None))
            return
        new = _noted(item, text, decision, how)
        if text != item.row.text:
            self.changed.append(_side(item.row, f"annotated: {_counted(item.votes)}", new))
        self.rows.append(new)


def _counted(votes: Mapping[str, str]) -> str:
    return ", ".join(f"{n} for {vote!r}" for vote, n in Counter(votes.values()).most_common())


def _side(row: Row, reason: str, new: Row | None) -> str:
    head = as_json({"where": row.where, "rule": "annotate", "reason": reason})[:-1]
    after = "" if new is None else f', "to": {new.text}'
    return f'{head}, "row": {row.text}{after}}}'


def _noted(item: Annotated, text: str, decision: Hashable | None, how: str) -> Row:
    said: dict[str, Any] = {"vote": decision, "how": how, "votes": dict(item.votes)}
    if item.ratings:
        said["ratings"] = dict(item.ratings)
    text = put(text, ("meta", "annotation"), as_json(said))
    return Row(item.row.where, item.row.kind, text, json.loads(text))


def _chat(item: Annotated, decision: Hashable | None) -> tuple[str, str]:
    """The row's text, with the better answer when there is one; else why it is dropped."""
    answers = list(dict.fromkeys(item.better.values()))
    if len(answers) > 1:
        return item.row.text, "annotators wrote different better answers"
    if answers:
        return replaced(item.row.text, _answer_path(item.row), as_json(answers[0])), ""
    return item.row.text, "annotators reject the answer" if decision == "reject" else ""


def _answer_path(row: Row) -> tuple[str | int, ...]:
    if row.kind == "feedback":
        return ("completion", 0, "content")
    if row.kind == "problem":
        return ("answer",)
    return ("messages", len(row.messages) - 1, "content")


def _labelled(row: Row, label: str) -> str:
    """The row's text with a label: in its field `label`, and as its answer where that was the label."""
    if label_of(row) == label:
        return row.text
    text = row.text
    if row.kind == "text" or isinstance(row.meta.get("label"), str):
        text = put(text, ("meta", "label"), as_json(label))
    if row.kind != "text" and row.answer.strip() == label_of(row):
        text = replaced(text, _answer_path(row), as_json(label))
    return text


def _turned(row: Row) -> str:
    chosen, rejected = raw_at(row.text, ("chosen",)), raw_at(row.text, ("rejected",))
    return replaced(replaced(row.text, ("chosen",), rejected), ("rejected",), chosen)
