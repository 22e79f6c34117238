"""Which base a model was made from, and the licences of base and data, as far as nobody must be asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ArtifactError, EnvironmentProblem
from tunesmith.models.embedded import NAME, already_dequantised, embedded_gguf
from tunesmith.models.load import BaseModel
from tunesmith.store import Artifact, open_parent

__all__ = [
    "EMBEDDED_ON_HUB",
    "Licence",
    "chain",
    "is_embedded",
    "licence_file",
    "licence_of",
    "on_card",
]

EMBEDDED_ON_HUB = f"HuggingFaceTB/{NAME}"
"""The model that the embedded one was quantised from."""

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---", re.DOTALL)
_FIELD = r"^{}:[ \t]*[\"']?([A-Za-z0-9][A-Za-z0-9.+-]*)[\"']?[ \t]*$"
_LICENCE = re.compile(_FIELD.format("license"), re.MULTILINE)
_LICENCE_NAME = re.compile(_FIELD.format("license_name"), re.MULTILINE)
_FILE = re.compile(r"(licen[cs]e|copying)(\.(md|txt))?", re.IGNORECASE)
_NOT_KNOWN = "unknown"
"""The hub's own word for a licence that nobody states."""


@dataclass(frozen=True)
class Licence:
    """One link of the chain.

    Attributes:
        of: "base", "data" or "model" (a whole model that was merged).
        name: as it is stated; empty when it is not known.
    """

    of: str
    name: str

    @property
    def on_hub(self) -> str:
        """As the hub spells identifiers: SPDX in lower case."""
        spelled = self.name.lower().removesuffix("-only").removesuffix("-or-later")
        return re.sub(r"[^a-z0-9.+]+", "-", spelled).strip("-") or _NOT_KNOWN


def is_embedded(base: BaseModel) -> bool:
    """Whether it is the installed wheel's own model; a folder that merely has its name is not."""
    if base.name != NAME:
        return False
    try:
        made = already_dequantised(embedded_gguf())
    except EnvironmentProblem:
        return False
    return made is not None and base.dir.resolve() == (made.dir / "model").resolve()


def licence_of(base: BaseModel) -> tuple[str, str]:
    """The licence's identifier and where it is stated; two empty texts when it is not known."""
    # A name with an owner comes from the Hub: those of folders and files have no slash.
    if base.name == EMBEDDED_ON_HUB or is_embedded(base):
        return "apache-2.0", "as published by Hugging Face"
    found = _in_readme(base.dir)
    return (found, "front matter of its README.md") if found else ("", "")


def _in_readme(folder: Path) -> str:
    """What the card of a model's folder states; its own name for a licence that the hub has no identifier for."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    head = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    found = _LICENCE.search(head[1]) if head else None
    if head is None or found is None or found[1] == _NOT_KNOWN:
        return ""
    named = _LICENCE_NAME.search(head[1]) if found[1] == "other" else None
    return (named or found)[1]


def licence_file(base: BaseModel) -> str:
    """The name of the file with the licence's text in the base's folder; empty when there is none."""
    names = sorted(file.name for file in base.dir.iterdir() if _FILE.fullmatch(file.name))
    return names[0] if names else ""


def chain(base: BaseModel, trained: Artifact, dataset: Artifact) -> tuple[Licence, ...]:
    """The licences that meet in a model, each once: of its base, then of what it was trained on or merged of.

    Args:
        trained: the run, or the merge.
        dataset: what a run was trained on; a merge is followed up to the datasets of its parents.
    """
    first = Licence("base", licence_of(base)[0])
    if trained.kind != "merge":
        return first, Licence("data", _stated(dataset))
    found = dict.fromkeys(_above(trained, base.sha256))
    return first, *(found or [Licence("data", "")])


def on_card(links: Sequence[Licence]) -> tuple[str, str]:
    """`license` and `license_name` of a hub's card. Where the links differ the first is "other" and the second
    names each: no single identifier is true then."""
    names = {link.on_hub for link in links}
    if len(names) == 1:
        return names.pop(), ""
    return "other", "-".join(f"{link.of}-{link.on_hub}" for link in links)


_MADE_FROM: Mapping[str, tuple[str, ...]] = {
    "train": ("data", "model"),
    "merge": ("train", "merge", "export", "model"),
    "export": ("train", "merge"),  # its dataset is what the forms were compared on
}
"""Kind -> those of its parents whose terms its weights are under."""


def _above(child: Artifact, base_sha256: str) -> Iterator[Licence]:
    """Of everything that `child` was made from but the base; what is gone or was never sealed is not known."""
    for parent in child.parents:
        if parent.kind not in _MADE_FROM.get(child.kind, ()) or parent.sha256 == base_sha256:
            continue
        artifact = None if parent.kind == "model" else open_parent(parent, child)
        if parent.kind == "model":
            place = Path(parent.path)
            yield Licence("model", _in_readme(place) if place.is_absolute() else "")
        elif artifact is None:
            yield Licence("data", "")
        elif artifact.kind == "data":
            yield Licence("data", _stated(artifact))
        else:
            yield from _above(artifact, base_sha256)


def _stated(dataset: Artifact) -> str:
    """The SPDX expression of a sealed dataset's card; empty when it has none, or its report was changed."""
    if "report.json" not in dataset.files:
        return ""
    try:
        report = dataset.read_json("report.json")
    except ArtifactError:
        return ""
    return str((report.get("card") or {}).get("license") or "")
