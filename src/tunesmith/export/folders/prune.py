"""The form `pruned`: the merged model without the layers that change its hidden states least.

Which ones: the angle between what a run of layers reads and what it makes, averaged over tokens, tells
how much that run does (Gromov et al. 2024, arXiv 2403.17887). Two choices are tried, the run of n
consecutive layers with the least angle, and the n layers with the least angles of their own (Men et al.
2024, arXiv 2403.03853, with the angle for the cosine); the one with less loss on training rows is taken.
Nothing is trained afterwards: the loss on the validation rows before and after is part of the facts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError
from tunesmith.export.folders.calibrate import Layers, open_layers
from tunesmith.export.folders.parts import (
    answers,
    decoder_layers,
    hushed,
    open_form,
    put_beside,
    stored_format,
    versions,
)
from tunesmith.export.reference import answer_logits, own_logprobs
from tunesmith.store import storage_errors

if TYPE_CHECKING:
    from torch import Tensor

    from tunesmith.export.forms import Sources

__all__ = ["angles", "answers", "drop_layers", "open_form", "write_pruned"]

SHARE = 8
"""One layer in so many is dropped when the recipe does not say."""
CHOICE_ROWS = 16
"""Training rows on which the two choices are compared."""


def write_pruned(sources: Sources, target: Path) -> Mapping[str, Any]:
    """The merged model with `export.prune_layers` layers fewer, in the base's number format.

    Raises:
        ModelError: the model has no more layers than are to be dropped.
        StorageError: the disk refuses.
    """

    began = time.monotonic()
    layers = open_layers(sources.merged, sources.calibration)
    total = len(layers.blocks)
    count = sources.config.prune_layers or max(1, total // SHARE)
    if count >= total:
        raise ModelError(
            f"export.prune_layers is {count}, and the model has {total} layers",
            fix=f"--set export.prune_layers={max(1, total // SHARE)}",
        )
    states = _states(layers)
    model, rows = layers.model, list(sources.calibration[:CHOICE_ROWS])
    tried = {
        tuple(choice): _loss(model, rows, [1] * len(rows), choice)
        for choice in (_run_of_layers(states, count), _single_layers(states, count))
    }
    dropped = min(tried, key=lambda choice: tried[choice])
    facts = _validation(model, sources, dropped)
    drop_layers(model, dropped)
    with storage_errors(target), hushed():
        model.to(stored_format(sources)).save_pretrained(target)
        put_beside(sources, target)
    return {
        "dropped_layers": list(dropped),
        "layers": total - count,
        "layers_before": total,
        **facts,
        "format": str(stored_format(sources)).removeprefix("torch."),
        "calibration_rows": layers.rows,
        "seconds": round(time.monotonic() - began, 1),
        "packages": versions("torch", "transformers"),
    }


def _states(layers: Layers) -> list[list[Tensor]]:
    """What each layer reads, and what the last one makes, for every row."""
    found = [layers.states]
    for index in range(len(layers.blocks)):
        layers.advance(index)
        found.append(layers.states)
    return found


def angles(states: Sequence[Sequence[Tensor]], count: int) -> list[float]:
    """For each run of `count` layers the mean angle, as a share of pi, between its input and its output.

    Args:
        states: hidden states before each layer and after the last; of each row (1, tokens, hidden).
    """
    import torch

    found = []
    for first in range(len(states) - count):
        total, tokens = 0.0, 0
        for before, after in zip(states[first], states[first + count], strict=True):
            cosine = torch.cosine_similarity(before, after, dim=-1).clamp(-1, 1)
            total += float(cosine.acos().sum()) / torch.pi
            tokens += cosine.numel()
        found.append(total / tokens)
    return found


def _run_of_layers(states: Sequence[Sequence[Tensor]], count: int) -> list[int]:
    each = angles(states, count)
    first = min(range(len(each)), key=lambda start: each[start])
    return list(range(first, first + count))


def _single_layers(states: Sequence[Sequence[Tensor]], count: int) -> list[int]:
    each = angles(states, 1)
    return sorted(sorted(range(len(each)), key=lambda layer: each[layer])[:count])


def drop_layers(model: Any, dropped: Sequence[int]) -> None:
    """Take layers out of a model in place; what its config says about each layer goes with them."""
    import torch

    found = decoder_layers(model)
    owner, name = next(
        (owner, name)
        for owner in model.modules()
        for name, child in owner.named_children()
        if child is found
    )
    kept = [index for index in range(len(found)) if index not in set(dropped)]
    config = model.config.get_text_config()
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == len(found):
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)
    setattr(owner, name, torch.nn.ModuleList(found[index] for index in kept))


def _passed_through(_block: Any, args: tuple[Any, ...], named: Mapping[str, Any], out: Any) -> Any:
    """A layer's input in the place of its output."""
    states = named["hidden_states"] if "hidden_states" in named else args[0]
    return (states, *out[1:]) if isinstance(out, tuple) else states


def _loss(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], without: Sequence[int] = ()
) -> float:
    """Mean loss a token, in nats, of each row from its start on, with some layers skipped."""
    blocks = decoder_layers(model)
    hooks = [
        blocks[index].register_forward_hook(_passed_through, with_kwargs=True) for index in without
    ]
    try:
        total, tokens = 0.0, 0
        for row, start, logits in zip(
            rows, starts, answer_logits(model, rows, starts), strict=True
        ):
            found = own_logprobs(logits, row[start:])
            total -= float(found.sum())
            tokens += len(found)
    finally:
        for hook in hooks:
            hook.remove()
    return total / tokens


def _validation(model: Any, sources: Sources, dropped: Sequence[int]) -> dict[str, Any]:
    """The loss of the validation rows' answers with all layers, and without the dropped ones."""
    given = sources.validation
    if given is None or not given.rows:
        return {}
    before = _loss(model, given.rows, given.starts)
    after = _loss(model, given.rows, given.starts, dropped)
    return {
        "validation_rows": len(given.rows),
        "validation_loss": round(before, 5),
        "validation_loss_pruned": round(after, 5),
    }
