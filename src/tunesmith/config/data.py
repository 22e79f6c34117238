"""Where the examples come from and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict

from tunesmith.config.base import Settings

__all__ = ["DataConfig", "FieldMapping", "FilesSource", "SampleSource"]

JsonScalar = bool | int | float | str | None


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Paths = Annotated[
    tuple[str, ...],
    Strict(False),
    BeforeValidator(_one_or_many, json_schema_input_type=str | tuple[str, ...]),
]
"""Files: a list of them, or a single one."""


class SampleSource(Settings):
    """A dataset that ships with tunesmith."""

    kind: Literal["sample"] = "sample"
    name: Literal["text-to-sql"] = "text-to-sql"
    """`text-to-sql`: questions about several small databases, each with a query that runs."""


class FilesSource(Settings):
    """The user's own JSONL or JSON files."""

    kind: Literal["files"]
    train: Paths = Field(min_length=1, json_schema_extra={"path": "always"})
    """Files with the training rows; relative to the recipe that names them."""
    validation: Paths = Field((), json_schema_extra={"path": "always"})
    """Files with validation rows. Without them, `validation_ratio` of the training rows is held out."""
    test: Paths = Field((), json_schema_extra={"path": "always"})
    """Files with test rows. Without them, `test_ratio` of the training rows is held out."""


class FieldMapping(Settings):
    """Names of the fields in files that are neither chat, instruction nor prompt/completion."""

    prompt: str
    """Field that holds the user's message."""
    completion: str
    """Field that holds the answer to learn."""


class DataConfig(Settings):
    """Raw files to a sealed dataset."""

    source: Annotated[SampleSource | FilesSource, Field(discriminator="kind")] = SampleSource()
    """The sample dataset, or files of your own."""
    fields: FieldMapping | None = None
    """Set it when the rows' fields have other names; detected from the content otherwise."""
    system: str | None = Field(None, min_length=1)
    """System message for rows that have none. Every row then pays for its tokens."""
    require: dict[str, JsonScalar] = Field(default_factory=dict)
    """Keep only rows whose field has this value, such as `{executes: true}`; the others are counted."""
    databases: dict[str, str] = Field(default_factory=dict, json_schema_extra={"path": "always"})
    """Name -> SQLite file, for evaluation by execution. A row picks one by its field `database`;
    with a single database rows need no such field."""
    validation_ratio: float = Field(0.1, gt=0, lt=0.5)
    """Share of the training rows held out for validation when no validation file is given."""
    test_ratio: float = Field(0.1, gt=0, lt=0.5)
    """Share of the training rows held out for the test when no test file is given."""
    on_overlap: Literal["refuse", "drop_from_train"] = "refuse"
    """What to do when a prompt of the validation or test rows also occurs in the training rows, or one of the
    test rows in the validation rows, which `drop_from_train` drops as well."""
    max_train_rows: int | None = Field(None, ge=1)
    """Keep this many training rows, drawn with the recipe's seed; all when not set."""
    max_test_rows: int | None = Field(None, ge=1)
    """Keep this many test rows, drawn with the recipe's seed; all when not set."""
