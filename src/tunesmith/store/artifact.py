"""A sealed artifact: a directory whose `manifest.json` names every file with its hash."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import ArtifactError, MissingError, StorageError
from tunesmith.store.files import sha256_of_file

__all__ = ["MANIFEST", "Artifact", "FileEntry", "Parent", "by_content"]

MANIFEST = "manifest.json"
FORMAT = 1
_MOST_UP = 3


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Parent:
    """What an artifact was made from: another artifact, a raw file, or a base model.

    `sha256` is that of the parent's manifest, of the raw file, or the model's identity. `path` of a sealed artifact's
    parent is absolute, or a name alone where it lies elsewhere; of a model it is the name.
    """

    kind: str
    path: str
    sha256: str

    def as_told(self, place: Path) -> dict[str, str]:
        """What a manifest in `place` says of it: others read it, and the user's folders are not theirs to know.

        Its path is relative to `place` in a folder up to the one that holds the workspace
        (WORKSPACE/NAME/STAGE-KEY), and a name alone outside of that.
        """
        if self.kind == "model" and not Path(self.path).is_absolute():
            return dict(vars(self))
        absolute = Path(os.path.abspath(self.path))
        relative = os.path.relpath(absolute, os.path.abspath(place))
        up = relative.split(os.sep).count("..")
        above = Path(os.path.abspath(place / (f"..{os.sep}" * up)))
        home = Path.home()
        is_near = absolute.parent == above or above not in (home, *home.parents)
        if up > _MOST_UP or not is_near:
            return vars(self) | {"path": absolute.name}
        return vars(self) | {"path": relative if up else f".{os.sep}{relative}"}

    def found_by(self, place: Path) -> Parent:
        """The parent as a manifest in `place` tells it, with the path to where it should lie."""
        if not self.path.startswith(("./", "../")):
            return self
        return Parent(self.kind, os.path.abspath(place / self.path), self.sha256)

    @classmethod
    def file(cls, path: Path) -> Parent:
        """A raw file as a parent, with the hash of its bytes now.

        Raises:
            StorageError: it cannot be read.
        """
        try:
            return cls("file", str(path), sha256_of_file(path))
        except PermissionError as error:
            raise StorageError(
                f"cannot read {path}",
                why="you have no permission to read it",
                fix="change its owner or mode",
            ) from error


@dataclass(frozen=True)
class Artifact:
    """A sealed directory. Get one by `Artifact.open`, which checks it.

    Attributes:
        dir: where it lies.
        kind: the stage that made it ("data", "train", "evaluate", "export") or "model".
        key: hash of all inputs; equal inputs have equal keys.
        facts: the stage's own results, as JSON values.
        files: relative path -> size and hash.
        sha256: hash of the manifest itself; it names the artifact in its children.
    """

    dir: Path
    kind: str
    key: str
    created: str
    version: str
    inputs: Mapping[str, Any]
    facts: Mapping[str, Any]
    parents: tuple[Parent, ...]
    files: Mapping[str, FileEntry]
    sha256: str
    _verified: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, directory: str | Path, kind: str | None = None) -> Artifact:
        """Read and check the manifest; each file's hash is checked when `path` first gives it out.

        Raises:
            MissingError: there is no such directory, or it was never sealed.
            ArtifactError: the manifest is damaged, a file has another size, or the kind differs.
        """
        place = Path(directory)
        manifest = place / MANIFEST
        if not manifest.is_file():
            raise MissingError(
                f"{place} is not a sealed artifact",
                why="it has no manifest.json"
                if place.is_dir()
                else "it is a file"
                if place.exists()
                else "there is no such folder",
                fix="name a folder that a tunesmith stage has finished",
            )
        artifact = cls._parse(place, manifest)
        if kind is not None and artifact.kind != kind:
            raise ArtifactError(
                f"{place} is an artifact of the stage {artifact.kind!r}, not {kind!r}",
                fix=f"name a folder that the stage {kind!r} has sealed",
            )
        for name in artifact.files:
            artifact._check_size(name)
        return artifact

    @classmethod
    def _parse(cls, place: Path, manifest: Path) -> Artifact:
        try:
            raw = json.loads(manifest.read_text(encoding="utf-8"))
            return cls(
                dir=place,
                kind=raw["kind"],
                key=raw["key"],
                created=raw["created"],
                version=raw["version"],
                inputs=raw["inputs"],
                facts=raw["facts"],
                parents=tuple(Parent(**parent).found_by(place) for parent in raw["parents"]),
                files={name: FileEntry(**entry) for name, entry in raw["files"].items()},
                sha256=sha256_of_file(manifest),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{manifest} is damaged: {error}",
                why="it was changed or cut off after it was written",
                fix=f"delete {place} and make it again",
            ) from error

    def _check_size(self, name: str) -> None:
        path = self.dir / name
        if not path.is_file():
            raise self._damaged(name, "it is gone")
        found, sealed = path.stat().st_size, self.files[name].bytes
        if found != sealed:
            raise self._damaged(name, f"it has {found} bytes, {sealed} were sealed")

    def _damaged(self, name: str, why: str) -> ArtifactError:
        return ArtifactError(
            f"{self.dir / name} is not the file that was sealed",
            why=why,
            fix=f"delete {self.dir} and make it again",
        )

    def path(self, name: str) -> Path:
        """A file of the artifact, its hash checked once.

        Raises:
            ArtifactError: the file's content is not what was sealed, or no such file was sealed.
        """
        if name not in self.files:
            raise ArtifactError(
                f"{self.dir} has no file {name!r}",
                why=f"its manifest names: {', '.join(sorted(self.files))}",
            )
        if name not in self._verified:
            self._check_size(name)
            if sha256_of_file(self.dir / name) != self.files[name].sha256:
                raise self._damaged(name, "its SHA-256 differs from the manifest's")
            self._verified.add(name)
        return self.dir / name

    def folder(self, name: str) -> Path:
        """A folder of the artifact, each file in it checked.

        Raises:
            ArtifactError: it holds no sealed file, or one that was changed.
        """
        inside = [file for file in self.files if file.startswith(f"{name}/")]
        if not inside:
            raise ArtifactError(f"{self.dir} has no folder {name!r}")
        for file in inside:
            self.path(file)
        return self.dir / name

    def read_json(self, name: str) -> Any:
        """A JSON file of the artifact, checked."""
        return json.loads(self.path(name).read_text(encoding="utf-8"))

    def verify(self) -> None:
        """Check every file's hash.

        Raises:
            ArtifactError: the first file that differs.
        """
        for name in self.files:
            self.path(name)

    def as_parent(self) -> Parent:
        """This artifact as another one names it."""
        return Parent(self.kind, str(self.dir), self.sha256)


def by_content(value: Any, files: Sequence[Parent]) -> Any:
    """Settings with each path replaced by its file's hash: moved files make the same artifact."""
    return _replaced(value, {file.path: file.sha256 for file in files})


def _replaced(value: Any, known: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, known) for item in value]
    return known.get(value, value) if isinstance(value, str) else value
