"""A folder with config.json and safetensors weights: index, shards, names, shapes, formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.export.check.report import Desk
from tunesmith.models.files import (
    Findings,
    SafetensorsFile,
    StoredTensor,
    check_counts,
    look_at_safetensors,
    read_json_object,
)

__all__ = ["INDEX", "Weights", "check_config", "embedding_rows", "read_weights", "weights_of"]

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
Weights = Mapping[str, StoredTensor]

_COPY = "copy or download the file again"
_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)


def read_weights(desk: Desk, folder: Path) -> dict[str, SafetensorsFile]:
    """The headers of all safetensors files of a folder, by name of the file."""
    read = {}
    for path in sorted(folder.glob("*.safetensors")):
        if not path.is_file():
            continue
        file = read[path.name] = look_at_safetensors(path, desk.name(path))
        desk.take(path, file.findings)
    return read


def weights_of(desk: Desk, folder: Path, files: Mapping[str, SafetensorsFile]) -> Weights:
    """Every tensor that a loader takes, by name; the index and the shards held against each other."""
    index = folder / INDEX
    if index.is_file():
        return _indexed(desk, index, files)
    found = desk.about(folder / WHOLE, _COPY)
    if WHOLE in files:
        for name in files:
            if name != WHOLE:
                told = f"{name} lies beside it and no index names it: nothing loads it"
                found.warning("weights-extra", "", told, "", f"delete {name} or add its index")
        return files[WHOLE].tensors
    if files:
        told = f"{', '.join(sorted(files)[:4])}: shards without {INDEX}"
        fix = "copy or download the index too"
        desk.about(index, fix).error("weights-index", "", told, "a loader finds no weights")
    else:
        why = "only safetensors weights are loaded: pickled ones can run code"
        found.error("weights-missing", "", "there are no safetensors weights", why)
    return {name: tensor for file in files.values() for name, tensor in file.tensors.items()}


def _indexed(desk: Desk, path: Path, files: Mapping[str, SafetensorsFile]) -> Weights:
    found = desk.about(path, "copy or download the index and the shards again, together")
    index = read_json_object(path, found)
    places = index.get("weight_map") if index else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        if index is not None:
            found.error("weights-index", "key weight_map", "it is no table of tensor and file")
        return {}
    weights = {}
    for name, file in places.items():
        if Path(file).name != file:
            found.error(
                "link-outside", f"tensor {name}", f"its file {file[:200]!r} is not in the folder"
            )
        elif file not in files:
            found.error("weights-missing", f"tensor {name}", f"its shard {file} is not there")
        elif name not in files[file].tensors:
            real = [other for other, one in files.items() if name in one.tensors]
            told = f"its shard {file} does not hold it" + (f", {real[0]} does" if real else "")
            found.error(
                "weights-index", f"tensor {name}", told, "loading fails, or leaves it random"
            )
        else:
            weights[name] = files[file].tensors[name]
    _check_unnamed(found, places, files)
    _check_total(found, index or {}, weights)
    return weights


def _check_unnamed(
    found: Findings, places: Mapping[str, str], files: Mapping[str, SafetensorsFile]
) -> None:
    for file, header in files.items():
        twice = [n for n in header.tensors if n in places and places[n] != file]
        for name in twice:
            told = f"{file} holds it too; the index names {places[name]}"
            found.error("weights-twice", f"tensor {name}", told, "two loaders may take two weights")
        unnamed = [name for name in header.tensors if name not in places]
        if unnamed:
            told = f"{file} holds {len(unnamed)} tensors that the index does not name"
            found.warning("weights-extra", f"tensor {unnamed[0]}", told, "nothing loads them")


def _check_total(found: Findings, index: Mapping[str, Any], weights: Weights) -> None:
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    real = sum(tensor.bytes for tensor in weights.values())
    if isinstance(total, int) and total != real and found.is_sound:
        told = f"it says {total:,} bytes, the tensors have {real:,}"
        found.note("weights-total", "key metadata.total_size", told)


def check_config(desk: Desk, folder: Path, weights: Weights) -> dict[str, Any] | None:
    """config.json: its numbers, code of its own, and number formats; None when it cannot be used."""
    path = folder / "config.json"
    found = desk.about(path, "restore the model's own config.json")
    config = read_json_object(path, found)
    if config is None:
        return None
    if not isinstance(config.get("model_type"), str):
        found.error(
            "config-type", "key model_type", "it names no architecture", "nothing can load it"
        )
    if config.get("auto_map"):
        found.warning(
            "code",
            "key auto_map",
            f"it wants code of its own: {str(config['auto_map'])[:200]}",
            "loaders with trust_remote_code run it; tunesmith never does",
            "use a model whose architecture transformers has",
        )
    check_counts(found, config, len(weights))
    _check_formats(desk, folder, config, weights)
    return config if found.is_sound else None


def _check_formats(desk: Desk, folder: Path, config: Mapping[str, Any], weights: Weights) -> None:
    kinds: dict[str, int] = {}
    for tensor in weights.values():
        kinds[tensor.dtype] = kinds.get(tensor.dtype, 0) + tensor.numel
    desk.tell(
        folder,
        architecture=str(config.get("model_type")),
        tensors=len(weights),
        parameters=sum(kinds.values()),
        formats=kinds,
        bytes=sum(tensor.bytes for tensor in weights.values()),
    )
    quantised = isinstance(config.get("quantization_config"), dict)
    odd = sorted(set(kinds) - _FLOATS)
    if odd and not quantised:
        names = [name for name, tensor in weights.items() if tensor.dtype in odd]
        desk.about(folder / "config.json", "restore quantization_config").warning(
            "weights-format",
            f"tensor {names[0]}",
            f"{len(names)} tensors are in {', '.join(odd)}, and config.json names no quantisation",
            "they would be read as numbers that they are not",
        )
    said = str(config.get("dtype") or config.get("torch_dtype") or "")
    most = max(kinds, key=lambda kind: kinds[kind]) if kinds else ""
    if said in _FLOATS and most in _FLOATS and said != most:
        desk.about(folder / "config.json", f'set "dtype": "{most}"').warning(
            "weights-format",
            "key dtype",
            f"it says {said}; most weights are in {most}",
            "loaders that follow it convert the weights, which may lose precision",
        )


def embedding_rows(weights: Weights, config: Mapping[str, Any] | None) -> int | None:
    """Rows of the embedding: tokens with a higher id would read beyond it."""
    for name, tensor in weights.items():
        if name.endswith(_EMBEDDINGS) and len(tensor.shape) == 2 and "lora" not in name:
            return tensor.shape[0]
    text = config.get("text_config") if config else None
    size = (config or {}).get("vocab_size") or (text if isinstance(text, dict) else {}).get(
        "vocab_size"
    )
    return size if isinstance(size, int) else None


def single_file(desk: Desk, path: Path) -> Sequence[SafetensorsFile]:
    """A safetensors file on its own."""
    file = look_at_safetensors(path, desk.name(path))
    desk.take(path, file.findings)
    desk.tell(
        path,
        tensors=len(file.tensors),
        parameters=sum(tensor.numel for tensor in file.tensors.values()),
        bytes=file.size_bytes,
    )
    return [file]
