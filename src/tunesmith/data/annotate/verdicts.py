"""What annotators made of rows: their agreement, and the rows that follow."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tunesmith.data.annotate.agreement import Agreement, agreement_of, majority
from tunesmith.data.annotate.label_studio import Form, row_id
from tunesmith.data.annotate.results import Annotated
from tunesmith.data.grow.pieces import as_json, put, raw_at, replaced
from tunesmith.data.rows import Row
from tunesmith.errors import DataError

__all__ = ["Imported", "OnConflict", "import_results"]

OnConflict = Literal["majority", "drop", "keep"]
_NUMBER = re.compile(r"true|false|-?(0|[1-9][0-9]*)(\.[0-9]+)?")


@dataclass(frozen=True)
class Imported:
    """Rows after annotation.

    Attributes:
        rows: what stays, in the order of the file; annotated ones say so in `meta.annotation`.
        dropped: side lines (JSON) of rows that annotators rejected or could not agree on.
        changed: side lines of rows with another answer or label, or with older votes in their meta.
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
    it was. A rejected answer drops its row unless a better one was written, which then replaces it (of
    feedback the label says then that it is good); the better answers of those who are overruled do
    not count. Another label replaces the label; a pair whose rejected answer is better is turned
    round.

    Args:
        rows: the file.
        annotated: what `read_results` found.
        form: as exported.
        on_conflict: what to do when annotators differ.
        adjudicator: whose vote settles it.

    Raises:
        DataError: the adjudicator voted nowhere.
    """
    by_id = {
        row_id(item.row): item
        for item in annotated
        if item.votes or (form == "chat" and item.better)
    }
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
        verdict = _verdict(item, adjudicator)
        if len(set(item.votes.values())) > 1:
            votes = dict(item.votes)
            after.conflicts.append({"where": row.where, "votes": votes, "settled": verdict.how})
            if on_conflict != "majority" and verdict.who is None:
                verdict = _Verdict(None, on_conflict)
        after.take(replace(item, row=row), verdict, form, keep=on_conflict == "keep")
    agreement = agreement_of([item.votes for item in by_id.values()])
    return Imported(
        tuple(after.rows),
        tuple(after.dropped),
        tuple(after.changed),
        tuple(after.conflicts),
        agreement,
        len(by_id),
    )


@dataclass(frozen=True)
class _Verdict:
    """What annotators say together: a vote or None, how it came about, and whose word settled it."""

    vote: str | None
    how: str
    who: str | None = None


def _verdict(item: Annotated, adjudicator: str | None) -> _Verdict:
    if item.ground_truth is not None:
        return _Verdict(item.votes[item.ground_truth], "ground truth", item.ground_truth)
    if adjudicator is not None and adjudicator in item.votes:
        return _Verdict(item.votes[adjudicator], "adjudicated", adjudicator)
    vote = majority(item.votes)
    how = "one vote" if len(item.votes) == 1 else "majority" if vote is not None else "tie"
    return _Verdict(None if vote is None else str(vote), how if item.votes else "no vote")


@dataclass
class _After:
    """Rows on their way out."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    conflicts: list[Mapping[str, Any]] = field(default_factory=list)

    def take(self, item: Annotated, verdict: _Verdict, form: Form, *, keep: bool) -> None:
        """Keep, change or drop one annotated row."""
        text, reason = item.row.text, ""
        if verdict.vote is None and item.votes and keep:
            verdict = _Verdict(None, "not settled")
        elif verdict.vote is None and item.votes:
            reason = f"annotators differ: {_counted(item.votes)}"
        elif form == "chat":
            text, reason = _chat(item, verdict)
        elif form == "classification":
            text = _labelled(item, str(verdict.vote))
        elif verdict.vote == "rejected":
            text = _turned(item.row)
        elif verdict.vote == "equal":
            reason = "annotators find both answers equal"
        if reason:
            self.dropped.append(_side(item.row, reason, None))
            return
        new = _noted(item, text, verdict)
        if text != item.row.text or "annotation" in item.row.meta:
            self.changed.append(_side(item.row, f"annotated: {_counted(item.votes)}", new))
        self.rows.append(new)


def _counted(votes: Mapping[str, str]) -> str:
    counts = Counter(votes.values()).most_common()
    return ", ".join(f"{n} for {vote!r}" for vote, n in counts) or "a better answer, no vote"


def _side(row: Row, reason: str, new: Row | None) -> str:
    head = as_json({"where": row.where, "rule": "annotate", "reason": reason})[:-1]
    after = "" if new is None else f', "to": {new.text}'
    return f'{head}, "row": {row.text}{after}}}'


def _noted(item: Annotated, text: str, verdict: _Verdict) -> Row:
    said: dict[str, Any] = {"vote": verdict.vote, "how": verdict.how, "votes": dict(item.votes)}
    if item.ratings:
        said["ratings"] = dict(item.ratings)
    text = put(text, ("meta", "annotation"), as_json(said))
    return Row(item.row.where, item.row.kind, text, json.loads(text))


def _chat(item: Annotated, verdict: _Verdict) -> tuple[str, str]:
    """The row's text, with the better answer when there is one; else why it is dropped."""
    row = item.row
    counting = [
        answer
        for who, answer in item.better.items()
        if (who == verdict.who if verdict.who else item.votes.get(who) in (verdict.vote, None))
    ]
    answers = list(dict.fromkeys(counting))
    if len(answers) > 1:
        return row.text, "annotators wrote different better answers"
    if answers and row.messages[-1].get("tool_calls"):
        return row.text, f"the answer calls tools: put the better one in by hand: {answers[0]}"
    if answers:
        text = put(row.text, _answer_path(row), as_json(answers[0]))
        return (put(text, ("label",), "true") if row.kind == "feedback" else text), ""
    return row.text, "annotators reject the answer" if verdict.vote == "reject" else ""


def _answer_path(row: Row) -> tuple[str | int, ...]:
    if row.kind == "feedback":
        return ("completion", 0, "content")
    if row.kind == "problem":
        return ("answer",)
    return ("messages", len(row.messages) - 1, "content")


def _labelled(item: Annotated, label: str) -> str:
    """The row's text with a label: in its field `label`, and as its answer where that was the label."""
    row = item.row
    field_label = row.meta.get("label")
    in_answer = row.kind != "text" and (
        row.answer.strip() == field_label if isinstance(field_label, str) else item.answer_is_label
    )
    text = row.text
    if in_answer and row.answer.strip() != label:
        text = replaced(text, _answer_path(row), _as_before(row, label))
    if isinstance(field_label, str) or not in_answer:
        text = text if field_label == label else put(text, ("meta", "label"), as_json(label))
    return text


def _as_before(row: Row, label: str) -> str:
    """A label as JSON: of a problem whose answer is a number or a truth value, as one."""
    before = row.value["answer"] if row.kind == "problem" else ""
    number = {"True": "true", "False": "false"}.get(label, label)
    if isinstance(before, (bool, int, float)) and _NUMBER.fullmatch(number):
        return number
    return as_json(label)


def _turned(row: Row) -> str:
    chosen, rejected = raw_at(row.text, ("chosen",)), raw_at(row.text, ("rejected",))
    return replaced(replaced(row.text, ("chosen",), rejected), ("rejected",), chosen)
