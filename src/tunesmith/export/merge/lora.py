"""LoRA adapters as files: what each adds to a weight, without putting it on a model.

PEFT's definitions (0.21): scale = alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023,
arXiv 2312.03732), both by `rank_pattern` and `alpha_pattern`; DoRA (Liu et al. 2024, arXiv 2402.09353)
gives each row of W + delta the length that was trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError, listed, reason_of
from tunesmith.export.patterns import values_by_pattern
from tunesmith.models.files import refuse_damaged_safetensors

if TYPE_CHECKING:
    import torch

__all__ = ["CONFIG", "WEIGHTS", "Adapter", "Pair", "is_finite", "read_adapter", "read_finite"]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

_HALVES = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_OTHER_MATHS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""Settings of PEFT's that make an adapter more, or other, than a product added to a weight."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that take something out of the base's weights: the adapter belongs to what is left."""


@dataclass(frozen=True)
class Pair:
    """The low-rank change of one layer.

    Attributes:
        module: the layer's name in the base.
        a, b: names of the two matrices in the adapter's file, (rank, in) and (out, rank).
        magnitude: name of DoRA's row lengths; None for a plain LoRA.
        shape: (out, in) of the change as the base stores the weight.
        turned: the base stores the weight as (in, out): an embedding, or GPT-2's layers.
        scale: the product's factor.
    """

    module: str
    a: str
    b: str
    magnitude: str | None
    rank: int
    shape: tuple[int, int]
    turned: bool
    scale: float

    @property
    def weight(self) -> str:
        """The changed tensor's name in the base."""
        return f"{self.module}.weight"


@dataclass(frozen=True)
class Adapter:
    """An adapter in PEFT's format, checked.

    Attributes:
        config: its `adapter_config.json`.
        pairs: name of a weight -> what changes it.
        whole: name of a weight -> name in the file of what replaces it (`modules_to_save`, biases, and the base's
            own weight that PEFT saves beside the pair of an embedding or head).
        base_name: what it calls its base.
    """

    dir: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, Pair]
    whole: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def base_name(self) -> str:
        """What it calls its base."""
        return str(self.config.get("base_model_name_or_path") or "")

    @property
    def has_dora(self) -> bool:
        """Whether a layer's row lengths were trained."""
        return any(pair.magnitude for pair in self.pairs.values())

    def read(self, name: str) -> torch.Tensor:
        """A tensor of its file, in float32.

        Raises:
            ModelError: it holds numbers that are not finite, or cannot be read.
        """
        return read_finite(self.dir / WEIGHTS, name)

    def halves(self, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
        """(rank, in) and (out, rank), float32, without the scale."""
        return self.read(pair.a), self.read(pair.b)

    def delta(self, weight: str) -> torch.Tensor:
        """What a plain LoRA adds to a weight, float32, of the weight's shape."""
        pair = self.pairs[weight]
        a, b = self.halves(pair)
        product = (b @ a).mul_(pair.scale)
        return product.T.contiguous() if pair.turned else product

    def changed(self, weight: str, tensor: torch.Tensor) -> torch.Tensor:
        """A weight of the base as it is under this adapter, float32."""
        if weight in self.whole:
            tensor = self.read(self.whole[weight])
        if weight not in self.pairs:
            return tensor
        sums = tensor + self.delta(weight)
        pair = self.pairs[weight]
        if pair.magnitude is None:
            return sums
        turned = sums.T if pair.turned else sums
        lengths = turned.norm(dim=1, keepdim=True)
        scaled: torch.Tensor = turned * (self.read(pair.magnitude).reshape(-1, 1) / lengths)
        return scaled.T.contiguous() if pair.turned else scaled


def read_finite(file: Path, name: str) -> torch.Tensor:
    """A tensor of a safetensors file in float32.

    Raises:
        ModelError: it cannot be read, or holds numbers that are not finite.
    """
    import torch
    from safetensors import SafetensorError

    from tunesmith.models.nf4 import read_tensor

    try:
        tensor = read_tensor(str(file), name)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the tensor {name} in {file} cannot be read",
            why=reason_of(error),
            fix="copy or make the file again",
        ) from error
    found = tensor.to(torch.float32)
    if not is_finite(found):
        raise ModelError(
            f"the tensor {name} in {file} holds numbers that are not finite",
            why="the file is damaged, or the training diverged",
            fix="leave this model out, restore its file, or train it again",
        )
    return found


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all of a tensor's numbers are finite.

    One number that is not makes their sum so; a sum that overflowed is looked at number by number.
    """
    import torch

    total = tensor.sum(dtype=torch.float32)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder; its file's header is read, no weights.

    Raises:
        ModelError: it is damaged, pickled, no LoRA, or more than a product added to weights; all
            that is wrong is named at once.
    """
    config = _config(folder)
    shapes = _shapes(folder)
    problems = list(_unsupported(config))
    halves, whole = _sorted_keys(shapes)
    pairs: dict[str, Pair] = {}
    numbers = {
        key: values_by_pattern(config.get(table), halves, f"{table} in {folder / CONFIG}")
        for key, table in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"))
    }
    for module, names in halves.items():
        own = {key: values[module] for key, values in numbers.items() if module in values}
        pair = _pair(module, names, shapes, {**config, **own}, problems)
        if pair is not None:
            pairs[pair.weight] = pair
    if not pairs and not problems:
        problems.append("its file holds no lora_A and lora_B")
    if problems:
        raise ModelError(
            f"the adapter in {folder} cannot be merged:\n{listed(problems)}",
            why="its effect on the weights would not be what it was trained to be",
            fix="merge it with the tool that made it, or train a plain LoRA",
        )
    return Adapter(folder, config, pairs, whole, shapes)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(config.get(name) or {}, dict):
                raise ValueError(f"{name} is {config[name]!r}, no table of patterns")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder / CONFIG} cannot be read",
            why=reason_of(error),
            fix="restore the adapter's folder",
        ) from error
    return config


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    file = folder / WEIGHTS
    if not file.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise ModelError(
            f"{folder} holds no {WEIGHTS}",
            why="its weights are pickled, which can run code when loaded"
            if pickled
            else "the adapter's weights are missing",
            fix="save it again with `save_pretrained(folder, safe_serialization=True)`",
        )
    refuse_damaged_safetensors(folder, f"the adapter in {folder} cannot be merged")
    try:
        with safe_open(str(file), framework="pt") as opened:
            names = opened.keys()
            return {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file} is damaged",
            why=reason_of(error),
            fix="restore the adapter's files, or train again",
        ) from error


def _unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    kind = str(config.get("peft_type", "")).rpartition(".")[2]
    if kind != "LORA":
        yield f"it is a {kind or 'nameless'} adapter; only LoRA (with rsLoRA and DoRA) is a change of weights"
    for name in _OTHER_MATHS:
        if config.get(name):
            yield f"{name} is {config[name]!r}"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        yield (
            f"init_lora_weights is {start!r}: it belongs to a base whose weights were changed "
            "before training (PEFT can convert it: path_initial_model_for_weight_conversion)"
        )


def _sorted_keys(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Module -> half -> name in the file; and weight -> name in the file for whole weights."""
    halves: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in names:
        inner = name.removeprefix(PREFIX)
        ending = next((end for end in _HALVES if inner.endswith(f".{end}")), None)
        if ending is not None:
            halves.setdefault(inner[: -len(ending) - 1], {})[_HALVES[ending]] = name
            if ending.startswith("lora_embedding"):
                halves[inner[: -len(ending) - 1]]["embedding"] = name
        else:
            plain = inner.replace(".base_layer.", ".")
            whole[re.sub(r"\.modules_to_save(\.default)?\.", ".", plain)] = name
    return halves, whole


def _pair(
    module: str,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    problems: list[str],
) -> Pair | None:
    """One layer's pair; None, and a problem more, when it is not whole or not as its config says.

    Args:
        config: with the layer's own rank and alpha.
    """
    missing = [f"lora_{half.upper()}" for half in ("a", "b") if half not in names]
    if missing:
        problems.append(f"{module} has no {missing[0]}")
        return None
    if len(shapes[names["a"]]) != 2 or len(shapes[names["b"]]) != 2:
        problems.append(f"{module}: lora_A and lora_B are no matrices")
        return None
    (rank, fan_in), (fan_out, other) = shapes[names["a"]], shapes[names["b"]]
    asked, alpha = config.get("r"), config.get("lora_alpha")
    if rank != other or rank != asked or rank < 1:
        problems.append(
            f"{module}: lora_A has rank {rank}, lora_B {other}, the config says {asked}"
        )
        return None
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        problems.append(f"{module}: lora_alpha is {alpha!r}")
        return None
    embedding = "embedding" in names
    if embedding and "magnitude" in names:
        problems.append(f"{module}: DoRA on an embedding is not known here")
        return None
    if "magnitude" in names and prod(shapes[names["magnitude"]]) != fan_out:
        problems.append(f"{module}: DoRA's magnitudes are not one for each of {fan_out} outputs")
        return None
    turned = embedding or bool(config.get("fan_in_fan_out"))
    return Pair(
        module=module,
        a=names["a"],
        b=names["b"],
        magnitude=names.get("magnitude"),
        rank=rank,
        shape=(fan_in, fan_out) if turned else (fan_out, fan_in),
        turned=turned,
        scale=alpha / (rank**0.5 if config.get("use_rslora") else rank),
    )
