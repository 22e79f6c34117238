"""`tunesmith check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.screen import flat, print_json, print_rich, size, table, where

if TYPE_CHECKING:
    from tunesmith.export.check import CheckResult, Finding

__all__ = ["check"]

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_LONG_BYTES = 200_000_000


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
    its file's before a parser of another program reads it.

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
    n_bytes = bytes_to_read(model, options) if model.exists() else 0
    with _bar(n_bytes) as advance:
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

    base = base_on_disk(ModelConfig(base=asked))
    if base is None:
        raise MissingError(
            f"the base model {asked!r} is not on this disk as safetensors",
            fix="name a folder, or train or export once with it",
        )
    return base.dir


@contextmanager
def _bar(n_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr when there is much to read."""
    from tunesmith.telemetry import progress

    if n_bytes < _LONG_BYTES:
        yield lambda _n_bytes: None
        return
    with progress("checking", n_bytes // 1_000, unit="kB") as bar:
        yield lambda read: bar.advance(read // 1_000)


def _print(result: CheckResult, *, strict: bool) -> None:
    from rich.markup import escape
    from rich.text import Text

    from tunesmith.telemetry import visible

    for name, facts in result.facts.items():
        rows = [(key, _fact(key, value)) for key, value in flat(facts)]
        table((escape(visible(name)), ""), rows)
    if result.findings:
        heads = ("", "check", "where", "what, why, and what mends it")
        table(heads, [_row(one) for one in result.findings])
    counts = ", ".join(
        f"{result.count(severity)} {severity}{'' if result.count(severity) == 1 else 's'}"
        for severity in _STYLES
    )
    failed = result.exit_code(strict=strict) != 0
    word, style = ("not sound", "bold red") if failed else ("sound", "bold green")
    kinds = ", ".join(result.kinds) or "nothing that can be loaded"
    head = f"{visible(where(result.place))} ({visible(kinds)}): {counts}: "
    print_rich(Text.assemble(head, (word, style)))


def _row(one: Finding) -> tuple[Any, ...]:
    from rich.text import Text

    from tunesmith.telemetry import visible

    place = one.file if not one.where else f"{one.file}\n{one.where}"
    text = Text(visible(one.what))
    if one.why:
        text.append(f"\nwhy: {visible(one.why)}", "dim")
    if one.fix:
        text.append(f"\nfix: {visible(one.fix)}", "green")
    places = Text("\n").join(Text(visible(line)) for line in place.split("\n"))
    return Text(one.severity, style=_STYLES[one.severity]), one.check, places, text


def _fact(key: str, value: Any) -> str:
    if key == "bytes" and isinstance(value, int):
        return size(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
