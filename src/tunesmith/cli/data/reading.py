"""`--field`, `--from` and `--form`: how files are read, the same for every command that reads rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tunesmith.data.schemas import Options

__all__ = ["AUTO", "Reading", "complete_schema", "reading_options"]

AUTO = "auto"
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Reading:
    """How the files are read, where their content does not tell it.

    Attributes:
        mapping: what a field is for -> its name in the files.
        schema: of the rows; None when it is told by content.
        form: of the files; "auto" when it is told by content.
    """

    mapping: dict[str, str] = field(default_factory=dict)
    schema: str | None = None
    form: str = AUTO

    @property
    def options(self) -> Options:
        """As the readers of rows take it, beside the form."""
        from tunesmith.data.schemas import Options

        return Options(self.mapping, schema=self.schema)

    @property
    def settings(self) -> dict[str, Any]:
        """As keys of a recipe's section `data`."""
        found: dict[str, Any] = {"fields": self.mapping} if self.mapping else {}
        found |= {"rows": self.schema} if self.schema else {}
        return found | ({"form": self.form} if self.form != AUTO else {})

    @property
    def sets(self) -> tuple[str, ...]:
        """As values of `--set`."""
        found = [f"data.fields.{use}={json.dumps(name)}" for use, name in self.mapping.items()]
        found += [f"data.rows={self.schema}"] if self.schema else []
        found += [f"data.form={self.form}"] if self.form != AUTO else []
        return tuple(found)

    def refuse_sealed(self, *places: str | Path) -> None:
        """Stop when there is nothing to say of how rows are read.

        Raises:
            UsageError: every place is a sealed dataset.
        """
        from tunesmith.store import MANIFEST

        if self.settings and places and all((Path(place) / MANIFEST).is_file() for place in places):
            raise click.UsageError(
                f"{places[0]} is a sealed dataset, whose rows are read as they are: leave --field, "
                "--from and --form out"
            )


def reading_options(form: str = "--form") -> Callable[[Command], Command]:
    """--field, --from and --form, handed to the command as one `reading: Reading`.

    Args:
        form: the option's name, where --form says what is written.
    """

    def decorate(command: Command) -> Command:
        @click.option(
            "--field",
            "mapping",
            multiple=True,
            metavar="USE=NAME",
            callback=_mapping,
            help="A field's name in the files, such as prompt=question. May be repeated.",
        )
        @click.option(
            "--from",
            "schema_from",
            metavar="SCHEMA",
            callback=_schema,
            shell_complete=complete_schema,
            help="What the rows are, such as chat or preference; told by content. "
            "`data convert --help` lists all.",
        )
        @click.option(
            form,
            "form_from",
            metavar="FORM",
            default=AUTO,
            callback=_form,
            shell_complete=_complete_form,
            help="What the files are, such as csv or parquet; told by content.",
        )
        @wraps(command)
        def parse(
            mapping: dict[str, str], schema_from: str | None, form_from: str, **others: Any
        ) -> Any:
            return command(reading=Reading(mapping, schema_from, form_from), **others)

        return parse  # type: ignore[return-value]

    return decorate


def _mapping(_ctx: Any, _option: Any, pairs: tuple[str, ...]) -> dict[str, str]:
    """USE=NAME pairs as a mapping."""
    if not pairs:
        return {}
    from tunesmith.data.schemas import ALIASES
    from tunesmith.registry import nearest

    found: dict[str, str] = {}
    for pair in pairs:
        use, equals, name = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not USE=NAME, such as prompt=question")
        if use not in ALIASES:
            known = ", ".join(ALIASES)
            raise click.BadParameter(f"{use!r}{nearest(use, ALIASES)} is not one of {known}")
        if found.get(use, name) != name:
            raise click.BadParameter(f"{use} is given two names, {found[use]!r} and {name!r}")
        found[use] = name
    return found


def _schema(_ctx: Any, _option: Any, name: str | None) -> str | None:
    if name is not None:
        from tunesmith.data.schemas import SCHEMAS

        _known(name, SCHEMAS)
    return name


def complete_schema(_ctx: Any, _option: Any, begin: str) -> list[str]:
    """Names of schemas, for shells."""
    from tunesmith.data.schemas import SCHEMAS

    return [name for name in SCHEMAS if name.startswith(begin)]


def _complete_form(_ctx: Any, _option: Any, begin: str) -> list[str]:
    from tunesmith.data.read import FORMS

    return [name for name in FORMS if name.startswith(begin)]


def _form(_ctx: Any, _option: Any, name: str) -> str:
    if name != AUTO:
        from tunesmith.data.read import FORMS

        _known(name, FORMS)
    return name


def _known(name: str, table: Any) -> None:
    from tunesmith.registry import nearest

    if name not in table:
        raise click.BadParameter(f"{name!r}{nearest(name, table)} is not one of {', '.join(table)}")
