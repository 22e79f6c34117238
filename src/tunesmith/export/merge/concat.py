"""Several LoRA adapters as one of the summed rank: the same change of weights, still an adapter.

sum of w_i s_i B_i A_i  =  [w_1 s_1 B_1 | w_2 s_2 B_2 | ...] [A_1; A_2; ...]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError, listed
from tunesmith.export.merge.lora import CONFIG, WEIGHTS, Adapter, Pair
from tunesmith.export.merge.members import Member
from tunesmith.export.merge.plan import MergePlan
from tunesmith.export.merge.tensors import Stored, write_shard
from tunesmith.telemetry import progress

if TYPE_CHECKING:
    import torch

__all__ = ["check_concat", "stored_bytes", "write_concat"]


def check_concat(members: Sequence[Member]) -> None:
    """Refuse what cannot be written as one LoRA adapter.

    Raises:
        ModelError: names every such model.
    """
    problems = [line for member in members for line in _problems(member)]
    if problems:
        raise ModelError(
            f"these models cannot become one adapter:\n{listed(problems)}",
            why="only a product added to a weight can be stacked with others",
            fix="use --method linear, whose result is a whole model",
        )


def _problems(member: Member) -> Iterator[str]:
    adapter = member.adapter
    if adapter is None:
        yield f"{member.given} is a whole model"
        return
    if adapter.has_dora:
        yield f"{member.given} is a DoRA: it also changes the lengths of the weights' rows"
    for name in list(adapter.whole)[:1]:
        yield f"{member.given} " + (
            f"holds the base's {name} beside its pair (saved with save_embedding_layers=False it would not)"
            if name in adapter.pairs
            else f"replaces whole weights, such as {name}"
        )


def sizes(plan: MergePlan) -> dict[str, tuple[int, int, int]]:
    """Weight -> (summed rank, in, out) of the concatenated adapter; in and out as lora_A and lora_B have them."""
    found: dict[str, tuple[int, int, int]] = {}
    for adapter in _adapters(plan):
        for weight, pair in adapter.pairs.items():
            rank = found[weight][0] if weight in found else 0
            fan_out, fan_in = reversed(pair.shape) if pair.turned else pair.shape
            found[weight] = (rank + pair.rank, fan_in, fan_out)
    return found


def _adapters(plan: MergePlan) -> list[Adapter]:
    return [member.adapter for member in plan.members if member.adapter is not None]


def write_concat(plan: MergePlan, folder: Path) -> dict[str, Any]:
    """The adapter's file and config, float32. Returns what was counted.

    Raises:
        ModelError: a parent's tensor is damaged.
        StorageError: the disk refuses, by `storage_errors` around this.
    """
    ranks = sizes(plan)
    pairs = {weight: _first(plan, weight) for weight in ranks}
    tensors: dict[str, Stored] = {}
    halves: dict[str, tuple[str, bool]] = {}
    for weight, (rank, fan_in, fan_out) in ranks.items():
        for name, shape, is_a in (
            (pairs[weight].a, (rank, fan_in), True),
            (pairs[weight].b, (fan_out, rank), False),
        ):
            tensors[name] = Stored(WEIGHTS, "F32", shape)
            halves[name] = (weight, is_a)
    with progress("Concatenate", len(tensors), unit="tensors") as bar:
        write_shard(
            folder / WEIGHTS,
            tensors,
            lambda name: _stacked(plan, *halves[name]),
            lambda name: bar.advance(1, name),
        )
    text = json.dumps(_config(plan, ranks), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    total = sum(tensor.numel for tensor in tensors.values())
    return {"weights": total, "tensors": len(tensors), "rank": max(r for r, _, _ in ranks.values())}


def _first(plan: MergePlan, weight: str) -> Pair:
    return next(a.pairs[weight] for a in _adapters(plan) if weight in a.pairs)


def _stacked(plan: MergePlan, weight: str, is_a: bool) -> torch.Tensor:
    """One layer's lora_A, or its lora_B with weights and scales in its columns."""
    import torch

    parts = []
    for adapter, share in zip(_adapters(plan), plan.settings.weights, strict=True):
        pair = adapter.pairs.get(weight)
        if pair is not None and is_a:
            parts.append(adapter.read(pair.a))
        elif pair is not None:
            parts.append(adapter.read(pair.b) * (share * pair.scale))
    return torch.cat(parts, dim=0 if is_a else 1)


def _config(plan: MergePlan, ranks: Mapping[str, tuple[int, int, int]]) -> dict[str, Any]:
    """PEFT's settings: alpha = rank everywhere, so that the scale is 1."""
    most = max(rank for rank, _, _ in ranks.values())
    module = {weight: weight.removesuffix(".weight") for weight in ranks}
    other = {module[w]: rank for w, (rank, _, _) in ranks.items() if rank != most}
    first = _adapters(plan)[0].config
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": plan.base.name if plan.base is not None else "",
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": _targets(plan, list(module.values())),
        "fan_in_fan_out": bool(first.get("fan_in_fan_out")),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }


def _targets(plan: MergePlan, modules: list[str]) -> list[str]:
    """The layers' last names where these mean exactly the adapted layers, else their full names."""
    leaves = {module.rpartition(".")[2] for module in modules}
    weights = plan.weights(plan.reference).tensors
    meant = {
        name.removesuffix(".weight")
        for name, stored in weights.items()
        if re.search(r"\.weight$", name)
        and len(stored.shape) == 2
        and name.removesuffix(".weight").rpartition(".")[2] in leaves
    }
    return sorted(leaves) if meant == set(modules) else sorted(modules)


def stored_bytes(plan: MergePlan) -> int:
    """Size of the concatenated adapter's weights."""
    return sum(4 * rank * (fan_in + fan_out) for rank, fan_in, fan_out in sizes(plan).values())
