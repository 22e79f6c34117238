"""Datasets from Python, in a folder of the caller's choice: from a recipe, from files, from a mix of files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config import Recipe, recipe_from
from tunesmith.data.plan import sources, token_inputs
from tunesmith.data.stage import DataResult, run
from tunesmith.errors import ConfigError, DataError
from tunesmith.store import Run, by_content, storage_errors

__all__ = ["build", "mix_files", "split_files"]

_CLAIM = ("run.json", ".lock")


def build(
    recipe: Recipe, place: Path | str, *, resume: bool = False, processes: int | None = None
) -> DataResult:
    """Read, check, clean, split and seal a recipe's rows.

    Args:
        recipe: its sections `data` and `seed` are read; and where it names a model, `model` and how long rows may be.
        place: a folder that is not there yet, or empty.
        resume: go on with an unfinished build of the same inputs.
        processes: worker processes; None for one a core where there is much to do. The result is the same.

    Raises:
        UsedDirectoryError: the folder holds something already.
        ConfigError, DataError, MissingError, StorageError, InterruptedRun: as `tunesmith.data.run`.
    """
    folder = Path(place)
    parents = sources(recipe)
    section = by_content(recipe.model_dump(mode="json")["data"], parents)
    inputs = {"seed": recipe.seed, "data": section} | token_inputs(recipe)
    with storage_errors(folder):
        was_there = folder.is_dir()
    with Run.open(folder, "data", inputs=inputs, parents=parents, resume=resume) as at:
        try:
            return run(recipe, at, processes=processes)
        except (DataError, ConfigError):
            # What is mended is another input, which could not use this folder.
            if all(path.is_dir() or path.name in _CLAIM for path in folder.rglob("*")):
                _empty(folder)
                if not was_there:
                    folder.rmdir()
            raise


def _empty(folder: Path) -> None:
    """Remove what a run claimed its folder by; the folder itself may be the user's, or a disk of its own."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def split_files(
    files: Sequence[Path | str], place: Path | str, *, seed: int = 0, **settings: Any
) -> DataResult:
    """Files to train, validation and test.

    Args:
        files: files, folders or patterns with the rows.
        place: folder of the sealed dataset, as in `build`.
        seed: of the draw.
        settings: keys of the section `data`, such as `test_rows=500` or `split={"group": "user"}`.

    Raises:
        As `build`.
    """
    source = {"kind": "files", "train": [str(file) for file in files]}
    return build(recipe_from({"seed": seed, "data": {"source": source, **settings}}), place)


def mix_files(
    parts: Mapping[str, Sequence[Path | str]],
    place: Path | str,
    *,
    weights: Mapping[str, float] | None = None,
    train_rows: int | None = None,
    seed: int = 0,
    **settings: Any,
) -> DataResult:
    """A weighted mix of several sets of files, with test and validation rows held out of all of them first.

    Args:
        parts: name -> its files.
        place: folder of the sealed dataset, as in `build`.
        weights: name -> share of the training rows, as any positive numbers; 1 where not given.
        train_rows: training rows; None for as many as need no row twice.
        seed: of the draws.
        settings: keys of the section `data`, as in `split_files`.

    Raises:
        As `build`.
    """
    source: dict[str, Any] = {
        "kind": "mix",
        "parts": {name: [str(file) for file in files] for name, files in parts.items()},
        "weights": dict(weights or {}),
    }
    if train_rows is not None:
        source["train_rows"] = train_rows
    return build(recipe_from({"seed": seed, "data": {"source": source, **settings}}), place)
