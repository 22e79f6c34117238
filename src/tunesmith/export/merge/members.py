"""The models that are merged: sealed runs, bundles and merges, PEFT folders, and plain folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.config import ModelConfig
from tunesmith.errors import MissingError, ModelError
from tunesmith.export.merge.lora import CONFIG, WEIGHTS, Adapter, read_adapter
from tunesmith.models import embedded
from tunesmith.models.load import HUB_ID, BaseModel, base_on_disk, resolve_base
from tunesmith.store import MANIFEST, Artifact, Parent, sha256_of_file

__all__ = ["Member", "base_of", "open_base", "open_member", "repeated"]

_FOLDERS: Mapping[str, str] = {"adapter": CONFIG, "model": "config.json", "merged": "config.json"}
"""Where sealed artifacts keep a model, the most exact form first."""


@dataclass(frozen=True)
class Member:
    """One of the models that are merged.

    Attributes:
        given: as the user wrote it.
        dir: folder of the weights.
        adapter: what it changes; None for a whole model.
        parent: how the result names it.
        base: name and hash of the base it was trained on, as sealed; None when nobody sealed it.
        facts: of the sealed artifact; empty when it is none.
        made_from: its parents.
    """

    given: str
    dir: Path
    adapter: Adapter | None
    parent: Parent
    base: Mapping[str, str] | None
    facts: Mapping[str, Any]
    made_from: tuple[Parent, ...] = ()

    @property
    def kind(self) -> Literal["adapter", "model"]:
        """Whether it is put on a base or stands alone."""
        return "model" if self.adapter is None else "adapter"

    @property
    def quantised(self) -> Mapping[str, Any] | None:
        """How the base that it was trained on was quantised; None when it was not, or nobody knows."""
        found = self.facts.get("quantised_base")
        return found if isinstance(found, dict) else None


def open_member(given: str) -> Member:
    """Find out what a path is, and check it.

    Raises:
        MissingError: there is no such folder.
        ArtifactError: a sealed file is not what was sealed.
        ModelError: it is neither a model nor an adapter, or damaged or pickled.
    """
    place = Path(given).expanduser().absolute()
    if not place.is_dir():
        raise MissingError(
            f"no model at {given!r}",
            why="there is a file of that name" if place.exists() else "there is no such folder",
            fix="name a sealed run, an export, a PEFT adapter's folder or a model's folder",
        )
    if (place / MANIFEST).is_file():
        return _sealed(given, Artifact.open(place), None)
    if place.name in _FOLDERS and (place.parent / MANIFEST).is_file():
        return _sealed(given, Artifact.open(place.parent), place.name)
    if (place / CONFIG).is_file():
        adapter = read_adapter(place)
        digest = hashlib.sha256()
        for name in (CONFIG, WEIGHTS):
            digest.update(f"{name}\0{sha256_of_file(place / name)}\0".encode())
        # Of the kind whose content lineage does not look for: nobody sealed it.
        parent = Parent("model", str(place), digest.hexdigest())
        return Member(given, place, adapter, parent, None, {})
    if not (place / "config.json").is_file():
        raise ModelError(
            f"{given} holds neither a model nor an adapter",
            why=f"it has no {MANIFEST}, no {CONFIG} and no config.json",
            fix="name a sealed run, an export, a PEFT adapter's folder or a model's folder",
        )
    model = resolve_base(ModelConfig(base=str(place)))
    return Member(given, place, None, Parent("model", str(place), model.sha256), None, {})


def _sealed(given: str, artifact: Artifact, wanted: str | None) -> Member:
    names = [
        name
        for name, file in _FOLDERS.items()
        if f"{name}/{file}" in artifact.files and wanted in (None, name)
    ]
    if not names:
        raise ModelError(
            f"{artifact.dir} holds no model that can be merged",
            why=f"it is the result of the stage {artifact.kind!r} and has no folder "
            f"{wanted or ', '.join(_FOLDERS)}",
            fix="name a training run, a merge, or an export with the form `adapter` or `merged`",
        )
    folder = artifact.folder(names[0])
    adapter = read_adapter(folder) if names[0] == "adapter" else None
    base = artifact.facts.get("base")
    known = base if isinstance(base, dict) and base.get("sha256") else None
    facts, parents = artifact.facts, artifact.parents
    return Member(given, folder, adapter, artifact.as_parent(), known, facts, parents)


def open_base(named: str) -> BaseModel:
    """A base model on this disk: "embedded", a folder, a GGUF file, or a model in the Hub's local cache.

    Raises:
        MissingError: it is not there; nothing is downloaded.
        ModelError: it is no model.
    """
    if named == "embedded":
        return resolve_base(ModelConfig())
    path = Path(named).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return resolve_base(ModelConfig(base=named))
    may_be = path.is_dir() or HUB_ID.match(named)
    found = base_on_disk(ModelConfig(base=named)) if may_be else None
    if found is None:
        raise MissingError(
            f"the base model {named!r} is not on this disk",
            why="it is in no local folder and not in the Hub's cache; a merge downloads nothing",
            fix="download it first, and name its folder with --base",
        )
    return found


def base_of(members: list[Member]) -> BaseModel | None:
    """The base that the members themselves name, when it is on this disk and the one that was sealed."""
    sealed = [member.base for member in members if member.base is not None]
    wanted = {base["sha256"] for base in sealed}
    names = {member.adapter.base_name for member in members if member.adapter is not None}
    names |= {base["name"] for base in sealed}
    for name in sorted(name for name in names if name):
        found = _named(name)
        if found is not None and (not wanted or found.sha256 in wanted):
            return found
    return None


def _named(name: str) -> BaseModel | None:
    """A base by the name that an adapter or a run has for it; None when it is not on this disk."""
    if name == embedded.NAME:
        return resolve_base(ModelConfig())
    if Path(name).expanduser().is_dir():
        has_model = (Path(name).expanduser() / "config.json").is_file()
        return resolve_base(ModelConfig(base=name)) if has_model else None
    return base_on_disk(ModelConfig(base=name)) if HUB_ID.match(name) else None


def repeated(members: Sequence[Member]) -> Iterator[str]:
    """Notes about models that are named twice."""
    for number, member in enumerate(members):
        same = [one.given for one in members[:number] if one.parent.sha256 == member.parent.sha256]
        if same:
            yield f"{same[0]} and {member.given} are the same model, and count twice"
