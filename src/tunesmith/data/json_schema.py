"""JSON of answers, and the schemas that they have to keep to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tunesmith.errors import (
    ConfigError,
    EnvironmentProblem,
    MissingError,
    reason_of,
)

__all__ = ["JsonSchema", "Mismatch", "Schema", "read_schema", "read_strictly"]

Schema = Mapping[str, Any] | bool
_MOST = 160


@dataclass(frozen=True, order=True)
class Mismatch:
    """Where a value is not as its schema has it.

    Attributes:
        at: JSON path, such as `$.name`; `$` is the value itself.
        said: what is wrong, in a few words.
        value: as JSON text.
    """

    at: str
    said: str
    value: str


def read_schema(path: Path, fix: str) -> Schema:
    """The schema in a file; whether it is one, `JsonSchema` tells.

    Raises:
        MissingError: there is no file.
        ConfigError: it cannot be read, or holds neither an object nor a boolean.
    """
    try:
        schema = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise MissingError(f"no JSON schema at {path}", fix=fix) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} cannot be read as a JSON schema", why=reason_of(error), fix="correct the file"
        ) from error
    if not isinstance(schema, dict | bool):
        raise ConfigError(
            f"{path} is no JSON schema", why="a schema is an object", fix="correct it"
        )
    return schema


class JsonSchema:
    """What values have to keep to. References are looked up in the schema itself, never fetched.

    Args:
        schema: of any draft; 2020-12 where it does not say.
        name: of the schema, in errors.

    Raises:
        ConfigError: it is none.
        EnvironmentProblem: the package that checks schemas is not installed.
    """

    def __init__(self, schema: Schema, name: str) -> None:
        try:
            import jsonschema
            from referencing import Registry
        except ModuleNotFoundError as error:
            raise EnvironmentProblem(
                f"JSON schemas need the package {error.name!r}, which is not installed",
                fix="pip install 'tunesmith[data]'",
            ) from error
        self._name = name
        draft = schema.get("$schema", "") if isinstance(schema, Mapping) else ""
        if not isinstance(draft, str):
            raise self._no_schema(f"$['$schema']: {draft!r} is not a text")
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(schema)
            self._validator = kind(schema, registry=Registry())
        except jsonschema.SchemaError as error:
            raise self._no_schema(f"{error.json_path}: {error.message[:_MOST]}") from error
        except (ValueError, RecursionError) as error:
            raise self._no_schema(reason_of(error)) from error

    def mismatches(self, value: Any) -> Iterator[Mismatch]:
        """What is wrong with a value; nothing when it fits.

        Raises:
            ConfigError: the schema refers to what is not in it.
        """
        from referencing.exceptions import Unresolvable

        try:
            for found in self._validator.iter_errors(value):
                shown = json.dumps(found.instance, ensure_ascii=False)
                yield Mismatch(found.json_path, found.message[:_MOST], shown)
        except Unresolvable as error:
            raise ConfigError(
                f"{self._name} refers to what is not in it: {error}"[: 2 * _MOST],
                why="nothing is fetched: a schema stands in one file",
                fix="put what it refers to under $defs",
            ) from error
        except RecursionError:
            yield Mismatch("$", "too deep for the schema, or the schema goes in a circle", "")
        except (ArithmeticError, ValueError) as error:
            # The library computes with numbers such as 10**400, and reads addresses.
            yield Mismatch("$", f"cannot be held against the schema: {reason_of(error)}", "")

    def _no_schema(self, why: str) -> ConfigError:
        return ConfigError(f"{self._name} is no JSON schema: {why}", fix="correct the schema")


def read_strictly(text: str) -> Any:
    """The value of a JSON text in which no key stands twice in one object, and which has no NaN.

    Raises:
        ValueError: it is not that; `json.JSONDecodeError` with a place where it is no JSON.
        RecursionError: it is nested too deeply.
    """
    return _STRICT.decode(text)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
