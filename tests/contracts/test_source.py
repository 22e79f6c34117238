"""What no single room can promise: every setting is used, tables equal unions, sizes hold."""

from __future__ import annotations

import ast
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunesmith.config import OptimizerConfig, Recipe, Settings, TrainConfig
from tunesmith.train.methods import METHODS
from tunesmith.train.objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "tunesmith"
FILES = sorted(SOURCE.rglob("*.py"))


def settings_types(model: type[Settings]) -> Iterator[type[Settings]]:
    yield model
    for info in model.model_fields.values():
        pending = [info.annotation]
        while pending:
            annotation = pending.pop()
            if isinstance(annotation, type) and issubclass(annotation, Settings):
                yield from settings_types(annotation)
            else:
                pending.extend(typing.get_args(annotation))


def kinds(annotation: object) -> set[str]:
    found: set[str] = set()
    for model in [annotation, *typing.get_args(annotation)]:
        if isinstance(model, type) and issubclass(model, Settings):
            found.add(typing.get_args(model.model_fields["kind"].annotation)[0])
    return found


HOLDERS = {
    "config",
    "recipe",
    "data",
    "evaluate",
    "export",
    "optimizer",
    "source",
    "named",
    "split",
}
"""Names of variables and attributes that hold settings; `name` of anything else is not a setting."""


def holder(node: ast.Attribute) -> str:
    """The last name before the dot: "optimizer" for `plan.optimizer.beta1`."""
    match node.value:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def test_every_setting_is_read_by_name_outside_of_config():
    read = {
        node.attr
        for file in FILES
        if "config" not in file.relative_to(SOURCE).parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and holder(node) in HOLDERS
    }
    # data/plan.py reads the splits' files in a loop over their names.
    assert "getattr(source, split)" in (SOURCE / "data" / "plan.py").read_text(encoding="utf-8")
    read |= {"train", "validation", "test"}
    unused = [
        f"{model.__name__}.{name}"
        for model in settings_types(Recipe)
        for name in model.model_fields
        if name not in read and name != "kind"  # the union's tag; tables are held against it below
    ]
    assert unused == []


def test_every_setting_documents_itself():
    bare = [
        f"{model.__name__}.{name}"
        for model in settings_types(Recipe)
        for name, info in model.model_fields.items()
        if name != "kind" and not info.description
    ]
    assert bare == []


def test_tables_have_a_row_for_each_kind_of_config_and_no_other():
    from tunesmith.train.optimizers import OPTIMIZERS

    fields = TrainConfig.model_fields
    optimizers = OptimizerConfig.model_fields["kind"].annotation
    assert set(OPTIMIZERS) == set(typing.get_args(optimizers))
    assert set(METHODS) == kinds(fields["method"].annotation)
    assert set(OBJECTIVES) == kinds(fields["objective"].annotation)
    for table in (METHODS, OBJECTIVES, OPTIMIZERS):
        for name in table:
            assert callable(table.load(name))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_files_and_functions_stay_readable(file):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 600
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= 80
    ]
    assert long == []


def test_public_names_exist():
    import importlib

    for package in ("config", "store", "telemetry", "errors", "registry"):
        module = importlib.import_module(f"tunesmith.{package}")
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_no_model_folder_may_bring_code_of_its_own():
    calls = [
        (file.name, node)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id.startswith("Auto")
    ]
    assert len(calls) >= 5
    for name, call in calls:
        said = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert said.get("trust_remote_code") == "False", (name, call.lineno)
