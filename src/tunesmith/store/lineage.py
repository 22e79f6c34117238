"""From any artifact up to the raw files that it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ArtifactError, MissingError
from tunesmith.store.artifact import MANIFEST, Artifact, Parent
from tunesmith.store.files import sha256_of_file

__all__ = ["Ancestor", "lineage", "open_parent"]


@dataclass(frozen=True)
class Ancestor:
    """A node of the tree that `lineage` gives.

    Attributes:
        parent: how the child names it.
        state: "present", "changed" (its content is another now), "gone", or "elsewhere" (only its name is kept);
            a base model is not looked at and always "present".
        artifact: the opened artifact, when it is one and present.
        ancestors: what it was made from.
    """

    parent: Parent
    state: str
    artifact: Artifact | None
    ancestors: tuple[Ancestor, ...]


def lineage(artifact: Artifact) -> Ancestor:
    """The artifact with all its ancestors, depth first in the order of its parents."""
    above = tuple(_ancestor(parent, artifact.dir) for parent in artifact.parents)
    return Ancestor(artifact.as_parent(), "present", artifact, above)


def _ancestor(parent: Parent, child: Path) -> Ancestor:
    if parent.kind == "model":
        return Ancestor(parent, "present", None, ())
    path = _find(parent, child)
    if path is None:
        is_name = parent.path == Path(parent.path).name
        return Ancestor(parent, "elsewhere" if is_name else "gone", None, ())
    if parent.kind == "file":
        same = sha256_of_file(path) == parent.sha256
        return Ancestor(parent, "present" if same else "changed", None, ())
    try:
        found = Artifact.open(path, parent.kind)
    except (ArtifactError, MissingError):
        return Ancestor(parent, "changed", None, ())
    if found.sha256 != parent.sha256:
        return Ancestor(parent, "changed", found, ())
    return Ancestor(parent, "present", found, tuple(_ancestor(p, path) for p in found.parents))


def open_parent(parent: Parent, child: Artifact) -> Artifact | None:
    """The artifact that `child` was made from; None when it is gone or its content is another now."""
    path = _find(parent, child.dir)
    try:
        found = None if path is None else Artifact.open(path, parent.kind)
    except (ArtifactError, MissingError):
        return None
    return found if found is not None and found.sha256 == parent.sha256 else None


def _find(parent: Parent, child: Path) -> Path | None:
    """The parent where it was, or beside the child when a whole workspace was moved.

    Of one whose name alone is kept, a neighbour of that name may be another: it must have its content.
    """
    beside = child.parent / Path(parent.path).name
    if parent.path == beside.name:
        return beside if _has_content(beside, parent) else None
    return next((path for path in (Path(parent.path), beside) if path.exists()), None)


def _has_content(place: Path, parent: Parent) -> bool:
    content = place if parent.kind == "file" else place / MANIFEST
    return content.is_file() and sha256_of_file(content) == parent.sha256
