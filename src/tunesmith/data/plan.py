"""What the recipe's section `data` asks for, read once and resolved to files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunesmith.config import (
    DataConfig,
    FilesSource,
    MixSource,
    ModelConfig,
    RandomSplit,
    Recipe,
    SampleSource,
    TimeSplit,
    refuse_unread,
)
from tunesmith.data.card import card_facts
from tunesmith.data.check import CheckOptions
from tunesmith.data.clean.plan import CleanPlan, plan_clean
from tunesmith.data.mix import Mix, refuse_unknown
from tunesmith.data.named import once
from tunesmith.data.read import expand
from tunesmith.data.samples import load_sample
from tunesmith.data.schemas import Options, options_of
from tunesmith.data.split import SPLITS
from tunesmith.errors import MissingError, counted, listed
from tunesmith.store import Parent, sha256_of_file, sha256_of_json

__all__ = ["DataPlan", "HoldOut", "RowFile", "plan_data", "sources", "token_inputs"]

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files of a model's folder that decide what its tokens are."""


@dataclass(frozen=True)
class RowFile:
    """A file with rows, the split that it is given for, and its part of a mix (else empty)."""

    path: Path
    split: str
    part: str = ""


@dataclass(frozen=True)
class HoldOut:
    """How rows are held out of training for the splits without files.

    Attributes:
        ratios: split -> share of the training rows.
        n_rows: split -> rows; a split is in one of both.
        stratify, group, time: fields to go by.
        by_template, near_duplicates: what else keeps rows on one side.
    """

    ratios: Mapping[str, float] = field(default_factory=dict)
    n_rows: Mapping[str, int] = field(default_factory=dict)
    stratify: str | None = None
    group: str | None = None
    time: str | None = None
    by_template: bool = False
    near_duplicates: bool = False

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are held out, in the order in which they are: by time the latest first."""
        names = [name for name in SPLITS if name in self.ratios or name in self.n_rows]
        return tuple(reversed(names) if self.time else names)

    def n_wanted(self, split: str, n_rows: int) -> int:
        """Rows to hold out for a split of so many."""
        return self.n_rows.get(split) or round(self.ratios[split] * n_rows)


@dataclass(frozen=True)
class DataPlan:
    """Everything the stage will use.

    Attributes:
        source: "files", "mix" or the sample's name, for reports.
        seed: of all draws.
        files: all files with rows, those of a split in their order, training first.
        databases: name -> SQLite file.
        scripts: name -> SQL script that makes a database.
        form: what the files are; "auto" is told from their content.
        options: how rows are read: the fields and the schema that the user named, the system message.
        require: field -> the value that a row must have to be kept.
        held_out: how the splits without files get their rows.
        limits: split -> most rows.
        on_overlap: what to do with prompts that stand in two splits; None where that cannot be.
        on_near_overlap: the same for nearly equal prompts.
        overlap_words: length of the passages that may not stand in two splits; None when none are looked for.
        on_passages: what to do with them; as `on_near_overlap`.
        near_similarity: Jaccard similarity from which longer prompts are nearly equal.
        clean: rules that drop and change rows.
        check: what the checks look for.
        check_files: files that the checks read beside the rows.
        mix: how training rows are mixed.
        source_field: field that gets the name of a row's part of the mix.
        card: what the recipe says of its data, for the dataset's card.
        model: in whose tokens rows are measured; None when the recipe names none.
    """

    source: str
    seed: int
    files: tuple[RowFile, ...]
    limits: Mapping[str, int | None]
    databases: Mapping[str, Path]
    scripts: Mapping[str, Path]
    form: str = "auto"
    options: Options = field(default_factory=Options)
    require: Mapping[str, Any] = field(default_factory=dict)
    held_out: HoldOut = HoldOut()
    on_overlap: str | None = None
    on_near_overlap: str | None = None
    overlap_words: int | None = None
    on_passages: str | None = None
    near_similarity: float = 0.0
    clean: CleanPlan = field(default_factory=CleanPlan)
    check: CheckOptions = field(default_factory=CheckOptions)
    check_files: tuple[Path, ...] = ()
    mix: Mix | None = None
    source_field: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)
    model: ModelConfig | None = None

    @property
    def all_files(self) -> tuple[Path, ...]:
        """Every file that the dataset is made from, once."""
        paths = [*(file.path for file in self.files), *self.clean.against, *self.check_files]
        return tuple(dict.fromkeys([*paths, *self.databases.values(), *self.scripts.values()]))


def plan_data(recipe: Recipe) -> DataPlan:
    """Read all that the stage will use.

    Raises:
        ConfigError: a key is set that would have no effect, or a file stands twice in one split.
        MissingError: a folder or pattern stands for no file.
    """
    source = recipe.data.source
    match source:
        case FilesSource():
            made = _plan_files(recipe, source)
        case MixSource():
            made = _plan_files(recipe, source)
        case SampleSource():
            made = _plan_sample(recipe, source)
    refuse_unread(recipe, "data")
    return replace(made, model=recipe.model if token_inputs(recipe) else None)


def token_inputs(recipe: Recipe) -> dict[str, Any]:
    """What the lengths in tokens of a dataset depend on beside its files; nothing when the recipe names no model.

    The same whether the model is on this disk or not: a dataset that was made before a download stays what it is.
    """
    model = recipe.model
    if "base" not in model.model_fields_set:
        return {}
    found = model.model_dump(mode="json")
    folder = Path(model.base).expanduser()
    if folder.is_dir():
        # The folder's name decides nothing, what is in it does.
        # In a sealed merge or export the model lies one folder below.
        places = [folder, folder / "model", folder / "merged"]
        names = [place / name for place in places for name in TOKENIZER_FILES]
        files = {path.name: sha256_of_file(path) for path in names if path.is_file()}
        found["base"] = sha256_of_json(files)
    elif folder.is_file():
        found["base"] = sha256_of_file(folder)
    elif folder.is_absolute():
        found["base"] = folder.name
    limits = {
        "max_row_tokens": recipe.train.max_row_tokens,
        "on_long_row": recipe.train.on_long_row,
    }
    return {"model": found, **limits}


def sources(recipe: Recipe) -> tuple[Parent, ...]:
    """Every file that the dataset is made from, with its hash now, in the order of the recipe.

    A run of the stage is opened with these as its parents. A file's path is written as in the
    recipe.

    Raises:
        ConfigError: a key is set that would have no effect.
        MissingError: files are not there; all are named.
    """
    files = plan_data(recipe).all_files
    _refuse_missing(files)
    return tuple(Parent.file(path) for path in files)


def _plan_sample(recipe: Recipe, source: SampleSource) -> DataPlan:
    config = recipe.data
    sample = load_sample(source.name)
    row_files = sample.row_files()
    # The checks read `databases`, which the sample has no use for: set, it must be refused.
    is_set = "databases" in config.model_fields_set
    return DataPlan(
        source=source.name,
        seed=recipe.seed,
        files=tuple(RowFile(row_files[split], split) for split in SPLITS),
        limits=_limits(recipe),
        databases={},
        scripts=sample.scripts(),
        on_overlap="refuse",
        on_near_overlap=config.on_near_overlap,
        **_passages(config),
        near_similarity=config.near_similarity,
        clean=_clean(config),
        card=card_facts(recipe),
        check=CheckOptions() if is_set else _check(recipe),
        check_files=_check_files(config),
    )


def _plan_files(recipe: Recipe, source: FilesSource | MixSource) -> DataPlan:
    config = recipe.data
    held_out = _held_out(recipe, source)
    # What is held out by prompts cannot overlap: then `on_overlap` is not read, and refused if set.
    may_overlap = len(held_out.splits) < 2 or held_out.time is not None
    may_be_near = may_overlap or not held_out.near_duplicates
    return DataPlan(
        source=source.kind,
        seed=recipe.seed,
        files=tuple(_row_files(source)),
        limits=_limits(recipe),
        databases={name: Path(path) for name, path in config.databases.items()},
        scripts={},
        form=config.form,
        options=options_of(config),
        require=config.require,
        held_out=held_out,
        on_overlap=config.on_overlap if may_overlap else None,
        on_near_overlap=config.on_near_overlap if may_be_near else None,
        **_passages(config),
        near_similarity=config.near_similarity,
        clean=_clean(config),
        card=card_facts(recipe),
        check=_check(recipe),
        check_files=_check_files(config),
        mix=_mix(source) if isinstance(source, MixSource) else None,
        source_field=source.source_field if isinstance(source, MixSource) else "",
    )


def _row_files(source: FilesSource | MixSource) -> Iterable[RowFile]:
    """All files with rows: training files first, then those of the other splits."""
    if isinstance(source, MixSource):
        for part, paths in source.parts.items():
            found = once(expand(paths, split="train"), f"data.source.parts.{part}")
            yield from (RowFile(path, "train", part) for path in found)
    for split in SPLITS[isinstance(source, MixSource) :]:
        paths = getattr(source, split)
        found = once(expand(paths, split=split), f"data.source.{split}")
        yield from (RowFile(path, split) for path in found)


def _held_out(recipe: Recipe, source: FilesSource | MixSource) -> HoldOut:
    config = recipe.data
    ratios: dict[str, float] = {}
    n_rows: dict[str, int] = {}
    # A number of rows stands in place of the ratio, which is then not read, and refused if set.
    if not source.validation:
        if config.validation_rows is None:
            ratios["validation"] = config.validation_ratio
        else:
            n_rows["validation"] = config.validation_rows
    if not source.test:
        if config.test_rows is None:
            ratios["test"] = config.test_ratio
        else:
            n_rows["test"] = config.test_rows
    if not ratios and not n_rows:
        return HoldOut()
    match config.split:
        case RandomSplit() as split:
            return HoldOut(
                ratios,
                n_rows,
                stratify=split.stratify,
                group=split.group,
                by_template=split.by_template,
                near_duplicates=split.near_duplicates,
            )
        case TimeSplit() as split:
            return HoldOut(ratios, n_rows, time=split.field)


def _mix(source: MixSource) -> Mix:
    refuse_unknown(source.parts, source.weights)
    weights = {name: source.weights.get(name, 1.0) for name in source.parts}
    # Without a number of rows none is repeated: the limit is not read, and refused if set.
    max_repeats = 1 if source.train_rows is None else source.max_repeats
    return Mix(weights, source.train_rows, max_repeats)


def _limits(recipe: Recipe) -> dict[str, int | None]:
    config = recipe.data
    mixes = isinstance(config.source, MixSource)
    # A mix has its own number of training rows.
    train = None if mixes else config.max_train_rows
    return {"train": train, "test": config.max_test_rows}


def _clean(config: DataConfig) -> CleanPlan:
    clean = plan_clean(config.clean)
    return replace(clean, against=tuple(expand(clean.against)))


def _passages(config: DataConfig) -> dict[str, Any]:
    """Whether passages are looked for across splits, and what is done about them."""
    words = config.overlap_words
    return {"overlap_words": words, "on_passages": config.on_near_overlap} if words else {}


def _check(recipe: Recipe) -> CheckOptions:
    return CheckOptions.of(recipe)


def _check_files(config: DataConfig) -> tuple[Path, ...]:
    """Other files that decide what the checks find: with other content they make another dataset."""
    schema = config.check.json_schema if config.check.domain in ("auto", "json") else None
    return () if schema is None else (Path(schema),)


def _refuse_missing(files: Sequence[Path]) -> None:
    problems = [
        f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}"
        for path in files
        if not path.is_file()
    ]
    if problems:
        raise MissingError(
            f"{counted(len(problems), 'file')} of the dataset cannot be read:\n{listed(problems)}",
            why="paths in a recipe are relative to the recipe's folder, others to where you are",
            fix="correct the paths under data.source, data.databases, data.clean and data.check",
        )
