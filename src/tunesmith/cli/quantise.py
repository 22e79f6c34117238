"""`tunesmith quantise`."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json, size, table, where
from tunesmith.errors import MissingError

if TYPE_CHECKING:
    from tunesmith.export.quantise import Quantised
    from tunesmith.telemetry import Bar

__all__ = ["quantise"]

_KINDS = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
_FILE = click.Path(path_type=Path)
_MEBIBYTE = 1 << 20


@click.command
@click.argument("model", type=_FILE, metavar="MODEL.gguf")
@click.option("--to", "kind", required=True, type=click.Choice(_KINDS), help="The file type.")
@click.option(
    "--out",
    type=_FILE,
    metavar="FILE",
    help="The new file; MODEL-TYPE.gguf beside it when not given.",
)
@click.option(
    "--importance",
    type=_FILE,
    metavar="FILE",
    help="An importance matrix in GGUF, as llama.cpp's llama-imatrix writes it.",
)
@click.option("--force", is_flag=True, help="Quantise a file that is quantised already.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Rows rounded side by side; the physical cores when not given.",
)
@json_option
def quantise(model: Path, kind: Any, out: Path | None, as_json: bool, **asked: Any) -> None:
    """Make a GGUF file smaller, as llama.cpp does.

    The result is, byte for byte, what llama.cpp's own `llama-quantize` writes. MODEL.gguf is read
    a slab at a time, so a model larger than the memory can be quantised.

    \b
    Examples:
      tunesmith quantise model-f16.gguf --to q4_k_m
      tunesmith quantise model-f32.gguf --to q4_0 --importance importance.gguf --out small.gguf
    """
    from tunesmith.export.quantise import Options, quantise_gguf, read_importance
    from tunesmith.telemetry import progress

    if not model.is_file():
        raise MissingError(
            f"there is no file {str(model)!r}",
            why="it is a folder"
            if model.is_dir()
            else "what has that name is no file: a link that leads nowhere, or a device"
            if os.path.lexists(model)
            else "",
            fix="name a GGUF file; a model's folder becomes one by `tunesmith export`",
        )
    target = out or model.with_name(f"{model.stem}-{kind}.gguf")
    matrix = None if asked["importance"] is None else read_importance(asked["importance"])
    n_bytes = model.stat().st_size
    with ExitStack() as opened:
        bar: Bar | None = None
        done = 0

        def on_bytes(more: int) -> None:
            """The bar comes with the first weights: what is refused shows none."""
            nonlocal bar, done
            if bar is None:
                bar = opened.enter_context(progress("Quantise", n_bytes // _MEBIBYTE, unit="MiB"))
            before, done = done // _MEBIBYTE, done + more
            bar.advance(done // _MEBIBYTE - before)

        options = Options(matrix, asked["force"], asked["threads"], on_bytes)
        made = quantise_gguf(model, target, kind, options)
    if as_json:
        print_json(made.as_dict() | {"file": str(target)})
        return
    _show(made, target)


def _show(made: Quantised, target: Path) -> None:
    rows = [
        ("file", where(target)),
        ("size", size(made.bytes)),
        ("bits per weight", f"{made.bits_per_weight:.2f}"),
        ("tensors", ", ".join(f"{count} {name}" for name, count in made.types.items())),
    ]
    table(("", ""), rows)
    for line in made.fallbacks:
        note(line)
    if made.unweighted:
        note(f"the importance matrix says nothing about {made.unweighted} of the tensors")
