"""`tunesmith sign`."""

from __future__ import annotations

from pathlib import Path

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json, where

__all__ = ["sign"]


@click.command
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), help="Private key to sign FOLDER with.")
@click.option(
    "--new-key",
    type=click.Path(path_type=Path),
    help="Make a key pair: this file, and the public key beside it with .pub at its end.",
)
@json_option
def sign(folder: Path | None, key: Path | None, new_key: Path | None, as_json: bool) -> None:
    """Sign a sealed folder with your own key.

    The signature (model.sig) covers every file and the manifest, in the format of OpenSSF Model Signing;
    nothing leaves this machine. Who has the public key can tell that the folder is yours and unchanged:
    `tunesmith check FOLDER --public-key FILE`, and `serve.public_key` in a recipe.

    \b
    Examples:
      tunesmith sign --new-key ~/keys/models.pem
      tunesmith sign runs/my-model/export-0123456789ab --key ~/keys/models.pem
      tunesmith export recipe.yaml --set signing_key=~/keys/models.pem
    """
    from tunesmith.store import Artifact, signatures

    if (new_key is None) == (folder is None) or (folder is None) != (key is None):
        raise click.UsageError("give FOLDER and --key, or --new-key alone")
    if new_key is not None:
        public = signatures.new_key(new_key.expanduser())
        if as_json:
            print_json({"private_key": str(new_key), "public_key": str(public)})
        else:
            note(f"private key: {where(new_key)} (keep it to yourself)")
            note(f"public key:  {where(public)} (give it to whoever checks)")
    elif folder is not None and key is not None:
        Artifact.open(folder).verify()
        signature = signatures.sign(folder, key.expanduser())
        if as_json:
            print_json({"directory": str(folder), "signature": str(signature)})
        else:
            note(f"signed: {where(signature)}")
