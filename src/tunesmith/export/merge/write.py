"""The merged weights, tensor by tensor: each is read in float32, merged, rounded once and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError
from tunesmith.export.gguf_tokenizer import keep_model_file
from tunesmith.export.merge.lora import is_finite
from tunesmith.export.merge.members import Member
from tunesmith.export.merge.methods import merge_tensor
from tunesmith.export.merge.plan import MergePlan, torch_dtype
from tunesmith.export.merge.prompts import generation_of
from tunesmith.export.merge.tensors import FLOATS, INDEX, WHOLE, Stored, Weights, write_shard
from tunesmith.export.weights import most_common_format
from tunesmith.models.load import quiet_transformers
from tunesmith.telemetry import progress

if TYPE_CHECKING:
    import torch

__all__ = ["merged_tensor", "write_model"]

_MILLION = 1_000_000


def write_model(plan: MergePlan, folder: Path) -> dict[str, Any]:
    """The merged model with config, tokenizer and stop tokens, sharded as the reference is.

    Returns what was counted: weights, tensors, and how many of them no parent changed.

    Raises:
        ModelError: a parent's weight is damaged, or a merged one does not fit its format.
        StorageError: the disk refuses, by `storage_errors` around this.
    """
    shards: dict[str, dict[str, Stored]] = {}
    for name, stored in plan.out.items():
        shards.setdefault(stored.file, {})[name] = stored
    names = _shard_names(sorted(shards))
    counts = {"weights": 0, "tensors": len(plan.out), "unchanged_tensors": 0}
    total = sum(stored.numel for stored in plan.out.values())
    with progress("Merge", _millions(total), unit="million weights") as bar:

        def done(name: str) -> None:
            counts["weights"] += plan.out[name].numel
            counts["unchanged_tensors"] += _is_untouched(plan, name)
            bar.advance(_millions(counts["weights"]) - bar.done, name)

        for old, new in names.items():
            write_shard(folder / new, shards[old], lambda name: _stored_tensor(plan, name), done)
    if len(names) > 1:
        _write_index(plan, names, folder)
    _write_config(plan, folder)
    with quiet_transformers():
        plan.prompts.tokenizer.save_pretrained(folder)
    keep_model_file(plan.prompts.tokenizer, folder)
    return counts


def _millions(weights: int) -> int:
    return -(-weights // _MILLION)


def _shard_names(files: list[str]) -> dict[str, str]:
    """Names that transformers finds, whatever the reference's are called."""
    if len(files) == 1:
        return {files[0]: WHOLE}
    count = len(files)
    return {
        file: f"model-{number:05d}-of-{count:05d}.safetensors"
        for number, file in enumerate(files, 1)
    }


def _write_index(plan: MergePlan, names: Mapping[str, str], folder: Path) -> None:
    places = {name: names[stored.file] for name, stored in sorted(plan.out.items())}
    size = sum(stored.bytes for stored in plan.out.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def _write_config(plan: MergePlan, folder: Path) -> None:
    config = json.loads((plan.reference / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config.pop("torch_dtype", None)
    config["dtype"] = most_common_format(plan.reference)
    if plan.untied:
        config["tie_word_embeddings"] = False
    _write_json(folder / "config.json", config)
    generation = generation_of(plan.reference)
    if plan.prompts.renderer is not None:
        stops = list(plan.prompts.renderer.stop_ids)
        generation["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    if generation:
        _write_json(folder / "generation_config.json", generation)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _stored_tensor(plan: MergePlan, name: str) -> torch.Tensor:
    """A merged tensor in the format that it is written in."""
    stored = plan.out[name]
    if stored.format not in FLOATS:
        return _same_everywhere(plan, name)
    if _is_untouched(plan, name):
        found = plan.weights(plan.reference)
        return found.raw(name if name in found.tensors else plan.names.embedding)
    merged = merged_tensor(plan, name)
    rounded = merged.to(torch_dtype(stored))
    if not is_finite(rounded):
        raise ModelError(
            f"the merged weight {name} does not fit into {FLOATS[stored.format]}",
            why=f"its largest magnitude is {merged.abs().max().item():g}",
            fix="use smaller --weights or --lambda, or --normalize",
        )
    return rounded


def _is_untouched(plan: MergePlan, name: str) -> bool:
    """No parent changes this tensor of the base, and the method keeps what all agree on."""
    scales = plan.settings.method == "linear" and not plan.settings.normalise
    return not scales and all(
        member.adapter is not None
        and name not in member.adapter.pairs
        and name not in member.adapter.whole
        for member in plan.members
    )


def _same_everywhere(plan: MergePlan, name: str) -> torch.Tensor:
    """A tensor of whole numbers: copied when all models have the same.

    Raises:
        ModelError: they differ.
    """
    import torch

    found = plan.weights(plan.reference).raw(name)
    for member in plan.members:
        if member.adapter is None and not torch.equal(plan.weights(member.dir).raw(name), found):
            raise ModelError(
                f"{name} differs between {plan.reference} and {member.given}",
                why="it holds whole numbers, which have no mean",
            )
    return found


def merged_tensor(plan: MergePlan, name: str) -> torch.Tensor:
    """A merged tensor in float32, before it is rounded.

    Raises:
        ModelError: a parent's tensor is damaged or not finite.
    """
    base = _of_folder(plan, plan.base.dir, name) if plan.base is not None else None
    if not plan.settings.kind.base:
        tensors = (_of_member(plan, member, name, base) for member in plan.members)
        return merge_tensor(name, plan.settings, tensors)
    if base is None:
        raise AssertionError("the plan made sure of a base")
    deltas = (_delta(plan, member, name, base) for member in plan.members)
    return merge_tensor(name, plan.settings, deltas, base)


def _of_folder(plan: MergePlan, folder: Path, name: str) -> torch.Tensor:
    """A tensor of a whole model; of a head that is tied, the embedding."""
    weights: Weights = plan.weights(folder)
    return weights.read(name if name in weights.tensors else plan.names.embedding)


def _of_member(
    plan: MergePlan, member: Member, name: str, base: torch.Tensor | None
) -> torch.Tensor:
    if member.adapter is None:
        return _of_folder(plan, member.dir, name)
    if base is None:
        raise AssertionError("the plan made sure of a base")
    return member.adapter.changed(name, base)


def _delta(plan: MergePlan, member: Member, name: str, base: torch.Tensor) -> torch.Tensor:
    """A member's difference from the base; of a plain LoRA its product, not rounded by an addition."""
    import torch

    adapter = member.adapter
    if adapter is None:
        return _of_folder(plan, member.dir, name).sub_(base)
    if name not in adapter.pairs and name not in adapter.whole:
        return torch.zeros_like(base)
    is_plain = name in adapter.pairs and adapter.pairs[name].magnitude is None
    if is_plain and name not in adapter.whole:
        return adapter.delta(name)
    return adapter.changed(name, base) - base
