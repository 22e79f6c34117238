"""`tunesmith data card`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.data.places import resolve, sets_option
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json, where

__all__ = ["card"]


@click.command
@click.argument("place")
@sets_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write it there, as README.md of a hub's folder for example; stdout when not given.",
)
@json_option
def card(place: str, sets: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """A sealed dataset's card: licence, sources, splits, cleaning, checks and hashes.

    PLACE is a recipe whose dataset is built, or a dataset's folder. The card stands in the dataset
    as README.md, with the front matter that hubs read.

    \b
    Examples:
      tunesmith data card recipe.yaml
      tunesmith data card runs/demo/data-0123456789ab --out README.md
    """
    from tunesmith.data.card import CARD
    from tunesmith.store import Artifact, write_atomically
    from tunesmith.telemetry import visible

    artifact = Artifact.open(resolve(place, sets)[1], "data")
    text = artifact.path(CARD).read_text(encoding="utf-8")
    out = None if str(out) == "-" else out
    if out is not None:
        write_atomically(out, text)
        note(f"wrote {where(out.resolve())}")
    if as_json:
        print_json({"card": text, "sha256": artifact.files[CARD].sha256})
    elif out is None:
        click.echo(visible(text), nl=False)
