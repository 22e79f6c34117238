"""Answers that are JSON: they parse, and keep to a schema where one is given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tunesmith.data.check.domains import unfenced
from tunesmith.data.check.finding import Finding, finding, shortened
from tunesmith.data.check.options import CheckOptions
from tunesmith.data.json_schema import JsonSchema, read_strictly
from tunesmith.data.rows import Row

__all__ = ["JsonAnswers"]

_SHOWN_ERRORS = 5


class JsonAnswers:
    """Checks JSON answers.

    Raises:
        ConfigError: the schema itself is wrong.
        EnvironmentProblem: there is a schema, and jsonschema is not installed.
    """

    def __init__(self, options: CheckOptions) -> None:
        schema = options.json_schema
        self._schema = None if schema is None else JsonSchema(schema, "data.check.json_schema")

    def check(self, row: Row, answer: str, field: str) -> Iterator[Finding]:
        """That the answer is one JSON value, with no key twice, as the schema has it."""
        if row.kind == "problem" and not isinstance(row.value["answer"], str):
            value = row.value["answer"]
        else:
            text = unfenced(answer)
            try:
                value = read_strictly(text)
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
        if self._schema is not None:
            yield from _against(self._schema, row, value, field)


def _against(schema: JsonSchema, row: Row, value: Any, field: str) -> Iterator[Finding]:
    for wrong in sorted(schema.mismatches(value))[:_SHOWN_ERRORS]:
        at = wrong.at if wrong.at != "$" else "the value"
        yield finding(
            row.where,
            "json-schema",
            f"{at}: {wrong.said}",
            field=field,
            value=shortened(wrong.value),
        )
