"""`tunesmith check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.screen import flat, print_json, print_rich, size, table, where

if TYPE_CHECKING:
    from rich.text import Text

    from tunesmith.export.check import CheckResult, Finding

__all__ = ["check"]

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_LONG_BYTES = 200_000_000
_FEW, _MANY = 3, 5
"""Findings that are alike are shown one by one up to the second number; of more, the first number is named."""


@click.command
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--base",
    metavar="MODEL",
    help="An adapter's base model, to compare shapes with: a folder, or `embedded`. Found by itself "
    "where the adapter names one that is on this disk.",
)
@click.option(
    "--values/--no-values",
    default=None,
    help="Look at every weight for numbers that are not finite, and tensors of zeros. Done up to 1 "
    "GiB of weights, unless said otherwise.",
)
@click.option(
    "--hashes/--no-hashes",
    default=True,
    help="Hold the files of a sealed artifact against their SHA-256. Done unless said otherwise.",
)
@click.option(
    "--public-key",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Who must have signed the folder, and every file in it as it is now; else it is an error.",
)
@click.option("--strict", is_flag=True, help="A warning ends with a failure, too.")
@json_option
def check(
    model: Path,
    base: str | None,
    values: bool | None,
    hashes: bool,
    public_key: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Everything that is wrong with a model, with remedies.

    MODEL is a folder with safetensors, an adapter in PEFT's format, a GGUF or ONNX file, or a
    sealed run, bundle or merge. Nothing in it is executed, and every length in it is compared with
    its file's before a parser of another program reads it. Findings that are alike are told
    together; --json has each.

    Ends with 4 on an error, with 6 when a sealed file was changed or the signature is not
    right.

    \b
    Examples:
      tunesmith check runs/demo/export-0123456789ab
      tunesmith check runs/demo/export-0123456789ab --public-key models.pem.pub
      tunesmith check model-q4_k_m.gguf --values
      tunesmith check downloads/some-adapter --base embedded --strict
    """
    from tunesmith.export.check import CheckOptions, bytes_to_read, check_model

    key = None if public_key is None else public_key.expanduser()
    options = CheckOptions(values=values, hashes=hashes, base=_base(base), public_key=key)
    n_bytes, to_read = bytes_to_read(model, options) if model.exists() else (0, 0)
    with _bar(n_bytes, to_read) as advance:
        result = check_model(model, replace(options, advance=advance))
    if as_json:
        print_json(result.as_dict())
    else:
        _print(result, strict=strict)
    click.get_current_context().exit(result.exit_code(strict=strict))


def _base(asked: str | None) -> Path | None:
    """The folder of an adapter's base.

    Raises:
        MissingError: it is not on this disk.
    """
    if asked is None:
        return None
    from tunesmith.config import ModelConfig
    from tunesmith.errors import MissingError
    from tunesmith.models.load import base_on_disk

    try:
        base = base_on_disk(ModelConfig(base=asked))
    except MissingError as error:
        fix = "name a folder, a .gguf file, or `embedded` by --base"
        raise MissingError(error.what, why=error.why, fix=fix) from error
    if base is None:
        raise MissingError(
            f"the base model {asked!r} is not on this disk as safetensors",
            fix="name a folder, or train or export once with it",
        )
    return base.dir


@contextmanager
def _bar(n_bytes: int, to_read: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr when there is much to read: up to the model's size, however often a byte is read."""
    from tunesmith.telemetry import progress

    if to_read < _LONG_BYTES:
        yield lambda _n_bytes: None
        return
    read = 0

    def advance(more: int) -> None:
        nonlocal read
        read += more
        bar.advance(n_bytes * min(read, to_read) // to_read // 1_000_000 - bar.done)

    with progress("checking", n_bytes // 1_000_000, unit="MB") as bar:
        yield advance


def _print(result: CheckResult, *, strict: bool) -> None:
    from rich.markup import escape
    from rich.text import Text

    from tunesmith.telemetry import visible

    for name, facts in result.facts.items():
        rows = [(key, _fact(key, value)) for key, value in flat(facts)]
        table((escape(visible(name)), ""), rows)
    if result.findings:
        heads = ("", "check", "where", "what, why, and what mends it")
        table(heads, [_row(alike) for alike in _alike(result.findings)])
    counts = ", ".join(
        f"{result.count(severity)} {severity}{'' if result.count(severity) == 1 else 's'}"
        for severity in _STYLES
    )
    failed = result.exit_code(strict=strict) != 0
    word, style = ("not sound", "bold red") if failed else ("sound", "bold green")
    kinds = ", ".join(result.kinds) or "nothing that can be loaded"
    head = f"{visible(where(result.place))} ({visible(kinds)}): {counts}: "
    print_rich(Text.assemble(head, (word, style)))


def _alike(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings of the same kind, reason and remedy together, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.severity, one.check, one.why, one.fix), []).append(one)
    return [
        part
        for group in groups.values()
        for part in ([group] if len(group) > _MANY else [[one] for one in group])
    ]


def _row(alike: Sequence[Finding]) -> tuple[Any, ...]:
    from rich.text import Text

    from tunesmith.telemetry import visible

    one = alike[0]
    place, text = (_lines(told) for told in _told(alike))
    if one.why:
        text.append(f"\nwhy: {visible(one.why)}", "dim")
    if one.fix:
        text.append(f"\nfix: {visible(one.fix)}", "green")
    return Text(one.severity, style=_STYLES[one.severity]), one.check, place, text


def _lines(told: str) -> Text:
    from rich.text import Text

    from tunesmith.telemetry import visible

    return Text("\n").join(Text(visible(line)) for line in told.split("\n"))


def _told(alike: Sequence[Finding]) -> tuple[str, str]:
    """Place and fact of findings that are alike: the first few, and how many more."""
    one = alike[0]
    if len(alike) == 1:
        return (one.file if not one.where else f"{one.file}\n{one.where}"), one.what
    real = [found for found in alike if not found.stands_for_more] or list(alike)
    more = f"and {len(alike) - _FEW}{' more' if len(real) == len(alike) else ' or more'}"
    files = list(dict.fromkeys(found.file for found in real))
    in_one = len(files) == 1
    names = [f.where if in_one else f"{f.file} {f.where}".rstrip() for f in real]
    if len({found.what for found in real}) == 1:
        shown = [*filter(None, names[:_FEW]), more]
        return "\n".join([files[0], *shown] if in_one else shown), one.what
    lines = [f"{name}: {f.what}" if name else f.what for name, f in zip(names, real, strict=True)]
    return (files[0] if in_one else f"{len(files)} files"), "\n".join([*lines[:_FEW], more])


def _fact(key: str, value: Any) -> str:
    if key == "bytes" and isinstance(value, int):
        return size(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
