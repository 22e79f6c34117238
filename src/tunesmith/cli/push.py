"""`tunesmith push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import complete_form, json_option
from tunesmith.cli.screen import note, print_json, table

if TYPE_CHECKING:
    from tunesmith.export.push import Pushed

__all__ = ["push"]


@click.command
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--form",
    "forms",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_form,
    help="Only this form; repeatable.",
)
@click.option(
    "--public", is_flag=True, help="Make a new repository public; it is private otherwise."
)
@click.option("--update", is_flag=True, help="Add a commit to a repository that is there.")
@click.option("--endpoint", metavar="URL", help="Another hub than HF_ENDPOINT or the public one.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the access token; else HF_TOKEN, else what `hf auth login` keeps.",
)
@click.option("--dry-run", is_flag=True, help="List what would be uploaded; send nothing.")
@json_option
def push(
    bundle: Path,
    repository: str,
    forms: tuple[str, ...],
    public: bool,
    update: bool,
    endpoint: str | None,
    token_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Upload a sealed bundle to a model hub.

    BUNDLE is an export's folder; every hash is checked first. All files go up in one commit. A single
    folder form (`--form merged`) goes to the repository's root, where libraries look for it, an adapter
    with the tokenizer beside it; otherwise the layout is the bundle's, and its signature holds on the other side.

    \b
    Examples:
      tunesmith push runs/my-model/export-0123456789ab me/my-model --dry-run
      tunesmith push runs/my-model/export-0123456789ab me/my-model --form merged
      tunesmith push runs/my-model/export-0123456789ab me/my-model-gguf --form gguf-q8_0 --public
    """
    from tunesmith.export.push import push as upload
    from tunesmith.export.push import told_places
    from tunesmith.store import Artifact

    artifact = Artifact.open(bundle, "export")
    done = upload(
        artifact,
        repository,
        forms=forms,
        public=public,
        update=update,
        endpoint=endpoint,
        token_file=None if token_file is None else token_file.expanduser(),
        dry_run=dry_run,
    )
    if as_json:
        print_json(
            {
                "repository": done.repository,
                "url": done.url,
                "public": done.public,
                "bytes": done.n_bytes,
                "files": [{"name": file.name, "bytes": file.bytes} for file in done.files],
                "names_folders": told_places(artifact, done.files),
            }
        )
    else:
        _print(done)
        if places := told_places(artifact, done.files):
            note(f"note: its manifest names folders of this machine: {', '.join(places)}")


def _print(done: Pushed) -> None:
    table(("file", "bytes"), [(file.name, f"{file.bytes:,}") for file in done.files], right=(1,))
    if done.url:
        who = "public" if done.public else "private"
        note(f"pushed {done.n_bytes / 1e6:.1f} MB to the {who} repository: {done.url}")
    else:
        note(f"nothing was sent: {len(done.files)} files, {done.n_bytes / 1e6:.1f} MB")
