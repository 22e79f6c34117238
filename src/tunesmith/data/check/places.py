"""What a recipe, a sealed dataset or files say of what is checked, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tunesmith.config import Recipe, refuse_unread
from tunesmith.data.check.files import CheckResult, Wanted, check_files
from tunesmith.data.check.finding import Finding
from tunesmith.data.check.options import CheckOptions
from tunesmith.data.named import once
from tunesmith.data.plan import plan_data
from tunesmith.data.read import expand
from tunesmith.data.schemas import options_of
from tunesmith.errors import ConfigError, DataError
from tunesmith.store import MANIFEST, Artifact

__all__ = ["check_places", "of_files", "of_recipe", "of_sealed", "resolve"]


def check_places(
    *places: str | Path,
    recipe: Recipe | None = None,
    with_model: bool = False,
    each: Callable[[Finding], None] | None = None,
    processes: int | None = None,
) -> CheckResult:
    """Check files, folders, `-` for stdin or a sealed dataset; without a place a recipe's source.

    Args:
        recipe: its `data.check`, `data.fields` and the like hold; the defaults when None.
        with_model: check lengths and masks with the tokenizer of the recipe's model too.
        each: gets every finding as it is found.
        processes: see `check_files`.

    Raises:
        As `resolve` and `check_files`.
    """
    asked = recipe or Recipe()
    wanted, options = resolve(asked, tuple(map(str, places)))
    model = asked.model if with_model else None
    return check_files(replace(wanted, model=model), options, each=each, processes=processes)


def resolve(
    recipe: Recipe, places: tuple[str, ...], name: str = "recipe"
) -> tuple[Wanted, CheckOptions]:
    """What is checked, and what is looked for.

    Args:
        recipe: its settings.
        places: files, folders, `-`, or the folder of one sealed dataset; none for the recipe's source.
        name: of the recipe, in findings about all of its rows.

    Raises:
        ConfigError: a sealed dataset beside other places, or a key that has no effect.
        MissingError: a place is not there.
        ArtifactError: a sealed dataset is damaged.
    """
    if not places:
        return of_recipe(recipe, name)
    if not any((Path(place) / MANIFEST).is_file() for place in places):
        return of_files(recipe, places)
    if len(places) > 1:
        raise ConfigError(
            "a sealed dataset is checked alone",
            why=f"{len(places)} places were named: {', '.join(places)}",
            fix="run the command once for each",
        )
    return of_sealed(recipe, Path(places[0]))


def of_recipe(recipe: Recipe, name: str) -> tuple[Wanted, CheckOptions]:
    """The rows of a recipe's source, before anything is split, cleaned or mixed.

    Raises:
        ConfigError: a key is set that would have no effect.
    """
    options = CheckOptions.of(recipe, name)
    plan = plan_data(recipe)
    files = tuple(dict.fromkeys(str(file.path) for file in plan.files))
    require = tuple((plan.require or {}).items())
    wanted = Wanted(files, plan.options, require, form=plan.form)
    return wanted, options.on({**plan.databases, **plan.scripts})


def of_sealed(recipe: Recipe, folder: Path) -> tuple[Wanted, CheckOptions]:
    """The rows of all splits of a sealed dataset, with its databases.

    Raises:
        MissingError, ArtifactError: the folder is no sealed dataset, or damaged.
    """
    artifact = Artifact.open(folder, "data")
    names = [f"{split}.jsonl" for split in ("train", "validation", "test")]
    files = [str(artifact.path(name)) for name in names if name in artifact.files]
    if not files:
        raise DataError(f"{folder} has no rows", fix="name the folder of a finished data stage")
    databases = {
        Path(name).stem: artifact.path(name)
        for name in artifact.files
        if name.startswith("databases/")
    }
    return Wanted(tuple(files)), CheckOptions.of(recipe, str(folder)).on(databases)


def of_files(recipe: Recipe, places: tuple[str, ...]) -> tuple[Wanted, CheckOptions]:
    """Files and folders; the recipe has only what was set beside them.

    Raises:
        MissingError: a place is not there.
        ConfigError: a file is named twice, or a key is set that has no effect on a check.
    """
    files = [str(path) for path in once([path for place in places for path in _files_of(place)])]
    name = files[0] if len(files) == 1 else "dataset"
    options = CheckOptions.of(recipe, "stdin" if name == "-" else name)
    data = recipe.data
    require = tuple(data.require.items())
    wanted = Wanted(tuple(files), options_of(data), require, form=data.form)
    refuse_unread(recipe, "data")
    return wanted, options


def _files_of(place: str) -> list[Path]:
    return [Path("-")] if place == "-" else list(expand([place]))
