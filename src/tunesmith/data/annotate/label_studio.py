"""Rows to Label Studio tasks with their labelling configuration.

The format: Label Studio documentation, pages "Task Format" and "Tags" (Text, Paragraphs,
Choices, Rating, TextArea), which the free edition has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

from tunesmith.data.rows import Row
from tunesmith.errors import ConfigError, DataError, counted, listed

__all__ = ["FORMS", "Export", "Form", "export", "form_of", "left_is_chosen", "row_id"]

Form = Literal["chat", "classification", "pairs"]
FORMS: tuple[Form, ...] = ("chat", "classification", "pairs")
MOST_LABELS = 500
OWN_LABELS = "the file"
"""`model_version` of predictions that are the rows' own labels."""


@dataclass(frozen=True)
class Export:
    """What to upload: `tasks` as one JSON list, and `config` as the project's labelling interface."""

    form: Form
    tasks: list[dict[str, Any]]
    config: str


def row_id(row: Row) -> str:
    """Identifies a row by its content, to find it again in what annotators made of it."""
    return hashlib.sha256(row.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def left_is_chosen(row: Row) -> bool:
    """Whether the chosen answer stands on the left: drawn by the row's content, so that neither side
    tells annotators which one it is."""
    return int(row_id(row), 16) % 2 == 0


def form_of(rows: Sequence[Row], labels: Sequence[str] = ()) -> Form:
    """Pairs for pairs; classification when labels are named or rows have them; else chat."""
    if rows and rows[0].kind == "pair":
        return "pairs"
    if labels or (rows and all(isinstance(row.meta.get("label"), str) for row in rows)):
        return "classification"
    return "chat"


def export(
    rows: Sequence[Row], form: Form, labels: Sequence[str] = (), *, predictions: bool = False
) -> Export:
    """Tasks for rows, in their order.

    Args:
        rows: all of one kind.
        form: `chat`: accept or reject an answer, rate it, write a better one; `classification`: one
            label a text; `pairs`: the better one of two answers. A classification's label goes where
            the row has its own: its field `label`, or its answer; where most answers are none of the
            labels, they are kept and the field is added.
        labels: of a classification; those that the rows have when none are given.
        predictions: show the rows' own labels (or that the answer is accepted) to annotators. They
            are quicker then, and agree with what they are shown more often than they should.

    Raises:
        DataError: rows that do not fit the form; all are named. Or the same row twice.
        ConfigError: too few or too many labels.
    """
    problems = [problem for row in rows if (problem := _problem(row, form))]
    seen: dict[str, str] = {}
    for row in rows:
        first = seen.setdefault(row_id(row), row.where)
        if first != row.where:
            problems.append(f"{row.where}: the same row as {first}")
    if problems:
        raise DataError(
            f"{counted(len(problems), 'row')} cannot be exported as {form}:\n{listed(problems, limit=50)}",
            fix="remove them, or choose another form with --as (chat, classification, pairs)",
        )
    if form == "classification":
        labels = tuple(labels) or tuple(sorted({label_of(row) for row in rows} - {""}))
        _check_labels(labels)
    made = [_task(row, form, labels, predictions=predictions) for row in rows]
    if form == "classification":
        label_in = "answer" if _answers_are_labels(rows, labels) else "field"
        for task in made:
            task["data"]["label_in"] = label_in
    return Export(form, made, _CONFIGS[form].replace("{choices}", _choices(labels)))


def _problem(row: Row, form: Form) -> str:
    if form == "pairs" and row.kind != "pair":
        return f"{row.where}: a {row.kind} row has no two answers"
    if form == "chat" and row.kind not in ("chat", "feedback"):
        return f"{row.where}: a {row.kind} row is no conversation with one answer"
    if form == "classification" and row.kind == "pair":
        return f"{row.where}: a pair has no label"
    return ""


def _check_labels(labels: Sequence[str]) -> None:
    if not 2 <= len(labels) <= MOST_LABELS:
        raise ConfigError(
            f"a classification has 2 to {MOST_LABELS} labels, not {len(labels)}",
            why="without --labels they are the rows' answers, or their field `label`",
            fix="name them: --labels refund,delivery,other",
        )


def label_of(row: Row) -> str:
    """The label that a row has: its field `label`, else its answer."""
    label = row.meta.get("label")
    if isinstance(label, str):
        return label
    return "" if row.kind == "text" else row.answer.strip()


def text_of(row: Row) -> str:
    """What is classified: the last turn of the user, else the text."""
    if row.kind == "text":
        return row.answer
    turns = [turn for turn in row.messages if turn.get("role") == "user"]
    content = turns[-1].get("content") if turns else None
    return content if isinstance(content, str) else row.question


def _answers_are_labels(rows: Sequence[Row], labels: Sequence[str]) -> bool:
    """Whether the rows' answers are labels (some misspelled, perhaps), or texts that are to be kept."""
    answers = [row.answer.strip() for row in rows if row.kind != "text"]
    return 2 * sum(answer in labels for answer in answers) >= len(answers)


def _task(row: Row, form: Form, labels: Sequence[str], *, predictions: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"row_id": row_id(row), "row": row.where}
    match form:
        case "chat":
            data |= {"dialogue": _dialogue(row.messages[:-1]), "answer": _said(row.messages[-1])}
        case "classification":
            data["text"] = text_of(row)
        case "pairs":
            answers = [_said(row.messages[-1]), _said(row.rejected[0])]
            left, right = answers if left_is_chosen(row) else answers[::-1]
            data |= {"dialogue": _dialogue(row.messages[:-1]), "left": left, "right": right}
    task: dict[str, Any] = {"data": data}
    # Label Studio refuses a prediction with a choice that the interface does not have.
    if predictions and form == "classification" and label_of(row) in labels:
        task["predictions"] = [_prediction("label", "text", label_of(row))]
    elif predictions and form == "chat":
        task["predictions"] = [_prediction("verdict", "answer", "accept")]
    return task


def _prediction(name: str, to: str, choice: str) -> dict[str, Any]:
    result = {"from_name": name, "to_name": to, "type": "choices", "value": {"choices": [choice]}}
    return {"model_version": OWN_LABELS, "result": [result]}


def _dialogue(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{"author": str(turn.get("role")), "text": _said(turn)} for turn in turns]


def _said(turn: Mapping[str, Any]) -> str:
    """A turn's text, and the tools that it calls, as annotators see them."""
    content = turn.get("content")
    parts = [content] if isinstance(content, str) and content else []
    if calls := turn.get("tool_calls"):
        parts.append(json.dumps(calls, ensure_ascii=False))
    return "\n".join(parts)


def _choices(labels: Sequence[str]) -> str:
    return "\n".join(f"    <Choice value={quoteattr(label)}/>" for label in labels)


_CONFIGS: Mapping[Form, str] = {
    "chat": """<View>
  <Paragraphs name="dialogue" value="$dialogue" layout="dialogue"/>
  <Header value="The answer"/>
  <Text name="answer" value="$answer"/>
  <Choices name="verdict" toName="answer" choice="single" required="true" showInline="true">
    <Choice value="accept" hotkey="a"/>
    <Choice value="reject" hotkey="r"/>
  </Choices>
  <Rating name="quality" toName="answer" maxRating="5"/>
  <Header value="A better answer, if you have one"/>
  <TextArea name="better" toName="answer" rows="6" maxSubmissions="1" editable="true"/>
</View>
""",
    "classification": """<View>
  <Text name="text" value="$text"/>
  <Choices name="label" toName="text" choice="single" required="true">
{choices}
  </Choices>
</View>
""",
    "pairs": """<View>
  <Paragraphs name="dialogue" value="$dialogue" layout="dialogue"/>
  <Header value="Which answer is better?"/>
  <Choices name="better" toName="dialogue" choice="single" required="true" showInline="true">
    <Choice value="left" hotkey="1"/>
    <Choice value="right" hotkey="2"/>
    <Choice value="equal" hotkey="3"/>
  </Choices>
  <View style="display: flex; gap: 1em">
    <View style="flex: 1"><Text name="left" value="$left"/></View>
    <View style="flex: 1"><Text name="right" value="$right"/></View>
  </View>
</View>
""",
}
