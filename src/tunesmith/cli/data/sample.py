"""`tunesmith data sample`: the datasets that ship with tunesmith."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.data.growing import refuse_stdout
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json, size, table, where

__all__ = ["sample"]


@click.command
@click.argument("name", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="A new folder for its files.")
@json_option
def sample(name: str | None, out: Path | None, as_json: bool) -> None:
    """List the datasets that ship with tunesmith, or write one's files to a folder.

    \b
    Examples:
      tunesmith data sample
      tunesmith data sample support
      tunesmith data sample preferences --out my-pairs
    """
    from tunesmith.data.samples import describe, load_sample, write_sample

    if name is None:
        if out is not None:
            raise click.UsageError("--out needs the name of a dataset.")
        listed = describe()
        if as_json:
            print_json(listed)
            return
        rows = [(s["name"], s["kind"], s["rows"], size(s["bytes"]), s["about"]) for s in listed]
        table(("name", "kind", "rows", "size", "what it is"), rows, right=(2, 3))
        return
    refuse_stdout(out=out)
    found = load_sample(name)
    if out is None:
        if as_json:
            print_json(next(one for one in describe() if one["name"] == name))
        else:
            click.echo(found.CARD.read_text(encoding="utf-8"), nl=False)
        return
    files = write_sample(name, out)
    if as_json:
        print_json([where(file) for file in files])
        return
    for file in files:
        note(where(file))
