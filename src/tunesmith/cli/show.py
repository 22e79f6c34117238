"""`tunesmith show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.screen import flat, note, print_json, size, table, where

if TYPE_CHECKING:
    from tunesmith.store import Ancestor, Artifact

__all__ = ["show"]


@click.command
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Check the SHA-256 of every file of the artifact.")
@json_option
def show(artifact: Path, verify: bool, as_json: bool) -> None:
    """An artifact's facts, files and lineage.

    ARTIFACT is a folder that a stage has sealed. Its lineage goes up to the raw files; a file or
    artifact that was changed or deleted since, or lies elsewhere, is marked (the base model is not
    looked at).

    \b
    Examples:
      tunesmith show runs/demo/train-0123456789ab
      tunesmith show runs/demo/export-0123456789ab --verify
    """
    from tunesmith.store import Artifact, lineage

    found = Artifact.open(artifact)
    if verify:
        found.verify()
    tree = lineage(found)
    if as_json:
        print_json(_as_dict(found, tree, verified=verify))
        return
    _print(found, tree)
    if verify:
        note(f"verified: all {len(found.files)} files are what was sealed")


def _print(artifact: Artifact, tree: Ancestor) -> None:
    rows: list[tuple[str, object]] = [
        ("stage", artifact.kind),
        ("directory", where(artifact.dir)),
        ("made", f"{artifact.created} by tunesmith {artifact.version}"),
        ("key", artifact.key),
        ("sha256", artifact.sha256),
    ]
    table(("", ""), rows)
    table(("fact", "value"), flat(artifact.facts))
    files = [(n, size(e.bytes), e.sha256[:12]) for n, e in sorted(artifact.files.items())]
    table(("file", "size", "sha256"), files, right=(1,))
    click.echo("made from")
    for line in _lines(tree):
        click.echo(line)


def _lines(node: Ancestor) -> list[str]:
    """The tree below `node` as text: the node first, its parents indented under it."""
    state = "" if node.state == "present" else f"   ({node.state})"
    name = node.parent.path
    if node.artifact is not None:
        name = where(node.artifact.dir)
    elif node.parent.kind == "file":
        name = where(Path(name))
    lines = [f"{node.parent.kind}  {name}  {node.parent.sha256[:12]}{state}"]
    for position, child in enumerate(node.ancestors):
        last = position == len(node.ancestors) - 1
        branch, stem = ("└─ ", "   ") if last else ("├─ ", "│  ")
        first, *rest = _lines(child)
        lines += [branch + first, *(stem + line for line in rest)]
    return lines


def _as_dict(artifact: Artifact, tree: Ancestor, *, verified: bool) -> dict[str, Any]:
    return {
        "kind": artifact.kind,
        "directory": str(artifact.dir),
        "key": artifact.key,
        "sha256": artifact.sha256,
        "created": artifact.created,
        "version": artifact.version,
        "inputs": dict(artifact.inputs),
        "facts": dict(artifact.facts),
        "files": {name: vars(entry) for name, entry in artifact.files.items()},
        "verified": verified,
        "lineage": _tree_as_dict(tree),
    }


def _tree_as_dict(node: Ancestor) -> dict[str, Any]:
    return {
        "kind": node.parent.kind,
        "path": str(node.artifact.dir) if node.artifact else node.parent.path,
        "sha256": node.parent.sha256,
        "state": node.state,
        "made_from": [_tree_as_dict(child) for child in node.ancestors],
    }
