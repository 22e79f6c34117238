"""Trained weights as one model: merged in float32, rounded once and last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import quiet_transformers, save_model

if TYPE_CHECKING:
    import torch

__all__ = [
    "StoredTensor",
    "merge",
    "most_common_format",
    "save_merged",
    "save_tokenizer",
    "stored_tensors",
    "write_rounded",
]

INDEX = "model.safetensors.index.json"
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a safetensors file declares it.

    Attributes:
        dtype: "float32", "float16", "bfloat16" or "float64"; other formats keep safetensors' name.
        numel: number of elements.
        bytes: size in the file.
    """

    dtype: str
    numel: int
    bytes: int


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor in a folder's safetensors files, read from their headers alone.

    Raises:
        ModelError: a file's header is damaged.
    """
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            for name, entry in header.items():
                if name != "__metadata__":
                    found[name] = _stored(entry)
        except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
            raise ModelError(
                f"{file} is damaged: its header cannot be read",
                why=str(error),
                fix="copy or download the model again",
            ) from error
    return found


def _stored(entry: Mapping[str, Any]) -> StoredTensor:
    numel = 1
    for size in entry["shape"]:
        numel *= int(size)
    start, end = entry["data_offsets"]
    return StoredTensor(_NAMES.get(entry["dtype"], entry["dtype"]), numel, end - start)


def merge(model: Any) -> Any:
    """The adapter's product added to the base's weights, in the model's own number format.

    Args:
        model: a `peft.PeftModel` (changed in place) or a plain model (returned as it is).

    Raises:
        ModelError: the adapter holds numbers that are not finite.
    """
    if not hasattr(model, "merge_and_unload"):
        return model
    _untie_adapted_head(model.get_base_model())
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(
            "the adapter cannot be merged into the base",
            why=str(error).splitlines()[0],
            fix="train again: its weights are damaged, or the training diverged",
        ) from error
    return merged.eval()


def _untie_adapted_head(model: Any) -> None:
    """Give head and embedding a matrix each when an adapter changes only one of the two.

    Tied, a merge into one would change the other as well, which base + adapter does not.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or not (
        isinstance(head, BaseTunerLayer) or isinstance(embedding, BaseTunerLayer)
    ):
        return
    import torch

    if head.weight.data_ptr() == embedding.weight.data_ptr():
        plain = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        plain.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def save_merged(model: Any, renderer: ChatRenderer, folder: Path) -> None:
    """A plain model with tokenizer, chat template and stop tokens, as `load_model` reads it."""
    stops = list(renderer.stop_ids)
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    save_model(model, renderer.tokenizer, folder)


def write_rounded(source: Path, base: Path, target: Path) -> None:
    """The float32 model of `source` in `target`, each tensor in the format the base stores it in.

    A tensor that the base does not store (an untied head) takes the base's most common format.

    Raises:
        ModelError: a weight is too large for the format.
    """
    formats = {name: tensor.dtype for name, tensor in stored_tensors(base).items()}
    common = most_common_format(base)
    target.mkdir(parents=True, exist_ok=True)
    total = 0
    for file in sorted(source.iterdir()):
        if file.suffix == ".safetensors":
            total += _round_file(file, formats, common, target / file.name)
        elif file.name not in (INDEX, "config.json"):
            shutil.copyfile(file, target / file.name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    _write_json(target / "config.json", config | {"dtype": common})
    if (source / INDEX).is_file():
        index = json.loads((source / INDEX).read_text(encoding="utf-8"))
        index["metadata"]["total_size"] = total
        _write_json(target / INDEX, index)


def most_common_format(folder: Path) -> str:
    """The number format that holds most weights, such as "float16"; "float32" for odd ones."""
    counts: dict[str, int] = {}
    for tensor in stored_tensors(folder).values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel
    best = max(counts, key=lambda dtype: counts[dtype])
    return best if best in _NAMES.values() else "float32"


def _round_file(file: Path, formats: Mapping[str, str], common: str, target: Path) -> int:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    for name, tensor in tensors.items():
        wanted = formats.get(name, common)
        dtype: torch.dtype = getattr(torch, wanted if wanted in _NAMES.values() else common)
        tensors[name] = _rounded(name, tensor, dtype)
    save_file(tensors, target, metadata={"format": "pt"})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _rounded(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    import torch

    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise ModelError(
            f"the merged weight {name} does not fit into {dtype}",
            why=f"its largest magnitude is {tensor.abs().max().item():g}",
            fix="export without `merged`, or train with a lower learning rate",
        )
    return rounded.contiguous()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tokenizer(renderer: ChatRenderer, folder: Path) -> None:
    """Tokenizer and chat template into a folder."""
    with quiet_transformers():
        renderer.tokenizer.save_pretrained(folder)
