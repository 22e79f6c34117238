"""Answers that are JSON: they parse, and keep to a schema where one is given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from tunesmith.data.check.domains import unfenced
from tunesmith.data.check.finding import Finding, finding, shortened
from tunesmith.data.check.options import CheckOptions
from tunesmith.data.rows import Row
from tunesmith.errors import DataError, EnvironmentProblem

__all__ = ["JsonAnswers"]

_SHOWN_ERRORS = 5


class JsonAnswers:
    """Checks JSON answers.

    Raises:
        DataError: the schema itself is wrong.
        EnvironmentProblem: there is a schema, and jsonschema is not installed.
    """

    def __init__(self, options: CheckOptions) -> None:
        self._validator = None if options.json_schema is None else _validator(options.json_schema)

    def check(self, row: Row, answer: str, field: str) -> Iterator[Finding]:
        """That the answer is one JSON value, with no key twice, as the schema has it."""
        if row.kind == "problem" and not isinstance(row.value["answer"], str):
            value = row.value["answer"]
        else:
            text = unfenced(answer)
            try:
                value = _DECODER.decode(text)
            except json.JSONDecodeError as error:
                what = f"not valid JSON at character {error.pos + 1}: {error.msg}"
                shown = shortened(text, error.pos)
                yield finding(row.where, "json", what, field=field, value=shown)
                return
            except RecursionError:
                yield finding(row.where, "json", "nested too deeply", field=field)
                return
            except ValueError as error:
                shown = shortened(text)
                yield finding(row.where, "json", str(error), field=field, value=shown)
                return
        if self._validator is not None:
            yield from _against(self._validator, row, value, field)


def _against(validator: Any, row: Row, value: Any, field: str) -> Iterator[Finding]:
    errors = sorted(validator.iter_errors(value), key=lambda e: (e.json_path, e.message))
    for error in errors[:_SHOWN_ERRORS]:
        at = error.json_path if error.json_path != "$" else "the value"
        what = f"{at}: {error.message[:160]}"
        shown = shortened(json.dumps(error.instance, ensure_ascii=False))
        yield finding(row.where, "json-schema", what, field=field, value=shown)


def _validator(schema: Mapping[str, Any] | bool) -> Any:
    try:
        import jsonschema
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "checking JSON against a schema needs the package 'jsonschema', which is not installed",
            fix="pip install 'tunesmith[data]'",
        ) from error
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.exceptions.SchemaError as error:
        raise DataError(
            f"data.check.json_schema is no JSON schema: {error.json_path}: {error.message[:160]}",
            fix="correct the schema",
        ) from error
    return kind(schema)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
