"""Which schema rows have, told from their fields and what these hold."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.rows import RawRow
from tunesmith.data.schemas.chatml import OPENS
from tunesmith.data.schemas.feedback import label_of, verdict_of
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
_CLASSES = ("label", "category", "class", "intent", "sentiment", "target", "tag")
"""Names that a text's class has; `data make classify` knows them all."""
_LONGEST_CLASS = 80
_SHOWN_NAMES = 20
_CLASSIFY = "`tunesmith data make classify FILE --out NEW.jsonl`"
_BY_USES = ("preference", "feedback", "chat", "instruction", "prompt-completion", "problem", "text")
"""Schemas in the order in which mapped fields are tried on them."""
_LEFT: Mapping[str, frozenset[str]] = {
    "text": frozenset({"prompt", "completion", "answer"}),
    "chatml": frozenset({"prompt", "completion", "answer"}),
    "prompt-completion": frozenset({"label", "answer"}),
    "problem": frozenset({"completion", "label"}),
}
"""Family -> uses that its schemas only leave alone, so that no name is taken for one."""


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
    by_content = _by_content(head, asked)
    return (_by_fields(head, asked, by_content) if asked.mapping else None) or by_content


def _by_content(head: Sequence[RawRow], asked: Options) -> Told:
    """The schema that most rows look like."""
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
    return Told(name, mapping, share, _reason(name, mapping, head), others)


def _by_fields(head: Sequence[RawRow], asked: Options, by_content: Told) -> Told | None:
    """The schema that mapped fields make, the others found by their usual names.

    None when they only add to what the rows' content tells.
    """
    uses = asked.mapping
    named = ", ".join(f"{use} = {theirs}" for use, theirs in uses.items())
    name = _by_uses(uses)
    needed = {use for one in _BY_USES for use in _needed(one)} & set(uses)
    absent = [use for use in uses if not _is_there(head, uses[use])]
    if head and any(use in (_needed(name) if name else needed) for use in absent):
        return Told(UNKNOWN, {}, 0.0, _not_there(head, uses, absent), {UNKNOWN: len(head)})
    if name:
        if name == "text" and any(_is_chatml(raw, uses["text"]) for raw in head[:1]):
            name = "chatml"
        return Told(name, _mapping(head, name, asked), 1.0, f"data.fields names them: {named}")
    if _is_whole(by_content.schema, by_content.mapping, uses):
        return None
    for name in _BY_USES:
        mapping = _mapping(head, name, asked)
        if _is_whole(name, mapping, uses):
            found = [theirs for use, theirs in mapping.items() if use not in uses]
            why = f"data.fields names {named}; the rows have {' and '.join(found)}"
            return Told(name, mapping, 1.0, why)
    if not head or not needed:
        return None
    return Told(UNKNOWN, {}, 0.0, _too_little(head, uses, named), {UNKNOWN: len(head)})


def _needed(name: str) -> tuple[str, ...]:
    schema = SCHEMAS[name]
    return schema.uses[: schema.n_needed]


def _reads(name: str) -> tuple[str, ...]:
    """The uses that a schema makes something of."""
    schema = SCHEMAS[name]
    left = _LEFT.get(schema.family, frozenset())
    return tuple(use for use in schema.uses if use not in left)


def _is_whole(name: str, mapping: Mapping[str, str], uses: Mapping[str, str]) -> bool:
    """Whether a schema has all that it needs, and makes something of every field that was mapped."""
    if not name:
        return False
    needed = set(_needed(name))
    if SCHEMAS[name].family == "preference" and not {"messages", "instruction"}.isdisjoint(mapping):
        needed.discard("prompt")  # LLaMA-Factory's pairs have it there.
    return set(uses) <= set(_reads(name)) and needed <= set(mapping)


def _is_there(head: Sequence[RawRow], name: str) -> bool:
    return any(name in raw.fields for raw in head)


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
    for name in _BY_USES[:-1]:
        if set(_needed(name)) <= set(uses):
            return name
    return "text" if set(uses) == {"text"} else UNKNOWN


def _mapping(head: Sequence[RawRow], name: str, options: Options) -> dict[str, str]:
    """What each field of the schema is called in these rows, by the first row that has it."""
    found: dict[str, str] = {}
    for use in _reads(name):
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
        return "chatml" if _is_chatml(raw, "text") else "text"
    return UNKNOWN


def _is_chatml(raw: RawRow, name: str) -> bool:
    value = raw.fields[name].value if name in raw.fields else None
    return isinstance(value, str) and value.lstrip().startswith(OPENS)


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
    if "output" in fields or "sql" in fields or (asked == "question" and "query" in fields):
        return "prompt-completion"
    # A question alone tells nothing where other fields may be its answer; `prompt` is a name of ours.
    if asked == "prompt":
        return f"prompt-completion{ending}"
    return "text" if "text" in fields else UNKNOWN


def _can_be_checked(answer: object) -> bool:
    """Whether an answer is a value to compare with and no text to learn."""
    return not isinstance(answer, str) or bool(_NUMBER.fullmatch(answer))


def _reason(name: str, mapping: Mapping[str, str], head: Sequence[RawRow]) -> str:
    needed = [mapping[use] for use in _needed(name) if use in mapping]
    text = f"the rows have {' and '.join(needed)}" if needed else "most rows look like it"
    if name == "problem-text" and mapping.get("answer") == "answer":
        text += (
            "; to learn the answers instead, set data.rows to prompt-completion "
            "(--from prompt-completion)"
        )
    elif name == "prompt-completion" and mapping.get("completion") == "answer":
        text += (
            "; if the answers are only to be checked, set data.rows to problem-text "
            "(--from problem-text)"
        )
    elif name == "prompt-completion" and _are_verdicts(head):
        text += (
            "; every completion is learned: if label says whether it is good, set data.rows to "
            "feedback (--from feedback)"
        )
    elif name == "text":
        text += _if_classes(head, mapping.get("text", "text"))
    return text


def _if_classes(head: Sequence[RawRow], text: str) -> str:
    """What to do when the texts have classes, which text alone does not learn; empty when they have none."""
    for name in _CLASSES:
        values = [raw.fields[name].value for raw in head if name in raw.fields]
        if name != text and values and all(map(_is_class, values)):
            fields = f", or --field prompt={shlex.quote(text)} --field completion={name}"
            return (
                f"; {name} is not learned then: for a classification {_CLASSIFY}"
                f"{fields if isinstance(values[0], str) else ''}"
            )
    return ""


def _are_verdicts(head: Sequence[RawRow]) -> bool:
    """Whether the field `label` could say good and bad by numbers; those could be classes, too."""
    values = [raw.fields["label"].value for raw in head if "label" in raw.fields]
    return bool(values) and all(verdict_of(value) is not None for value in values)


def _is_class(value: object) -> bool:
    if isinstance(value, str):
        return "\n" not in value and len(value) <= _LONGEST_CLASS
    return isinstance(value, int)


def _names(head: Sequence[RawRow]) -> list[str]:
    return list(dict.fromkeys(name for raw in head for name in raw.fields))


def _shown(names: Sequence[str]) -> str:
    """Names of fields in a message; a table may have thousands."""
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return (", ".join(names[:_SHOWN_NAMES]) or "none") + more


def _nothing_fits(head: Sequence[RawRow]) -> str:
    names = _names(head)
    texts = [
        name
        for name in names
        if any(name in raw.fields and isinstance(raw.fields[name].value, str) for raw in head[:50])
    ]
    prompt, completion = _guessed(texts)
    is_class = completion.lower() in _CLASSES
    hint = f" (for a classification, {_CLASSIFY})" if is_class else ""
    return (
        "no row of the file has messages, instruction/output, prompt/completion, question/sql, "
        f"prompt/chosen/rejected, prompt/answer or text; its fields are "
        f"{_shown(names)}{hint}: name two of them as data.fields.prompt and .completion, "
        f"on the command line as --field prompt={shlex.quote(prompt)} "
        f"--field completion={shlex.quote(completion)}"
    )


def _guessed(texts: Sequence[str]) -> tuple[str, str]:
    """Which of the fields with texts may be the prompt and the completion: by name, else by place."""
    asked, said = (*_QUESTIONS, "text"), (*ALIASES["completion"], "query", *_CLASSES)
    prompt = next((name for name in texts if name.lower() in asked), "")
    completion = next((name for name in texts if name.lower() in said and name != prompt), "")
    others = iter(name for name in texts if name not in (prompt, completion))
    return prompt or next(others, "NAME"), completion or next(others, "NAME")


def _not_there(head: Sequence[RawRow], uses: Mapping[str, str], absent: Sequence[str]) -> str:
    """Fields were mapped that no row has."""
    names = _names(head)
    said = " and ".join(f"{use} = {uses[use]!r}{nearest(uses[use], names)}" for use in absent)
    return f"data.fields names {said}, which no row has; the fields are {_shown(names)}"


def _too_little(head: Sequence[RawRow], uses: Mapping[str, str], named: str) -> str:
    """Fields were mapped that make no schema."""
    has = f"the fields are {_shown(_names(head))}"
    near = ("prompt-completion", *_BY_USES)
    name = next((one for one in near if set(uses) <= set(_reads(one))), UNKNOWN)
    if not name:
        return f"data.fields names {named}, and no schema has fields for all of these; {has}"
    missing = [use for use in _needed(name) if use not in uses]
    options = " ".join(f"--field {use}=NAME" for use in missing)
    return (
        f"data.fields names {named}, and nothing says what the {' and '.join(missing)} is: "
        f"name it, too ({options}); {has}"
    )
