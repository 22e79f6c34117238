"""What a check is told to look for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunesmith.config import Recipe
from tunesmith.data.check.finding import CHECKS
from tunesmith.data.check.language import CODES
from tunesmith.data.json_schema import Schema, read_schema
from tunesmith.errors import ConfigError
from tunesmith.registry import nearest

__all__ = ["RED_ROWS", "CheckOptions"]

RED_ROWS = 100
"""Below so many rows a dataset teaches a form at best: red."""


@dataclass(frozen=True)
class CheckOptions:
    """What a check is told to look for; picklable, so that chunks can be checked side by side.

    Attributes:
        name: of the dataset, in findings about all of it.
        domain: what the answers are: `sql`, `python`, `json`, `none`, or `auto`: each row is told by
            its own answer, unless `domains` knows better.
        domains: task ("" where rows have none) -> domain, as told from the first rows by
            `tunesmith.data.check.domains.tell`.
        dialect: of SQL: a name of sqlglot's, or `auto`.
        databases: name -> SQLite file on which queries are run.
        json_schema: what JSON answers must keep to.
        allow: checks whose findings are left out.
        languages: codes of languages that are wanted; the main language when there are none.
        min_rows: rows that a task of generation wants.
        min_class_rows: rows that each class wants.
        max_row_tokens: longest row that training takes.
        on_long_row: what training does with longer ones.
        token_rows: about how many rows are measured in tokens.
        token_share: share of the rows that are measured, drawn by their content; see `drawn_of`.
    """

    name: str = "dataset"
    domain: str = "auto"
    domains: Mapping[str, str] = field(default_factory=dict)
    dialect: str = "auto"
    databases: Mapping[str, Path] = field(default_factory=dict)
    json_schema: Schema | None = None
    allow: frozenset[str] = frozenset()
    languages: tuple[str, ...] = ()
    min_rows: int = 1_000
    min_class_rows: int = 100
    max_row_tokens: int = 2_048
    on_long_row: str = "refuse"
    token_rows: int = 20_000
    token_share: float = 1.0

    @classmethod
    def of(cls, recipe: Recipe, name: str = "dataset") -> CheckOptions:
        """What a recipe asks for, in `data.check`, `data.databases` and `train`.

        Raises:
            ConfigError: a check or language that is not known; the JSON schema cannot be read.
            MissingError: there is no JSON schema.
        """
        config = recipe.data.check
        _refuse_unknown("data.check.allow", "check", config.allow, CHECKS)
        _refuse_unknown("data.check.languages", "language", config.languages, CODES[1:])
        databases = {name: Path(path) for name, path in recipe.data.databases.items()}
        # What the named domain has no use for is not read, and refused if set.
        reads_sql, reads_json = (config.domain in ("auto", name) for name in ("sql", "json"))
        file = config.json_schema if reads_json else None
        fix = "correct data.check.json_schema"
        return cls(
            name=name,
            domain=config.domain,
            dialect=config.sql_dialect if reads_sql else "auto",
            databases=databases,
            json_schema=None if file is None else read_schema(Path(file), fix),
            allow=frozenset(config.allow),
            languages=tuple(config.languages),
            min_rows=config.min_rows,
            min_class_rows=config.min_class_rows,
            max_row_tokens=recipe.train.max_row_tokens,
            on_long_row=recipe.train.on_long_row,
            token_rows=config.token_rows,
        )

    def told(self, domains: Mapping[str, str]) -> CheckOptions:
        """The same, with the domain of each task; a domain that was asked for stays."""
        return self if self.domain != "auto" else replace(self, domains=dict(domains))

    def drawn_of(self, n_rows: int) -> CheckOptions:
        """The same, for a dataset of about so many rows: so many are measured in tokens as are wanted."""
        return replace(self, token_share=min(1.0, self.token_rows / max(n_rows, 1)))

    def on(self, databases: Mapping[str, Path]) -> CheckOptions:
        """The same, with more databases."""
        return replace(self, databases={**self.databases, **databases})


def _refuse_unknown(key: str, kind: str, names: tuple[str, ...], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{key}: no {kind} is called {name!r}{nearest(name, known)}",
                fix=f"use some of: {', '.join(known)}",
            )
