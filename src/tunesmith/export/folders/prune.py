"""The form `pruned`: the merged model without the layers that change its hidden states least.

Which ones: the angle between what a run of layers reads and what it makes, averaged over tokens, tells
how much that run does (Gromov et al. 2024, arXiv 2403.17887). Two choices are tried, the run of n
consecutive layers with the least angle, and the n layers with the least angles of their own (Men et al.
2024, arXiv 2403.03853, with the angle for the cosine); the one with less loss on training rows is taken.
Nothing is trained afterwards: the loss on the validation rows before and after is part of the facts.
"""

from __future__ import annotations

import json
import time
from collections import deque
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

__all__ = ["angle", "answers", "drop_layers", "open_form", "write_pruned"]

SHARE = 8
"""One layer in so many is dropped when the recipe does not say."""
CHOICE_ROWS = 16
"""Training rows on which the two choices are compared."""


def check_count(count: int, base: Path) -> None:
    """Refuse to leave out all layers of a model, as far as its folder tells how many it has.

    Raises:
        ModelError: the model has no more layers than are to be dropped.
    """
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    total = (config.get("text_config") or config).get("num_hidden_layers")
    if isinstance(total, int):
        _refuse_all(count, total)


def _refuse_all(count: int, total: int) -> None:
    if count >= total:
        raise ModelError(
            f"export.prune_layers is {count}, and the model has {total} layers",
            fix=f"--set export.prune_layers={max(1, total // SHARE)}",
        )


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
    _refuse_all(count, total)
    runs, singles = _angles(layers, count)
    model, rows = layers.model, list(sources.calibration[:CHOICE_ROWS])
    tried = {
        tuple(choice): _loss(model, rows, [1] * len(rows), choice)
        for choice in (_run_of_layers(runs, count), _single_layers(singles, count))
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


def _angles(layers: Layers, count: int) -> tuple[list[float], list[float]]:
    """Of each run of `count` layers, and of each layer: the angle between its input and its output."""
    window = deque([layers.states], maxlen=count + 1)
    runs, singles = [], []
    for index in range(len(layers.blocks)):
        layers.advance(index)
        window.append(layers.states)
        singles.append(angle(window[-2], window[-1]))
        if len(window) > count:
            runs.append(angle(window[0], window[-1]))
    return runs, singles


def angle(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Mean angle between the hidden states of the same tokens, as a share of pi.

    Both hold one (1, tokens, hidden) tensor a row.
    """
    import torch

    total, tokens = 0.0, 0
    for one, other in zip(before, after, strict=True):
        cosine = torch.cosine_similarity(one, other, dim=-1).clamp(-1, 1)
        total += float(cosine.acos().sum()) / torch.pi
        tokens += cosine.numel()
    return total / tokens


def _run_of_layers(runs: Sequence[float], count: int) -> list[int]:
    first = min(range(len(runs)), key=lambda start: runs[start])
    return list(range(first, first + count))


def _single_layers(singles: Sequence[float], count: int) -> list[int]:
    return sorted(sorted(range(len(singles)), key=lambda layer: singles[layer])[:count])


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
