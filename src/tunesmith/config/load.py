"""Recipes from YAML files and `--set`: layered, with an origin for each value, all errors at once."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tunesmith.config.base import Settings
from tunesmith.config.recipe import Recipe
from tunesmith.errors import ConfigError, MissingError, listed
from tunesmith.registry import nearest

__all__ = ["Value", "explain", "full_key", "load_recipe", "recipe_from"]

SHIPPED = Path(__file__).resolve().parent.parent / "recipes"


@dataclass
class _Layers:
    """Merged raw values and where each leaf came from."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Value:
    """One line of `tunesmith config explain`."""

    key: str
    value: object
    origin: str
    doc: str


def load_recipe(
    files: Sequence[str | Path] = (), sets: Sequence[str] = (), *, section: str = ""
) -> Recipe:
    """Defaults < files from left to right < `sets`, checked together.

    Args:
        files: YAML files, or names of recipes that ship with tunesmith.
        sets: "dotted.key=value" each; the value is read as YAML.
        section: a stage. Keys of `sets` may then leave it out: "method.rank=8" in "train".

    Raises:
        MissingError: a file is not there.
        ConfigError: everything that is wrong, each with the file and line.
    """
    layers = _Layers()
    for file in files:
        _merge_file(layers, _find(file))
    for assignment in sets:
        _merge_set(layers, assignment, section)
    return _validate(layers)


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """A recipe from Python values, with the same checks and errors as a file.

    Raises:
        ConfigError: everything that is wrong.
    """
    layers = _Layers()
    _merge(layers, values, "", lambda _key: "Python", Path.cwd())
    return _validate(layers)


def explain(recipe: Recipe) -> list[Value]:
    """Every value of a recipe with its origin and meaning, in the order of the sections."""
    return list(_explain(recipe, recipe, ""))


def _explain(recipe: Recipe, settings: Settings, prefix: str) -> Iterator[Value]:
    for name, info in type(settings).model_fields.items():
        value = settings.__dict__[name]
        key = f"{prefix}{name}"
        if isinstance(value, Settings):
            yield from _explain(recipe, value, f"{key}.")
        else:
            yield Value(key, value, recipe.origin(key), (info.description or "").strip())


def _find(file: str | Path) -> Path:
    path = Path(file)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{path.name}.yaml"
    if path.parent == Path() and not path.suffix and shipped.is_file():
        return shipped
    known = sorted(p.stem for p in SHIPPED.glob("*.yaml"))
    raise MissingError(
        f"no recipe file {str(file)!r}{nearest(str(file), known)}",
        why="it is neither a file nor a recipe that ships with tunesmith",
        fix=f"name a YAML file, or one of: {', '.join(known)}",
    )


def _merge_file(layers: _Layers, path: Path) -> None:
    try:
        text = path.read_text(encoding="utf-8")
        document = YAML(typ="rt", pure=True).load(text)
    except UnicodeDecodeError as error:
        layers.problems.append(f"{path}: not UTF-8 at byte {error.start}")
        return
    except OSError as error:
        layers.problems.append(f"{path}: cannot be read: {error.strerror}")
        return
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        layers.problems.append(f"{path}:{line}: not valid YAML: {error.problem}")
        return
    except YAMLError as error:
        layers.problems.append(f"{path}: not valid YAML: {error}")
        return
    if document is None:
        return
    if not isinstance(document, CommentedMap):
        layers.problems.append(f"{path}:1: a recipe is a mapping, this is {document!r}")
        return
    lines = dict(_lines(document, ""))
    _merge(layers, document, "", lambda key: f"{path}:{lines.get(key, 1)}", path.parent)


def _lines(node: CommentedMap, prefix: str) -> Iterator[tuple[str, int]]:
    for key, value in node.items():
        dotted = f"{prefix}{key}"
        yield dotted, node.lc.key(key)[0] + 1
        if isinstance(value, CommentedMap):
            yield from _lines(value, f"{dotted}.")


def full_key(key: str, section: str) -> str:
    """A key of `--set`, or a whole "key=value", with the section that may be left out before it."""
    first = key.partition("=")[0].partition(".")[0].strip()
    return key if not section or first in Recipe.model_fields else f"{section}.{key.lstrip()}"


def _merge_set(layers: _Layers, assignment: str, section: str) -> None:
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        layers.problems.append(f"--set {assignment!r}: write it as dotted.key=value")
        return
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        layers.problems.append(f"--set {assignment!r}: the value is not valid YAML: {error}")
        return
    nested: Any = value
    for part in reversed(full_key(key, section).split(".")):
        nested = {part: nested}
    _merge(layers, nested, "", lambda _key: f"--set {key}", Path.cwd())


def _merge(
    layers: _Layers,
    values: Mapping[str, Any],
    prefix: str,
    origin: typing.Callable[[str], str],
    folder: Path,
) -> None:
    """Lay `values` over what is there; a mapping with another `kind` replaces, all others merge."""
    target = layers.values
    for part in prefix.split(".")[:-1]:
        target = target[part]
    for raw_key, value in values.items():
        name, key = str(raw_key), f"{prefix}{raw_key}"
        if isinstance(value, Mapping):
            old = target.get(name)
            changes_kind = (
                isinstance(old, dict) and "kind" in value and old.get("kind") != value["kind"]
            )
            if not isinstance(old, dict) or changes_kind:
                target[name] = {}
            layers.origins[key] = origin(key)
            layers.folders[key] = folder
            _merge(layers, value, f"{key}.", origin, folder)
        else:
            target[name] = list(value) if isinstance(value, list) else value
            layers.origins[key] = origin(key)
            layers.folders[key] = folder


def _validate(layers: _Layers) -> Recipe:
    recipe: Recipe | None = None
    problems = list(layers.problems)
    _fill_kinds(Recipe, layers.values)
    _resolve_paths(layers, Recipe, layers.values, "")
    try:
        recipe = Recipe.model_validate(layers.values)
    except ValidationError as error:
        problems += [_problem(layers, details) for details in _causes(error.errors())]
    if problems or recipe is None:
        noun = "problem" if len(problems) == 1 else "problems"
        raise ConfigError(
            f"{len(problems)} {noun} in the recipe:\n{listed(problems)}",
            fix="edit the lines named; `tunesmith config explain RECIPE` shows every key",
        )
    recipe._origins.update(layers.origins)
    return recipe


def _causes(errors: Sequence[Any]) -> list[Any]:
    """Without "too few items" of a list whose items were refused themselves."""
    places = [tuple(details["loc"]) for details in errors]
    return [
        details
        for details, place in zip(errors, places, strict=True)
        if details["type"] != "too_short"
        or not any(len(other) > len(place) and other[: len(place)] == place for other in places)
    ]


def _problem(layers: _Layers, details: Any) -> str:
    path = _data_path(layers.values, details["loc"])
    key = ".".join(path)
    origin = _nearest_origin(layers, path)
    if details["type"] == "extra_forbidden":
        parent = _fields_at(path[:-1], layers.values)
        return f"{origin}: unknown key {key!r}{nearest(path[-1], parent)}"
    if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = _value_at(layers.values, path)
        kind = given.get("kind") if isinstance(given, dict) else given
        kinds = details["ctx"].get("expected_tags") or ", ".join(_kinds_at(path, layers.values))
        return f"{origin}: {key}.kind: {kind!r} is not one of {kinds}"
    if details["type"] == "too_short":
        return f"{origin}: {key} = {details['input']!r}: should have at least {details['ctx']['min_length']} item"
    message = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{origin}: {key} = {details['input']!r}: {message}"


def _nearest_origin(layers: _Layers, path: Sequence[str]) -> str:
    for end in range(len(path), 0, -1):
        origin = layers.origins.get(".".join(path[:end]))
        if origin:
            return origin
    return "recipe"


def _data_path(values: Any, loc: Sequence[int | str]) -> list[str]:
    """A pydantic location without the union tags that it inserts."""
    path: list[str] = []
    node = values
    for position, part in enumerate(loc):
        if isinstance(node, dict) and part in node:
            path.append(str(part))
            node = node[part]
        elif isinstance(part, int) or position == len(loc) - 1:
            path.append(str(part))
            node = None
    return path


def _value_at(values: Any, path: Sequence[str]) -> Any:
    for part in path:
        if not isinstance(values, dict):
            return None
        values = values.get(part)
    return values


def _models_in(info: FieldInfo) -> list[type[Settings]]:
    """The settings types a field may hold, tagged unions included."""
    found: list[type[Settings]] = []
    pending: list[Any] = [info.annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            found.append(annotation)
        else:
            pending.extend(typing.get_args(annotation))
    return sorted(found, key=lambda model: model.__name__)


def _kind(model: type[Settings]) -> str | None:
    info = model.model_fields.get("kind")
    if info is None or typing.get_origin(info.annotation) is not Literal:
        return None
    return str(typing.get_args(info.annotation)[0])


def _model_for(info: FieldInfo, value: Any) -> type[Settings] | None:
    models = _models_in(info)
    if isinstance(value, dict) and "kind" in value:
        return next((m for m in models if _kind(m) == value["kind"]), None)
    return models[0] if len(models) == 1 else None


def _fields_at(path: Sequence[str], values: Any) -> Mapping[str, FieldInfo]:
    model: type[Settings] | None = Recipe
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
        info = model.model_fields.get(part) if model else None
        model = _model_for(info, values) if info else None
    return model.model_fields if model else {}


def _kinds_at(path: Sequence[str], values: Any) -> list[str]:
    info = _fields_at(path[:-1], values).get(path[-1])
    return [kind for model in _models_in(info) if (kind := _kind(model))] if info else []


def _fill_kinds(model: type[Settings], values: dict[str, Any]) -> None:
    """Take the default variant where only its settings are given: `method: {rank: 8}` is LoRA's."""
    for name, info in model.model_fields.items():
        value = values.get(name)
        if not isinstance(value, dict):
            continue
        if "kind" not in value and isinstance(info.default, Settings):
            kind = _kind(type(info.default))
            if kind is not None:
                value["kind"] = kind
        inner = _model_for(info, value)
        if inner is not None:
            _fill_kinds(inner, value)


def _resolve_paths(
    layers: _Layers, model: type[Settings], values: dict[str, Any], prefix: str
) -> None:
    """Make paths that a file holds relative to that file's folder."""
    for name, info in model.model_fields.items():
        if name not in values:
            continue
        value, key = values[name], f"{prefix}{name}"
        rule = (info.json_schema_extra or {}) if not callable(info.json_schema_extra) else {}
        if rule.get("path"):
            values[name] = _resolved(layers, key, value, only_dotted=rule["path"] == "if-dotted")
        elif isinstance(value, dict):
            inner = _model_for(info, value)
            if inner is not None:
                _resolve_paths(layers, inner, value, f"{key}.")


def _resolved(layers: _Layers, key: str, value: Any, *, only_dotted: bool) -> Any:
    if isinstance(value, dict):
        return {
            k: _resolved(layers, f"{key}.{k}", v, only_dotted=only_dotted) for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_resolved(layers, key, item, only_dotted=only_dotted) for item in value]
    if not isinstance(value, str) or (only_dotted and not value.startswith(("./", "../"))):
        return value
    if value.startswith("hf://"):
        return value  # a place on the hub
    folder = layers.folders.get(key, Path.cwd())
    return str(folder / Path(value).expanduser())
