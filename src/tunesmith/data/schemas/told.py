"""Which schema rows have, told from their fields and what these hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.rows import RawRow
from tunesmith.data.schemas.chatml import OPENS
from tunesmith.data.schemas.feedback import label_of
from tunesmith.data.schemas.picked import ALIASES, Options
from tunesmith.data.schemas.preference import HUMAN
from tunesmith.data.schemas.slices import inner
from tunesmith.data.schemas.table import SCHEMAS
from tunesmith.errors import ConfigError
from tunesmith.registry import nearest

__all__ = ["HEAD_ROWS", "Told", "schema_named", "shape_of", "tell"]

HEAD_ROWS = 1_000
"""Rows from the start of a file that its schema is told from."""
UNKNOWN = ""
_NUMBER = re.compile(r"\s*[-+]?[$€£]?[\d.,]+\s*%?\s*|.*####.*|.*\\boxed\{.*", re.DOTALL)
_QUESTIONS = ("prompt", "question", "query", "problem", "input")
_CHECKS = ("ground_truth", "solution", "final_answer")


@dataclass(frozen=True)
class Told:
    """What rows are read as.

    Attributes:
        schema: its name; "" when no schema fits.
        mapping: what a field is for -> its name in the file, for all that the schema found.
        share: part of the rows, 0 to 1, that have this schema's fields.
        why: what it was told by; when no schema fits, what is missing and how to say it.
        others: name -> number of rows that look like another schema, "" for rows like none.
    """

    schema: str
    mapping: Mapping[str, str]
    share: float
    why: str
    others: Mapping[str, int] = field(default_factory=dict)


def tell(head: Sequence[RawRow], options: Options | None = None) -> Told:
    """The schema of most rows of a file's head, or the one that the user named.

    Args:
        head: the first `HEAD_ROWS` rows, or fewer.
        options: fields that the user mapped and the schema that he named, which are obeyed.

    Raises:
        ConfigError: no schema has the name that was given.
    """
    asked = options or Options()
    if asked.schema is not None:
        name, why = schema_named(asked.schema), "data.rows names it"
        return Told(name, _mapping(head, name, asked), 1.0, why)
    if asked.mapping:
        name = _by_uses(asked.mapping)
        if name:
            named = ", ".join(f"{use} = {theirs}" for use, theirs in asked.mapping.items())
            mapping = _mapping(head, name, asked)
            return Told(name, mapping, 1.0, f"data.fields names them: {named}")
    counts = Counter(shape_of(raw) for raw in head)
    known = {name: n for name, n in counts.items() if name}
    if not known:
        return Told(UNKNOWN, {}, 0.0, _nothing_fits(head), dict(counts))
    families: Counter[str] = Counter()
    for name, n in known.items():
        families[SCHEMAS[name].family] += n
    family = max(dict.fromkeys(s.family for s in SCHEMAS.values()), key=lambda one: families[one])
    name = max((n for n in SCHEMAS if SCHEMAS[n].family == family), key=lambda n: counts[n])
    others = {n: count for n, count in counts.items() if not n or SCHEMAS[n].family != family}
    share = families[family] / len(head)
    mapping = _mapping(head, name, asked)
    return Told(name, mapping, share, _reason(name, mapping), others)


def schema_named(name: str) -> str:
    """The name, when there is such a schema.

    Raises:
        ConfigError: there is none.
    """
    if name in SCHEMAS:
        return name
    raise ConfigError(
        f"no schema is called {name!r}{nearest(name, SCHEMAS)}",
        fix=f"use one of: {', '.join(SCHEMAS)}",
    )


def _by_uses(uses: Mapping[str, str]) -> str:
    """The schema that the uses of mapped fields make; "" when they say too little."""
    for name in ("preference", "feedback", "chat", "instruction", "prompt-completion", "problem"):
        schema = SCHEMAS[name]
        if set(schema.uses[: schema.n_needed]) <= set(uses):
            return name
    return "text" if set(uses) == {"text"} else UNKNOWN


def _mapping(head: Sequence[RawRow], name: str, options: Options) -> dict[str, str]:
    """What each field of the schema is called in these rows, by the first row that has it."""
    found: dict[str, str] = {}
    for use in SCHEMAS[name].uses:
        for raw in head[:50]:
            theirs = options.name_in(raw.fields, use)
            if theirs is not None and theirs not in found.values():
                found[use] = theirs
                break
    return found


def shape_of(raw: RawRow) -> str:
    """The schema that a row's own fields look like; "" for none.

    A row with only some of a schema's fields counts as its row, so that what is missing is named.
    """
    fields = raw.fields
    talk = next((name for name in ALIASES["messages"] if name in fields), None)
    if talk is not None and not ("chosen" in fields and "rejected" in fields):
        return "sharegpt" if _has_from(raw, talk) else "chat"
    if "chosen" in fields or "rejected" in fields:
        return _shape_of_pair(raw)
    if "instruction" in fields:
        return "instruction"
    asked = next((name for name in _QUESTIONS if name in fields), None)
    if asked is not None:
        return _shape_of_question(raw, asked)
    if "completion" in fields:
        return "prompt-completion"
    if "text" in fields:
        value = fields["text"].value
        is_chatml = isinstance(value, str) and value.lstrip().startswith(OPENS)
        return "chatml" if is_chatml else "text"
    return UNKNOWN


def _has_from(raw: RawRow, name: str) -> bool:
    found = inner(raw.fields[name])
    first = found.value[0] if found and isinstance(found.value, list) and found.value else None
    return isinstance(first, dict) and "from" in first and "role" not in first


def _shape_of_pair(raw: RawRow) -> str:
    chosen = _value(raw, "chosen")
    if isinstance(chosen, str):
        is_hh = "prompt" not in raw.fields and chosen.startswith(HUMAN)
        return "preference-hh" if is_hh else "preference-text"
    first = chosen[0] if isinstance(chosen, list) and chosen else None
    begins = (first.get("role") or first.get("from")) if isinstance(first, dict) else None
    is_whole = begins in ("system", "user", "human")
    return "preference-implicit" if is_whole else "preference"


def _value(raw: RawRow, name: str) -> Any:
    """A field's value; the list that it spells, where it is JSON text of a list."""
    field = raw.fields.get(name)
    if field is None:
        return None
    listed = inner(field) if isinstance(field.value, str) else None
    return listed.value if listed and isinstance(listed.value, list) else field.value


def _shape_of_question(raw: RawRow, asked: str) -> str:
    fields, prompt = raw.fields, _value(raw, asked)
    ending = "-turns" if isinstance(prompt, list) else ""
    if "completion" in fields or "response" in fields:
        if "label" in fields and label_of(fields["label"].value) is not None:
            return "feedback" if ending else "feedback-text"
        return f"prompt-completion{ending}"
    if any(name in fields for name in _CHECKS):
        return "problem" if ending else "problem-text"
    if "answer" in fields:
        if ending:
            return "problem"
        is_checked = asked in ("prompt", "problem") or _can_be_checked(fields["answer"].value)
        return "problem-text" if is_checked else "prompt-completion"
    if "output" in fields:
        return "prompt-completion"
    # A question alone tells nothing where other fields may be its answer; `prompt` is a name of ours.
    if asked == "prompt":
        return f"prompt-completion{ending}"
    return "text" if "text" in fields else UNKNOWN


def _can_be_checked(answer: object) -> bool:
    """Whether an answer is a value to compare with and no text to learn."""
    return not isinstance(answer, str) or bool(_NUMBER.fullmatch(answer))


def _reason(name: str, mapping: Mapping[str, str]) -> str:
    schema = SCHEMAS[name]
    needed = [mapping[use] for use in schema.uses[: schema.n_needed] if use in mapping]
    text = f"the rows have {' and '.join(needed)}" if needed else "most rows look like it"
    if name == "problem-text" and mapping.get("answer") == "answer":
        text += "; to learn the answers instead, set data.rows to prompt-completion"
    elif name == "prompt-completion" and mapping.get("completion") == "answer":
        text += "; if the answers are only to be checked, set data.rows to problem-text"
    return text


def _nothing_fits(head: Sequence[RawRow]) -> str:
    names = ", ".join(dict.fromkeys(name for raw in head for name in raw.fields)) or "none"
    return (
        "no row of the file has messages, instruction/output, prompt/completion, "
        f"prompt/chosen/rejected, prompt/answer or text; its fields are {names}: "
        "name two of them as data.fields.prompt and .completion"
    )
