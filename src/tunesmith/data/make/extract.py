"""Texts with the JSON that they say, every answer valid under its schema."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.json_schema import JsonSchema, read_schema
from tunesmith.data.make.records import fields_or_refuse, records
from tunesmith.data.make.rows import Made, Order, chat
from tunesmith.errors import ConfigError, DataError

__all__ = ["ExtractOptions", "make_extract"]

Record = Mapping[str, Any]
_FORMATTER = string.Formatter()


@dataclass(frozen=True)
class ExtractOptions:
    """Where texts and answers come from.

    Attributes:
        templates: texts with {field} slots, filled from the records; each record is told with one of them, or
            with `texts_a_record`. Without templates, the rows have a text and its JSON already.
        schema: a JSON schema (an object's) that every answer must fit; from the records when None.
        text: field of the text, without templates.
        answer: field of the JSON (an object, or text that holds one), without templates.
        show: what the prompt says about the answer's form: the schema, the fields' names, or nothing.
        instruction: first line of the prompt.
    """

    templates: tuple[str, ...] = ()
    schema: Path | None = None
    text: str = "text"
    answer: str = "json"
    show: Literal["schema", "fields", "nothing"] = "fields"
    instruction: str = "Extract the data from the text as JSON."
    texts_a_record: int = 1
    seed: int = 0


def make_extract(path: Path, options: ExtractOptions | None = None) -> Made:
    """Rows of texts with the JSON that they say.

    A value that a text does not say is left out; it is null where the schema requires the field and allows null;
    where it requires the field and does not allow null, the record is dropped for that text.

    Raises:
        MissingError: nothing is there.
        ConfigError: the schema is none, or a template names an unknown field.
        DataError: rows cannot be read, or none is left.
        EnvironmentProblem: the package that checks schemas is not installed.
    """
    options = options or ExtractOptions()
    made = Made("extract")
    found = list(records(path))
    if not found:
        raise DataError(f"{path}: no records in it", fix="name a file with rows")
    if options.templates:
        known = dict.fromkeys(name for _, record in found for name in record)
        slots = [_slots(template, known) for template in options.templates]
        schema = _schema_of(options) or _derived([record for _, record in found], slots)
        pairs = _told(found, slots, schema, options, made)
    else:
        fields_or_refuse(path, {"--text": options.text, "--answer": options.answer}, found[0][1])
        pairs = _given(found, options, made)
        schema = _schema_of(options) or _derived([answer for _, _, answer, _ in pairs])
    _add(path, pairs, schema, options, made)
    made.facts = {"schema": schema}
    made.refuse_empty(f"{path}: no row is left", fix="mend the rows, the templates or the schema")
    return made


Pair = tuple[str, str, Record, str]
"""Place, text, answer, and the number of the template."""


def _add(
    path: Path, pairs: Sequence[Pair], schema: Record, options: ExtractOptions, made: Made
) -> None:
    """Rows for the answers that are valid; the others are dropped with what the schema says."""
    checked = JsonSchema(schema, "the schema" if options.schema is None else str(options.schema))
    head = _head(schema, options)
    seen: dict[str, str] = {}
    n_unsaid = 0
    for where, text, answer, template in pairs:
        if wrong := next(checked.mismatches(answer), None):
            made.drop(where, text[:80], f"not valid under the schema: {wrong.at}: {wrong.said}")
            continue
        if text in seen:
            made.drop(where, text[:80], f"a duplicate: {seen[text]}")
            continue
        seen[text] = where
        n_unsaid += any(not _is_said(value, text) for value in answer.values())
        meta = {"source": path.name, "where": where, "task": "extract"}
        if template:
            meta["template"] = template
        body = json.dumps(answer, ensure_ascii=False)
        made.rows.append(chat(f"{head}\n\n{text}" if head else text, body, meta))
    if n_unsaid:
        made.notes.append(
            f"{n_unsaid} of {len(made.rows)} answers hold a value that does not stand in the text word for word: "
            "a model learns to make those up unless they follow from it"
        )


def _is_said(value: Any, text: str) -> bool:
    """Whether a value stands in the text; only plain values are looked for."""
    if isinstance(value, str) and value:
        return value.casefold() in text.casefold()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value) in text.replace(",", "") or f"{value:g}" in text
    return True


def _head(schema: Record, options: ExtractOptions) -> str:
    lines = [options.instruction] if options.instruction else []
    if options.show == "schema":
        lines.append(f"Schema: {json.dumps(schema, ensure_ascii=False)}")
    elif options.show == "fields" and schema.get("properties"):
        lines.append(f"Fields: {', '.join(schema['properties'])}")
    return "\n".join(lines)


def _given(found: Sequence[tuple[str, Record]], options: ExtractOptions, made: Made) -> list[Pair]:
    """Rows that have their text and JSON."""
    pairs: list[Pair] = []
    for where, record in found:
        text, answer = record.get(options.text), record.get(options.answer)
        if not isinstance(text, str) or not text.strip():
            made.drop(where, str(text)[:80], "no text")
            continue
        if isinstance(answer, str):
            try:
                answer = json.loads(answer)
            except (ValueError, RecursionError) as error:
                made.drop(where, text[:80], f"its answer is not JSON: {error}")
                continue
        if isinstance(answer, dict):
            pairs.append((where, text, answer, ""))
        else:
            made.drop(where, text[:80], "its answer is no JSON object")
    return pairs


def _told(
    found: Sequence[tuple[str, Record]],
    slots: Sequence[set[str]],
    schema: Record,
    options: ExtractOptions,
    made: Made,
) -> list[Pair]:
    """Each record told with templates of which it has all values."""
    order = Order(options.seed)
    properties: Mapping[str, Record] = schema.get("properties", {})
    pairs: list[Pair] = []
    for where, record in found:
        values = {name: value for name, value in record.items() if value not in (None, "")}
        fit = [at for at, names in enumerate(slots) if names <= set(values)]
        if not fit:
            made.drop(
                where, str(dict(record))[:80], "no template goes without the values that it lacks"
            )
        for at in order.shuffled(fit, where)[: options.texts_a_record]:
            text = options.templates[at]
            try:
                text = _FORMATTER.vformat(text, (), values)
                said = {
                    n: _typed(values[n], properties.get(n, {}))
                    for n in record
                    if n in slots[at] and n in properties
                }
            except ValueError as error:
                # Of a value's type, or of a form such as {price:.2f} that the value does not have.
                made.drop(where, text[:80], str(error))
                continue
            pairs.append((where, text, _completed(said, schema), str(at)))
    return pairs


def _slots(template: str, known: Mapping[str, object]) -> set[str]:
    """The fields that a template names.

    Raises:
        ConfigError: it names others than the records have, or none.
    """
    try:
        parts = [part for part in _FORMATTER.parse(template) if part[1] is not None]
        names = {str(name) for _, name, _, _ in parts}
    except ValueError as error:
        raise ConfigError(
            f"--template {template!r}: {error}", fix="write a brace itself as {{"
        ) from error
    if nested := [form for _, _, form, _ in parts if "{" in (form or "")]:
        raise ConfigError(
            f"--template {template!r}: a slot in the form {nested[0]!r}",
            fix="write the form itself, such as {price:>10}",
        )
    unknown = sorted(names - set(known))
    if unknown or not names:
        raise ConfigError(
            f"--template {template!r}: "
            + (f"no field {', '.join(unknown)}" if unknown else "it has no slot"),
            fix=f"its slots may be {', '.join('{' + name + '}' for name in known)}",
        )
    return names


def _completed(said: dict[str, Any], schema: Record) -> dict[str, Any]:
    """With null for what is required, not said, and may be null; in the order of the schema."""
    properties: Mapping[str, Record] = schema.get("properties", {})
    required = set(schema.get("required", ()))
    full = dict(said)
    for name, rule in properties.items():
        if name not in full and name in required and "null" in _types(rule):
            full[name] = None
    return {name: full[name] for name in properties if name in full}


def _types(rule: Record) -> tuple[str, ...]:
    found = rule.get("type", ())
    return (found,) if isinstance(found, str) else tuple(found)


def _typed(value: Any, rule: Record) -> Any:
    """A table's text as the schema's type.

    Raises:
        ValueError: it is no such thing.
    """
    types = _types(rule)
    if not isinstance(value, str) or "string" in types or not types:
        return value
    if "integer" in types and re.fullmatch(r"[+-]?\d{1,18}", value.strip()):
        return int(value)
    if "number" in types and re.fullmatch(r"[+-]?\d{1,18}(?:\.\d{1,18})?", value.strip()):
        return float(value) if "." in value else int(value)
    if "boolean" in types and value.strip().lower() in ("true", "false", "yes", "no"):
        return value.strip().lower() in ("true", "yes")
    raise ValueError(f"{value!r} is not of type {' or '.join(types)}")


def _derived(found: Sequence[Record], slots: Sequence[set[str]] = ()) -> dict[str, Any]:
    """A schema that all records fit: a field's type from its values, null where one is missing.

    Args:
        slots: the fields that each template tells. What none tells is left out, and what only some tell may be missing.
    """
    known = dict.fromkeys(name for record in found for name in record)
    names = [name for name in known if not slots or any(name in told for told in slots)]
    required = [name for name in names if all(name in told for told in slots)]
    properties: dict[str, Any] = {}
    for name in names:
        values = [record.get(name) for record in found]
        types = sorted({_type_of(value) for value in values if value not in (None, "")})
        if types == ["integer", "number"]:
            types = ["number"]
        if "string" in types and all(isinstance(value, str | None) for value in values):
            types = ["string"]
        if not slots and any(value in (None, "") for value in values):
            types.append("null")
        properties[name] = {"type": types[0] if len(types) == 1 else types}
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _type_of(value: Any) -> str:
    if isinstance(value, str):
        if re.fullmatch(r"-?(?:0|[1-9]\d{0,17})", value):
            return "integer"
        return "number" if re.fullmatch(r"-?(?:0|[1-9]\d*)\.\d+", value) else "string"
    names = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _schema_of(options: ExtractOptions) -> dict[str, Any] | None:
    """The user's schema.

    Raises:
        ConfigError: the file is no JSON schema of an object.
    """
    if options.schema is None:
        return None
    found = read_schema(options.schema, "correct --schema")
    if not isinstance(found, dict) or not isinstance(found.get("properties"), dict):
        raise ConfigError(
            f"{options.schema}: no JSON schema of an object",
            fix='begin with {"type": "object", "properties": {...}}',
        )
    return found
