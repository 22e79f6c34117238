"""Arguments and options that several commands share."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tunesmith.config import Recipe

__all__ = [
    "Asked",
    "complete_form",
    "fit_option",
    "json_option",
    "processes_option",
    "recipe_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class Asked:
    """The recipe files and `--set` values of a command line."""

    files: tuple[str, ...]
    sets: tuple[str, ...]

    def load(self, section: str = "") -> Recipe:
        """The recipe, checked; keys of `--set` may leave out `section`."""
        from tunesmith.config import load_recipe

        return load_recipe(self.files, self.sets, section=section)

    def to_fit(self, fit: bool) -> Asked:
        """With `--fit` as the setting that it is short for."""
        return Asked(self.files, (*self.sets, "train.fit=true")) if fit else self

    def spelled(self, section: str = "") -> str:
        """To be used in another command, which need not know `section`: its keys are written in full."""
        from tunesmith.config import full_key

        pairs = [full_key(pair, section) for pair in self.sets]
        return shlex.join([*self.files, *(word for pair in pairs for word in ("--set", pair))])


def complete_form(_ctx: click.Context, _option: click.Parameter, typed: str) -> list[str]:
    """Names of forms, for the shell."""
    from tunesmith.config import FORMS

    return [form for form in FORMS if form.startswith(typed)]


def recipe_options(*, required: bool = True) -> Callable[[Command], Command]:
    """RECIPE... and --set, handed to the command as one `asked: Asked`."""

    def decorate(command: Command) -> Command:
        @click.argument("recipe", nargs=-1, required=required)
        @click.option(
            "--set",
            "sets",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change one setting, such as --set train.method.rank=32. May be repeated.",
        )
        @wraps(command)
        def parse(recipe: tuple[str, ...], sets: tuple[str, ...], **others: Any) -> Any:
            return command(asked=Asked(recipe, sets), **others)

        return parse  # type: ignore[return-value]

    return decorate


fit_option = click.option(
    "--fit",
    is_flag=True,
    help="When memory is short, lower settings one by one (micro batch, checkpointing, QLoRA, row "
    "length, micro batch again, rank, 8-bit optimizer where bitsandbytes is installed) until a step "
    "fits, by the memory formula and then as measured by rehearsing it; each is printed.",
)

processes_option = click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Worker processes: one a core by default, none with 1. The result is the same.",
)

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the result, or the error, as one JSON document on stdout.",
)
