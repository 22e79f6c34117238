"""Reading Label Studio's JSON export: who said what of which row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.data.annotate.label_studio import OWN_LABELS, Form, left_is_chosen, row_id
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, counted, listed

__all__ = ["Annotated", "form_in", "read_results"]

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
        ground_truth: whose vote was marked as such, if one was.
        answer_is_label: of a classification: whether a row without a field `label` has its label as
            its answer, so that another label replaces the answer.
    """

    row: Row
    votes: Mapping[str, str]
    better: Mapping[str, str] = field(default_factory=dict)
    ratings: Mapping[str, int] = field(default_factory=dict)
    ground_truth: str | None = None
    answer_is_label: bool = True


@dataclass(frozen=True)
class _Said:
    """One annotation, or one model's prediction."""

    who: str
    when: str
    by_person: bool
    is_truth: bool
    vote: str | None
    better: str | None
    rating: int | None


def read_results(path: Path, rows: Sequence[Row], form: Form) -> list[Annotated]:
    """Label Studio's export of the type JSON (not JSON-MIN) beside the rows it was made of.

    Tasks are told by `data.row_id`; a row that was imported into Label Studio twice has the
    annotations of both tasks. Cancelled annotations do not count; of one annotator's several
    annotations of a row the last counts, as a whole. Without annotations a row's predictions are the
    votes, one an annotator by `model_version`; the row's own labels, shown by `predictions=True`, are
    nobody's vote.

    Raises:
        DataError: the file is no such export, or tasks are of other rows; all are named.
    """
    tasks = _tasks(path)
    by_id = {row_id(row): row for row in rows}
    problems: list[str] = []
    found: dict[str, list[_Said]] = {}
    apart: set[str] = set()
    for number, task in enumerate(tasks, 1):
        where = f"{path}: task {number}"
        row = by_id.get(_id_of(task))
        if row is None:
            problems.append(f"{where}: its data.row_id {_id_of(task)!r} is no row of the file")
            continue
        said = found.setdefault(row_id(row), [])
        if task["data"].get("label_in") == "field":
            apart.add(row_id(row))
        try:
            said += _said_in(task, row, form, len(said))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            problems.append(
                f"{where}: not as Label Studio writes it: {type(error).__name__} {error}"
            )
    if problems:
        raise DataError(
            f"{len(problems)} of {counted(len(tasks), 'task')} cannot be taken:\n{listed(problems, limit=50)}",
            why="annotations are matched to rows by the content of the row",
            fix="give the file that was exported, unchanged, and the export type JSON",
        )
    return [
        replace(_annotated(by_id[name], said), answer_is_label=name not in apart)
        for name, said in found.items()
    ]


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


def _said_in(task: Mapping[str, Any], row: Row, form: Form, n_before: int) -> Iterator[_Said]:
    """What one task has of its row; `n_before` numbers annotators without a name."""
    made = [a for a in task.get("annotations") or () if not a.get("was_cancelled")]
    for number, annotation in enumerate(made, n_before + 1):
        yield _Said(
            _who(annotation.get("completed_by"), number),
            str(annotation.get("created_at") or ""),
            True,
            bool(annotation.get("ground_truth")),
            *_read(annotation["result"], form, row),
        )
    for number, prediction in enumerate(task.get("predictions") or (), n_before + 1):
        # An export may have the numbers of predictions only; and what the task came with, no model said.
        if isinstance(prediction, int) or prediction.get("model_version") == OWN_LABELS:
            continue
        who = f"model {prediction.get('model_version') or number}"
        yield _Said(who, "", False, False, *_read(prediction["result"], form, row))


def _annotated(row: Row, said: Sequence[_Said]) -> Annotated:
    """All that was said of a row, in the order of time: by people, or by models where no person spoke."""
    by_person = [one for one in said if one.by_person]
    oldest_first = sorted(by_person or said, key=lambda one: one.when)
    last = {one.who: one for one in oldest_first}
    valid = [one for one in oldest_first if one is last[one.who]]
    truths = [one.who for one in valid if one.is_truth and one.vote is not None]
    return Annotated(
        row,
        {who: one.vote for who, one in last.items() if one.vote is not None},
        {who: one.better for who, one in last.items() if one.better is not None},
        {who: one.rating for who, one in last.items() if one.rating is not None},
        truths[-1] if truths else None,
    )


def _who(completed_by: Any, number: int) -> str:
    """An annotator's name: his e-mail or number, as the export has it."""
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("id")
    return f"annotator {number}" if completed_by is None else str(completed_by)


def _read(
    results: Sequence[Mapping[str, Any]], form: Form, row: Row
) -> tuple[str | None, str | None, int | None]:
    """Vote, better answer and rating of one annotation; relations between results say none of it."""
    vote: str | None = None
    text: str | None = None
    rating: int | None = None
    for result in results:
        if result["type"] == "relation":
            continue
        value = result["value"]
        if result["from_name"] == _CONTROL[form] and result["type"] in ("choices", "pairwise"):
            vote = _vote(value, form, row)
        elif form == "chat" and result["type"] == "textarea":
            said = value["text"]
            text = said if isinstance(said, str) else "\n".join(said)
        elif result["type"] == "rating":
            rating = int(value["rating"])
    return vote, (text if text and text.strip() else None), rating


def _vote(value: Mapping[str, Any], form: Form, row: Row) -> str:
    (choice,) = [value["selected"]] if "selected" in value else value["choices"]
    said = str(choice)
    if form == "classification":
        return said
    known = ("accept", "reject") if form == "chat" else ("left", "right", "equal")
    if said not in known:
        raise ValueError(f"{said!r} is none of {', '.join(known)}")
    if form == "chat" or said == "equal":
        return said
    return "chosen" if (said == "left") == left_is_chosen(row) else "rejected"
