"""What the model card of a merge says in the place of a training run's method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["merged_method", "merged_title"]

_FOLDERS = ("adapter", "model", "merged")
"""Names of folders in sealed artifacts, which tell nothing of the model."""


def merged_title(facts: Mapping[str, Any], base: str, version: str) -> str:
    """One sentence: what was merged, with what.

    Args:
        facts: of the sealed merge.
        base, version: as Markdown.
    """
    count = len(facts["parents"])
    told = "one model" if count == 1 else f"{count} models"
    return f"{told[0].upper()}{told[1:]} of {base}, merged with tunesmith {version}."


def merged_method(facts: Mapping[str, Any], plain: Callable[[object], str]) -> Iterator[str]:
    """Settings, the models that were merged, and what a quantised training base changes.

    No folder of this disk is named beyond its last name.

    Args:
        facts: of the sealed merge.
        plain: makes text of the user Markdown of one line.
    """
    yield "| setting | value |"
    yield "|---|---|"
    for name, value in facts["method"].items():
        told = ", ".join(f"{one:g}" for one in value) if isinstance(value, list) else value
        yield f"| {'merged by' if name == 'kind' else plain(name)} | {plain(told)} |"
    yield ""
    yield "| merged model | it is | weight | SHA-256 | trained on a base in |"
    yield "|---|---|---|---|---|"
    for parent in facts["parents"]:
        quantised = parent["quantised_base"] or "its own precision, or not known"
        yield (
            f"| {plain(_name(parent['path']))} | {plain(parent['kind'])} | {parent['weight']:g} | "
            f"`{plain(parent['sha256'][:16])}` | {plain(quantised)} |"
        )
    yield ""
    yield "What each of them was trained on is told by its own card or sealed run, not here."
    for given, effect in facts["quantised_bases"].items():
        yield ""
        yield (
            f"{plain(_name(given))} was trained on a base in {plain(effect['kind'])} and is put on the original one: "
            f"mean KL {effect['mean_kl_nats']:.3g} nats, same next token at "
            f"{100 * effect['greedy_agreement']:.1f} % of {effect['positions']} positions, loss "
            f"{effect['nats_on_quantised']:.3f} nats there, {effect['nats_on_original']:.3f} here."
        )


def _name(path: str) -> str:
    place = Path(path)
    return place.parent.name if place.name in _FOLDERS and place.parent.name else place.name
