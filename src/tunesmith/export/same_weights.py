"""The weights of `merged` and `pruned`: nothing is quantised there, so each must be the merged model's, rounded.

What is left out by `pruned` makes it another model, and no figure shows whether the rest is right.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from tunesmith.config import Form
from tunesmith.errors import ParityError
from tunesmith.export.merge.tensors import Weights

__all__ = ["COMPARED", "check_weights"]

COMPARED: tuple[Form, ...] = ("merged", "pruned")
_OF_A_LAYER = re.compile(r"^(?P<above>.*?\.)(?P<layer>\d+)(?P<name>\..+)$")
_MOST_TOLD = 4
Pair = tuple[str, str]


def check_weights(form: Form, place: Path, merged: Path) -> str:
    """Hold each stored weight against the merged model in float32, rounded to the format that it is stored in.

    Args:
        merged: folder of the merged model in float32.

    Returns:
        What was compared; empty for forms whose weights are quantised or not the merged model's.

    Raises:
        ParityError: a weight differs, is missing or too many; or a layer is none of the merged model's.
        ModelError: a file is damaged.
    """
    if form not in COMPARED:
        return ""
    if not (merged / "config.json").is_file():
        return "not compared: the merged model is no longer there"
    found, wanted = Weights(place), Weights(merged)
    pairs = list(_pruned(found, wanted) if form == "pruned" else _whole(found, wanted))
    if form == "merged":
        wrong = [name for name, other in pairs if not _is_same(found, name, wanted, other)]
        _refuse(place.name, wrong, len(pairs))
    return f"all {len(pairs)} tensors are the merged model's, rounded once"


def _refuse(place: str, wrong: list[str], total: int) -> None:
    if wrong:
        raise ParityError(
            f"{len(wrong)} of {total} tensors in {place} are not the merged model's, rounded: "
            f"{', '.join(wrong[:_MOST_TOLD])}"
        )


def _is_same(found: Weights, name: str, wanted: Weights, other: str) -> bool:
    import torch

    if name not in found.tensors or other not in wanted.tensors:
        return False
    stored = found.raw(name)
    rounded = wanted.raw(other).to(stored.dtype)
    # As bytes: -0.0 equals 0.0 as a number.
    bits = [one.contiguous().reshape(-1).view(torch.uint8) for one in (stored, rounded)]
    return stored.shape == rounded.shape and torch.equal(*bits)


def _whole(found: Weights, wanted: Weights) -> Iterator[Pair]:
    for name in sorted({*found.tensors, *wanted.tensors}):
        yield name, name


def _pruned(found: Weights, wanted: Weights) -> Iterator[Pair]:
    """The pairs that are the same: what is in no layer, and for each layer the next that it can be.

    Raises:
        ParityError: there is none, or something in no layer differs.
    """
    ours, theirs = _by_layer(found), _by_layer(wanted)
    outside = [(name, name) for name in sorted({*ours[-1], *theirs[-1]})]
    wrong = [name for name, _ in outside if not _is_same(found, name, wanted, name)]
    _refuse(found.dir.name, wrong, len(outside))
    yield from outside
    rest = iter(sorted(set(theirs) - {-1}))
    for layer in sorted(set(ours) - {-1}):
        for other in rest:
            pairs = _paired(ours[layer], theirs[other])
            if pairs and all(_is_same(found, one, wanted, two) for one, two in pairs):
                yield from pairs
                break
        else:
            raise ParityError(
                f"layer {layer} in {found.dir.name} is none of the merged model's that are left: one of its "
                f"{len(ours[layer])} tensors differs from each"
            )


def _by_layer(weights: Weights) -> dict[int, dict[str, str]]:
    """Layer -> name of a tensor within any layer -> its name in the file; -1 for what is in none."""
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for name in weights.tensors:
        match = _OF_A_LAYER.match(name)
        if match is None:
            found[-1][name] = name
        else:
            found[int(match["layer"])][match["above"] + match["name"]] = name
    return found


def _paired(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[Pair]:
    """Names of both; none when a layer has what the other has not."""
    return (
        [(ours[key], theirs[key]) for key in sorted(ours)] if ours.keys() == theirs.keys() else []
    )
