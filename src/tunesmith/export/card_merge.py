"""What the model card of a merge says in the place of a training run's method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.store import Artifact

__all__ = ["merged_method", "merged_results", "merged_title", "merged_warnings"]

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


def merged_results(
    ranking: Artifact, dataset_sha256: str, plain: Callable[[object], str]
) -> Iterator[str]:
    """The merge and its parents on the same test rows, as they were measured.

    Args:
        ranking: the sealed comparison.
        dataset_sha256: of the dataset that the forms were compared on.
        plain: makes text of the user Markdown of one line.
    """
    facts = ranking.facts
    level = f"{100 * facts['confidence']:g} %"
    yield f"Task {plain(facts['task'])} on n = {facts['n']} held-out rows, greedy decoding."
    data = next(parent.sha256 for parent in ranking.parents if parent.kind == "data")
    if data != dataset_sha256:
        yield (
            "They are of another dataset than the one that the forms were compared on (manifest SHA-256 "
            f"`{data[:16]}`)."
        )
    yield ""
    yield f"| model | correct | accuracy | {level} interval | points against the best parent | p |"
    yield "|---|---|---|---|---|---|"
    for model in facts["models"]:
        name = plain(_name(model["name"])) if model["is_parent"] else "this model"
        low, high = model["interval"]
        yield (
            f"| {name} | {model['correct']} of {facts['n']} | {100 * model['accuracy']:.1f} % | "
            f"{100 * low:.1f} to {100 * high:.1f} % | {_against(model['against_best'])}"
        )
    gain = next((m["against_best"] for m in facts["models"] if m["against_best"]), None)
    if gain is not None:
        yield ""
        yield (
            f"The best parent is {plain(_name(facts['best_parent']))}. Points are of the same rows, with "
            f"{level} interval ({plain(gain['method'])}); p is of the exact McNemar test."
        )


def _against(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return "best parent | |"
    low, high = gain["interval_points"]
    points = f"{gain['points']:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{points}: {gain['verdict']} | {gain['p_value']:.3g} |"


def merged_warnings(ranking: Artifact) -> Iterator[str]:
    """What must be known of the comparison, its models by their last names alone."""
    for warning in ranking.facts["warnings"]:
        for model in ranking.facts["models"]:
            warning = warning.replace(model["name"], _name(model["name"]))
        yield warning


def _name(path: str) -> str:
    place = Path(path)
    return place.parent.name if place.name in _FOLDERS and place.parent.name else place.name
