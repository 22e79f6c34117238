"""What the recipe's section `data` asks for, read once and resolved to files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import FilesSource, Recipe, SampleSource, refuse_unread
from tunesmith.data.samples import text_to_sql
from tunesmith.data.split import SPLITS
from tunesmith.errors import MissingError, listed
from tunesmith.store import Parent

__all__ = ["DataPlan", "plan_data", "sources"]


@dataclass(frozen=True)
class DataPlan:
    """Everything the stage will use.

    Attributes:
        source: "files" or the sample's name, for reports.
        files: split -> files in order; a split without files is held out of `train`.
        databases: name -> SQLite file.
        scripts: name -> SQL script that makes a database.
        fields: names of the prompt and the completion field, when the user gave them.
        require: field -> the value that a row must have to be kept.
        ratios: split -> share of the training rows to hold out.
        limits: split -> most rows.
        drops_overlaps: leave rows out of training that repeat held-out prompts; refused otherwise.
    """

    source: str
    seed: int
    files: Mapping[str, tuple[Path, ...]]
    limits: Mapping[str, int | None]
    databases: Mapping[str, Path]
    scripts: Mapping[str, Path]
    fields: tuple[str, str] | None = None
    system: str | None = None
    require: Mapping[str, Any] | None = None
    ratios: Mapping[str, float] | None = None
    drops_overlaps: bool = False


def plan_data(recipe: Recipe) -> DataPlan:
    """Read all that the stage will use.

    Raises:
        ConfigError: a key is set that would have no effect.
    """
    source = recipe.data.source
    match source:
        case FilesSource():
            made = _plan_files(recipe, source)
        case SampleSource():
            made = _plan_sample(recipe, source)
    refuse_unread(recipe, "data")
    return made


def sources(recipe: Recipe) -> tuple[Parent, ...]:
    """Every file that the dataset is made from, with its hash now, in the order of the recipe.

    A run of the stage is opened with these as its parents. A file's path is written as in the
    recipe.

    Raises:
        ConfigError: a key is set that would have no effect.
        MissingError: files are not there; all are named.
    """
    made = plan_data(recipe)
    row_files = [path for split in SPLITS for path in made.files[split]]
    files = list(dict.fromkeys([*row_files, *made.databases.values(), *made.scripts.values()]))
    _refuse_missing(files)
    return tuple(Parent.file(path) for path in files)


def _plan_sample(recipe: Recipe, source: SampleSource) -> DataPlan:
    return DataPlan(
        source=source.name,
        seed=recipe.seed,
        files={split: (path,) for split, path in text_to_sql.row_files().items()},
        limits=_limits(recipe),
        databases={},
        scripts=text_to_sql.scripts(),
    )


def _plan_files(recipe: Recipe, source: FilesSource) -> DataPlan:
    config = recipe.data
    named = config.fields
    files = {split: tuple(map(Path, getattr(source, split))) for split in SPLITS}
    ratios = {}
    if not files["validation"]:
        ratios["validation"] = config.validation_ratio
    if not files["test"]:
        ratios["test"] = config.test_ratio
    # What is held out by ratio cannot overlap: then `on_overlap` is not read, and refused if set.
    drops = len(ratios) < 2 and config.on_overlap == "drop_from_train"
    return DataPlan(
        source="files",
        seed=recipe.seed,
        files=files,
        limits=_limits(recipe),
        databases={name: Path(path) for name, path in config.databases.items()},
        scripts={},
        fields=(named.prompt, named.completion) if named else None,
        system=config.system,
        require=config.require,
        ratios=ratios,
        drops_overlaps=drops,
    )


def _limits(recipe: Recipe) -> dict[str, int | None]:
    return {"train": recipe.data.max_train_rows, "test": recipe.data.max_test_rows}


def _refuse_missing(files: Iterable[Path]) -> None:
    problems = [
        f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}"
        for path in files
        if not path.is_file()
    ]
    if problems:
        raise MissingError(
            f"{len(problems)} of the dataset's files cannot be read:\n{listed(problems)}",
            why="paths in a recipe are relative to the recipe's folder, others to where you are",
            fix="correct the paths under data.source and data.databases",
        )
