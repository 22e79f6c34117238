"""Trained weights as one model: merged in float32, rounded once and last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import ModelConfig
from tunesmith.errors import ModelError, reason_of
from tunesmith.export.forms import Sources
from tunesmith.export.gguf_tokenizer import keep_model_file
from tunesmith.export.reference import answer_logits
from tunesmith.models.adapters import put_adapter
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.files import stored_tensors
from tunesmith.models.load import load_model, quiet_transformers, resolve_base, save_model

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from tunesmith.engine.backends.transformers import TransformersBackend

__all__ = [
    "adapter_answers",
    "folder_answers",
    "merge",
    "most_common_format",
    "open_adapter",
    "open_folder",
    "save_merged",
    "save_tokenizer",
    "write_adapter",
    "write_merged",
    "write_rounded",
]

INDEX = "model.safetensors.index.json"
_FORMATS = ("float64", "float32", "float16", "bfloat16")


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
            why=reason_of(error),
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


def write_adapter(sources: Sources, target: Path) -> dict[str, Any]:
    """The form `adapter`: the files as trained; the config names the base as cards do, never a path
    of this disk."""
    source = sources.trained.folder("adapter")
    for name in sources.trained.files:
        if name.startswith("adapter/"):
            place = target / Path(name).relative_to("adapter")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sources.trained.dir / name, place)
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    _write_json(
        target / "adapter_config.json", config | {"base_model_name_or_path": sources.base.name}
    )
    return {}


def adapter_answers(
    place: Path, sources: Sources, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """See `forms.Answers`: PEFT on the base, in float32."""
    import torch

    model = put_adapter(load_model(sources.base, torch.float32), place)
    yield from answer_logits(model, rows, starts)


def open_adapter(
    place: Path, base: ModelConfig, renderer: ChatRenderer, _context: int
) -> TransformersBackend:
    """See `forms.Opener`: PEFT on the base, in float32."""
    import torch

    model = put_adapter(load_model(resolve_base(base), torch.float32), place)
    return _backend(model, renderer)


def open_folder(
    place: Path, _base: ModelConfig, renderer: ChatRenderer, _context: int
) -> TransformersBackend:
    """See `forms.Opener`: transformers, in float32."""
    import torch

    return _backend(load_model(place, torch.float32), renderer)


def _backend(model: Any, renderer: ChatRenderer) -> TransformersBackend:
    from tunesmith.engine.backends.transformers import TransformersBackend

    return TransformersBackend(model, renderer.tokenizer, stop_ids=renderer.stop_ids)


def write_merged(sources: Sources, target: Path) -> dict[str, Any]:
    """The form `merged`."""
    write_rounded(sources.merged, sources.base.dir, target)
    return {"format": most_common_format(sources.base.dir)}


def folder_answers(
    place: Path, _sources: Sources, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """See `forms.Answers`: transformers, in float32."""
    import torch

    yield from answer_logits(load_model(place, torch.float32), rows, starts)


def save_merged(model: Any, renderer: ChatRenderer, folder: Path) -> None:
    """A plain model with tokenizer, chat template and stop tokens, as `load_model` reads it."""
    stops = list(renderer.stop_ids)
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    save_model(model, renderer.tokenizer, folder)
    keep_model_file(renderer.tokenizer, folder)


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
    return best if best in _FORMATS else "float32"


def _round_file(file: Path, formats: Mapping[str, str], common: str, target: Path) -> int:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    for name, tensor in tensors.items():
        wanted = formats.get(name, common)
        dtype: torch.dtype = getattr(torch, wanted if wanted in _FORMATS else common)
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
    keep_model_file(renderer.tokenizer, folder)
