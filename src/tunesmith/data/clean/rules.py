"""Rows dropped by what they are, one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tunesmith.data.check.language import NAMES, told
from tunesmith.data.check.text import is_null, refuses
from tunesmith.data.clean.plan import CleanPlan
from tunesmith.data.rows import Row
from tunesmith.errors import counted

__all__ = ["RULES", "why_dropped"]

_SHOWN = 40


def why_dropped(row: Row, plan: CleanPlan) -> tuple[str, str] | None:
    """The first rule that drops a row, and its reason; None when it stays."""
    for name, rule in RULES.items():
        reason = next(rule(row, plan), None)
        if reason is not None:
            return name, reason
    return None


def _by_field(row: Row, plan: CleanPlan) -> Iterator[str]:
    for name, unwanted in plan.drop_where.items():
        found = row.meta.get(name, _MISSING)
        if type(found) is type(unwanted) and found == unwanted:
            yield f"{name} = {json.dumps(found, ensure_ascii=False)}"


_MISSING: Any = object()


def _empty(row: Row, plan: CleanPlan) -> Iterator[str]:
    if not plan.drop_empty:
        return
    answer = row.answer
    if not answer.strip() and not (row.messages and row.messages[-1].get("tool_calls")):
        yield "the answer is empty"
    elif is_null(answer) and row.kind != "problem":
        yield f"the whole answer is {answer.strip()[:_SHOWN]!r}"


def _lengths(row: Row, plan: CleanPlan) -> Iterator[str]:
    sides = [("answer", row.answer, plan.answer_characters)]
    if row.kind != "text":
        sides.insert(0, ("question", row.question, plan.question_characters))
    for name, text, (least, most) in sides:
        if len(text) < least:
            yield f"the {name} has {counted(len(text), 'character')}, fewer than {least}"
        elif most is not None and len(text) > most:
            yield f"the {name} has {counted(len(text), 'character')}, more than {most}"


def _refusals(row: Row, plan: CleanPlan) -> Iterator[str]:
    if plan.drop_refusals and row.kind != "text" and (found := refuses(row.answer)):
        yield f"the answer refuses: {found[0][:_SHOWN]!r}"


def _languages(row: Row, plan: CleanPlan) -> Iterator[str]:
    if plan.languages:
        code = told(f"{row.question}\n{row.answer}")
        if code and code not in plan.languages:
            yield f"the text is {NAMES.get(code, code)} ({code})"


RULES: dict[str, Callable[[Row, CleanPlan], Iterator[str]]] = {
    "field": _by_field,
    "empty": _empty,
    "length": _lengths,
    "refusal": _refusals,
    "language": _languages,
}
"""Name -> rule, in the order in which they are asked; each yields a reason when it drops the row."""
