"""A PEFT adapter as a GGUF LoRA file, which llama.cpp puts on the base model's own GGUF file.

What llama.cpp reads (its src/llama-adapter.cpp and .h): for each adapted tensor a pair `NAME.lora_a`,
`NAME.lora_b`, and one `adapter.lora.alpha` for the whole file. It adds `alpha / rank * B A x`, where
the rank is that of the pair. PEFT has a scale a module (rsLoRA, `alpha_pattern`, `rank_pattern`). So
what is left of a module's scale is multiplied into its B; for plain LoRA that factor is exactly 1.

llama.cpp's converter moves rows of some weights (query and key of Llama's kind) and splits others. It
is shown numbered rows, and B's rows go where it puts them, whatever the architecture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError, listed, reason_of
from tunesmith.export.convert import open_converter
from tunesmith.export.patterns import values_by_pattern
from tunesmith.store import storage_errors

if TYPE_CHECKING:
    import torch

    from tunesmith.export.forms import Sources

__all__ = ["write", "write_lora"]

MERGE_INSTEAD = (
    "export it merged: leave `gguf-lora` out of export.forms, and take `merged` or a GGUF form"
)
_PREFIX = "base_model.model."
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA rescales the columns of the merged weight; a LoRA file holds only what is added",
    "lora_bias": "it trains a bias beside each B, and a LoRA file has no place for one",
    "modules_to_save": "it holds whole trained modules, and llama.cpp reads only pairs of A and B",
    "trainable_token_indices": "it trains single tokens' embeddings, which a LoRA file cannot hold",
    "layer_replication": "it repeats layers, so that the base as GGUF is another model",
    "target_parameters": "it adapts stacked experts, which llama.cpp stores otherwise",
    "alora_invocation_tokens": "it acts only behind its invocation tokens",
    "use_qalora": "QALoRA pools the inputs of A",
    "use_bdlora": "its A or B are block-diagonal",
    "arrow_config": "it routes between adapters",
    "kasa_config": "KaSA changes the base's weights",
    "monteclora_config": "it samples its weights",
    "fan_in_fan_out": "its base stores weights transposed",
}
"""Settings of `peft.LoraConfig` under which base + adapter is not `W x + scale * B A x`."""
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base's weights as they are."""


@dataclass(frozen=True)
class Pair:
    """The low-rank product that PEFT adds to one module's weight.

    Attributes:
        module: name in the base, such as "model.layers.0.self_attn.q_proj".
        a: (rank, inputs), or (rank, tokens) of an embedding; float32.
        b: (outputs, rank), or (width, rank) of an embedding; float32.
        scale: what PEFT multiplies the product by.
        is_embedding: whether the module looks tokens up.
    """

    module: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    is_embedding: bool

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that the product is added to, as the base stores it."""
        if self.is_embedding:
            return int(self.a.shape[1]), int(self.b.shape[0])
        return int(self.b.shape[0]), int(self.a.shape[1])


def write(sources: Sources, target: Path) -> Mapping[str, Any]:
    """The run's adapter as a GGUF LoRA file.

    Raises:
        ModelError: the run has no adapter, or one that llama.cpp cannot apply.
        EnvironmentProblem: the converter is not installed.
        StorageError: the disk refuses.
    """
    folder = sources.trained.folder("adapter")
    return write_lora(folder, sources.base.dir, target, name=sources.name)


def write_lora(adapter: Path, base: Path, target: Path, *, name: str) -> dict[str, Any]:
    """A folder in PEFT's format as a GGUF LoRA file, all in float32.

    Args:
        adapter: `adapter_config.json` and `adapter_model.safetensors`.
        base: the model that it was trained on, in Hugging Face's layout; its weights are not read,
            but for whole weights that the adapter repeats.
        name: what the file calls the adapter.

    Returns:
        Facts: alpha, number of modules, ranks, and how many modules' B carry a factor.

    Raises:
        ModelError: llama.cpp cannot apply this adapter, or it does not fit the base.
        EnvironmentProblem: the converter is not installed.
        StorageError: the disk refuses.
    """
    import gguf

    config = _config(adapter)
    _refuse_settings(config, adapter)
    converter = open_converter(base)
    pairs = _pairs(adapter, config, converter)
    _refuse_tied(pairs, converter, adapter)
    alpha = float(config["lora_alpha"])
    alpha = alpha if alpha > 0 else 1.0
    writer = gguf.GGUFWriter(target, converter.gguf_writer.arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for tensor_name, tensor in _tensors(pairs, converter, alpha):
        writer.add_tensor(tensor_name, tensor.contiguous().numpy())
    try:
        with storage_errors(target):
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    finally:
        writer.close()
    return {
        "alpha": alpha,
        "modules": len(pairs),
        "ranks": sorted({pair.rank for pair in pairs}),
        "modules_with_a_factor": sum(_factor(pair, alpha) != 1.0 for pair in pairs),
    }


def _config(adapter: Path) -> dict[str, Any]:
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        if config.get("peft_type") == "LORA":
            float(config["lora_alpha"]), int(config["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the adapter in {adapter} has no readable adapter_config.json",
            why=f"{type(error).__name__}: {error}",
            fix="restore its files, or train again",
        ) from error
    return config


def _refuse_settings(config: Mapping[str, Any], adapter: Path) -> None:
    """Name everything in the config that llama.cpp's sum cannot express."""
    problems = [f"{key}: {why}" for key, why in _REFUSED.items() if config.get(key)]
    kind, bias, start = (config.get(k) for k in ("peft_type", "bias", "init_lora_weights"))
    if kind != "LORA":
        problems = [f"peft_type {kind!r}: llama.cpp's adapters are LoRA"]
    elif bias not in (None, "none"):
        problems.append(f"bias {bias!r}: it trains biases, and a LoRA file has no place for them")
    if start not in _PLAIN_STARTS:
        problems.append(f"init_lora_weights {start!r}: PEFT changes the base's weights for it")
    if problems:
        raise ModelError(
            f"the adapter in {adapter} cannot be a GGUF LoRA file:\n{listed(problems)}",
            why="llama.cpp computes W x + scale * B A x and nothing else",
            fix=MERGE_INSTEAD,
        )


def _pairs(adapter: Path, config: Mapping[str, Any], converter: Any) -> list[Pair]:
    """Every pair with its scale; refuses whatever else the file holds.

    Raises:
        ModelError: a damaged file, unknown entries, or a rank that the config does not name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(adapter / "adapter_model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the adapter in {adapter} cannot be read",
            why=reason_of(error),
            fix="restore its files, or train again",
        ) from error
    found: dict[str, dict[str, torch.Tensor]] = {}
    rest: list[str] = []
    for key, tensor in tensors.items():
        module, part = _split(key)
        if part in ("A", "B"):
            found.setdefault(module, {})[part] = tensor.float()
        elif not _same_as_base(module, part, tensor, converter):
            rest.append(key)
    halves = [module for module, parts in found.items() if len(parts) == 1]
    if rest or halves or not found:
        raise ModelError(
            f"the adapter in {adapter} cannot be a GGUF LoRA file",
            why=_what_else(rest, halves),
            fix=MERGE_INSTEAD if rest else "restore its files, or train again",
        )
    embeddings = {_split(key)[0] for key in tensors if ".lora_embedding_" in key}
    ranks, alphas = (
        values_by_pattern(config.get(key), found, f"{key} of the adapter in {adapter}")
        for key in ("rank_pattern", "alpha_pattern")
    )
    return [
        _pair(
            module,
            (parts["A"], parts["B"]),
            int(ranks.get(module, config["r"])),
            float(alphas.get(module, config["lora_alpha"])),
            is_embedding=module in embeddings,
            is_rslora=bool(config.get("use_rslora")),
        )
        for module, parts in sorted(found.items())
    ]


def _what_else(rest: list[str], halves: list[str]) -> str:
    if rest:
        return (
            f"it holds {len(rest)} entries that are no LoRA pair and not the base's own weights, "
            f"such as {rest[0]} (resized or trained embeddings, biases, whole modules)"
        )
    return f"{halves[0]} has only one of A and B" if halves else "it holds no A and B"


def _split(key: str) -> tuple[str, str]:
    """A key of PEFT's file as the base's module and "A", "B", or what else it names."""
    name = key.removeprefix(_PREFIX)
    for part in ("A", "B"):
        for suffix in (f".lora_{part}.weight", f".lora_embedding_{part}"):
            if name.endswith(suffix):
                return name.removesuffix(suffix), part
    for suffix in (".base_layer.weight", ".weight"):
        if name.endswith(suffix) and ".lora_" not in name:
            return name.removesuffix(suffix), "weight"
    return name, ""


def _same_as_base(module: str, part: str, tensor: torch.Tensor, converter: Any) -> bool:
    """PEFT repeats embeddings that an adapter targets: of no concern when they are the base's."""
    import torch

    if part != "weight":
        return False
    known = converter.model_tensors
    stored = known.get(f"{module}.weight")
    if stored is None and module == "lm_head":
        stored = known.get("model.embed_tokens.weight")  # A tied head is stored once.
    if stored is None:
        return False
    wanted = stored()
    return wanted.shape == tensor.shape and torch.equal(_eager(wanted).float(), tensor.float())


def _eager(tensor: Any) -> Any:
    """The converter reads weights only when their numbers are asked for."""
    return tensor if not hasattr(tensor, "to_eager") else type(tensor).to_eager(tensor)


def _pair(
    module: str,
    halves: tuple[torch.Tensor, torch.Tensor],
    rank: int,
    alpha: float,
    *,
    is_embedding: bool,
    is_rslora: bool,
) -> Pair:
    """The pair with the scale that `peft.tuners.lora.LoraModel` gives this module."""
    import torch

    a, b = halves
    if (a.dim(), b.dim()) != (2, 2) or a.shape[0] != rank or b.shape[1] != rank:
        raise ModelError(
            f"the adapter's {module} has A of {tuple(a.shape)} and B of {tuple(b.shape)}, "
            f"its config says rank {rank}",
            fix="restore its files, or train again",
        )
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise ModelError(
            f"the adapter's {module} holds numbers that are not finite",
            fix="train again: its weights are damaged, or the training diverged",
        )
    scale = alpha / (math.sqrt(rank) if is_rslora else rank)
    return Pair(module, a, b, scale, is_embedding)


def _refuse_tied(pairs: list[Pair], converter: Any, adapter: Path) -> None:
    """With one matrix for embedding and head, llama.cpp has one name for both."""
    tied = bool(converter.hparams.get("tie_word_embeddings"))
    tied = tied or "lm_head.weight" not in converter.model_tensors
    ends = [pair.module for pair in pairs if pair.is_embedding or pair.module == "lm_head"]
    if tied and ends:
        raise ModelError(
            f"the adapter in {adapter} changes {' and '.join(ends)} of a model whose head is tied "
            "to its embedding",
            why="llama.cpp keeps one tensor for both and would apply the change in both places",
            fix=MERGE_INSTEAD,
        )


def _factor(pair: Pair, alpha: float) -> float:
    """What B must be multiplied by, so that llama.cpp's `alpha / rank` makes PEFT's scale of it."""
    import numpy as np

    return float(np.float32(pair.scale * pair.rank / alpha))


def _tensors(pairs: list[Pair], converter: Any, alpha: float) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and content of every tensor of the file. An embedding's A is transposed there."""
    for pair in pairs:
        factor = _factor(pair, alpha)
        for name, rows in _rows(pair, converter):
            if pair.is_embedding:
                yield f"{name}.lora_a", pair.a.T[rows]
                yield f"{name}.lora_b", pair.b * factor
            else:
                yield f"{name}.lora_a", pair.a
                yield f"{name}.lora_b", pair.b[rows] * factor


def _rows(pair: Pair, converter: Any) -> list[tuple[str, torch.Tensor]]:
    """GGUF tensors that hold the module's weight: name, and which of its rows, in order.

    Raises:
        ModelError: the base has no such weight, or the converter does more than move its rows.
    """
    import torch

    outputs, inputs = pair.shape
    name, stored = _stored(pair, converter)
    if tuple(stored.shape) != pair.shape:
        raise ModelError(
            f"the adapter's {pair.module} is made for a weight of {pair.shape}, the base's has "
            f"{tuple(stored.shape)}",
            why="it was trained on another model",
            fix="give the base that it was trained on",
        )
    block = next((int(part) for part in name.split(".") if part.isdecimal()), None)
    numbered = torch.arange(outputs, dtype=torch.float32)[:, None].expand(outputs, inputs)
    columns = torch.arange(inputs, dtype=torch.float32).expand(outputs, inputs)
    found = list(converter.modify_tensors(numbered, name, block))
    others = list(converter.modify_tensors(columns, name, block))
    rows = [tensor[:, 0] for _, tensor in found if tensor.dim() == 2 and tensor.shape[1] == inputs]
    whole = 0 < len(found) == len(rows) and all(
        torch.equal(tensor, row[:, None].expand_as(tensor))
        and torch.equal(column, columns[:1].expand_as(column))
        and bool(((row >= 0) & (row < outputs) & (row == row.round())).all())
        for row, (_, tensor), (_, column) in zip(rows, found, others, strict=True)
    )
    if not whole:
        raise ModelError(
            f"the adapter's {pair.module} cannot be a GGUF LoRA pair",
            why="llama.cpp's converter does more with this weight than to move its rows",
            fix=MERGE_INSTEAD,
        )
    return [(gguf_name, row.long()) for row, (gguf_name, _) in zip(rows, found, strict=True)]


def _stored(pair: Pair, converter: Any) -> tuple[str, Any]:
    """Name that the converter knows the module's weight by, and the weight."""
    item = converter.filter_tensors((f"{pair.module}.weight", lambda: None))
    name = item[0] if item else ""
    if name not in converter.model_tensors:
        raise ModelError(
            f"the adapter changes {pair.module}, and the base has no such weight",
            why="it was trained on another model, or the converter leaves this weight out",
            fix=f"give the base that it was trained on; else {MERGE_INSTEAD}",
        )
    return name, converter.model_tensors[name]()
