"""`tunesmith serve keys new | remove`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json

__all__ = ["keys"]


@click.group
def keys() -> None:
    """API keys of a gateway, in the file that serve.keys_path names.

    The file holds only hashes. A running gateway reads it again when it changes.

    \b
    Examples:
      tunesmith serve keys new keys.txt alice
      tunesmith serve keys remove keys.txt alice
    """


@keys.command
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name")
@json_option
def new(file: Path, name: str, as_json: bool) -> None:
    """Make a key called NAME in FILE, and print it once.

    \b
    Examples:
      tunesmith serve keys new keys.txt alice
    """
    from tunesmith.serve import create_key

    made = create_key(file, name)
    if as_json:
        print_json({"name": made.name, "key": made.secret, "file": str(file)})
        return
    note(f"the key {made.name!r} is in {file} as a hash; it is shown only now:")
    click.echo(made.secret)


@keys.command
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("name")
@json_option
def remove(file: Path, name: str, as_json: bool) -> None:
    """Take the key called NAME out of FILE; it is refused from then on.

    \b
    Examples:
      tunesmith serve keys remove keys.txt alice
    """
    from tunesmith.serve import remove_key

    remove_key(file, name)
    if as_json:
        print_json({"removed": name, "file": str(file)})
    else:
        note(f"the key {name!r} is no longer let in")
