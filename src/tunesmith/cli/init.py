"""`tunesmith init`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tunesmith.cli.screen import note

__all__ = ["init"]


@click.command
@click.argument("path", type=click.Path(path_type=Path), default=Path("recipe.yaml"))
@click.option(
    "--data",
    "examples",
    default="examples.jsonl",
    metavar="FILE",
    help="Your examples, relative to where you are; the recipe will name the file.",
)
@click.option("--name", default="my-model", help="Name of the folder for the artifacts.")
def init(path: Path, examples: str, name: str) -> None:
    """Write a commented recipe for your own examples.

    PATH (default: recipe.yaml) is never overwritten. The examples are a file of any form that
    `tunesmith data inspect` reads: JSONL, JSON, CSV, TSV, Parquet, text or Markdown.

    \b
    Examples:
      tunesmith init --data examples.jsonl
      tunesmith init recipes/support.yaml --data data/support.jsonl --name support
    """
    from tunesmith.config import load_recipe
    from tunesmith.config.load import SHIPPED
    from tunesmith.errors import UsedDirectoryError
    from tunesmith.store import write_atomically

    if path.exists():
        raise UsedDirectoryError(
            f"{path} is there already",
            why="a recipe is never overwritten",
            fix=f"choose another name: tunesmith init {path.with_stem(path.stem + '-2')}",
        )
    text = (SHIPPED / "sft-jsonl.yaml").read_text(encoding="utf-8")
    data = json.dumps(_relative(Path(examples), path.parent), ensure_ascii=False)
    text = text.replace("train: examples.jsonl", f"train: {data}")
    text = text.replace("name: sft-jsonl", f"name: {json.dumps(name, ensure_ascii=False)}")
    write_atomically(path, text)
    try:
        load_recipe([path])
    except BaseException:
        path.unlink()
        raise
    note(f"wrote {path}")
    if not Path(examples).exists():
        note(f"{examples} is not there yet: put your examples into it")
    click.echo(f"next: tunesmith run {path} --dry-run   then: tunesmith run {path}")


def _relative(examples: Path, folder: Path) -> str:
    """The file as seen from the recipe's folder; absolute when it lies elsewhere."""
    absolute, base = examples.expanduser().absolute(), folder.absolute()
    return str(absolute.relative_to(base) if absolute.is_relative_to(base) else absolute)
