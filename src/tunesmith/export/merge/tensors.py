"""Weights on the disk, read and written one tensor at a time: memory is bounded by the largest one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError, StorageError, reason_of
from tunesmith.export.merge.lora import read_finite
from tunesmith.models.files import refuse_damaged_safetensors
from tunesmith.store import flush_to_disk

if TYPE_CHECKING:
    import torch

__all__ = ["FLOATS", "INDEX", "WHOLE", "Stored", "Weights", "check_room", "write_shard"]

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
FLOATS: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}
"""Number formats of safetensors that can be merged, and what torch calls them."""
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
_SIZES |= {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        format: as safetensors calls it, such as "BF16".
    """

    file: str
    format: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return self.numel * _SIZES.get(self.format, 8)


class Weights:
    """The tensors in a model's folder, by name; only headers are read until one is asked for.

    Raises:
        ModelError: a header is damaged, or there are no safetensors files.
    """

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        self.tensors = _headers(folder)

    def read(self, name: str) -> torch.Tensor:
        """A tensor in float32.

        Raises:
            ModelError: it cannot be read, or is not finite.
        """
        return read_finite(self.dir / self.tensors[name].file, name)

    def raw(self, name: str) -> torch.Tensor:
        """A tensor as it is stored."""
        from tunesmith.models.nf4 import read_tensor

        return read_tensor(str(self.dir / self.tensors[name].file), name)


def _headers(folder: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    refuse_damaged_safetensors(folder, f"the model in {folder} cannot be merged")
    found: dict[str, Stored] = {}
    file = folder / INDEX
    try:
        names = _file_names(folder)
        for file in (folder / name for name in names):
            with safe_open(str(file), framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    part = opened.get_slice(name)
                    found[name] = Stored(file.name, part.get_dtype(), tuple(part.get_shape()))
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"{file} is damaged or missing",
            why=reason_of(error),
            fix="copy or download the model again",
        ) from error
    if not found:
        raise ModelError(
            f"{folder} holds no safetensors weights",
            fix="save the model again with `save_pretrained(folder, safe_serialization=True)`",
        )
    return found


def _file_names(folder: Path) -> list[str]:
    """The files that transformers would read; a folder may hold the same weights in others too."""
    if (folder / WHOLE).is_file():
        return [WHOLE]
    if (folder / INDEX).is_file():
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        found = sorted({str(place) for place in places.values()})
        if any(Path(place).name != place for place in found):
            raise ValueError("it names files outside of the folder")
        return found
    return sorted(file.name for file in folder.glob("*.safetensors"))


def write_shard(
    file: Path,
    tensors: Mapping[str, Stored],
    make: Callable[[str], torch.Tensor],
    done: Callable[[str], None],
) -> None:
    """A safetensors file whose tensors are made and written one after the other.

    The format's header (sizes and places) is known before any tensor is, so that none has to wait.
    Larger elements come first, then names, as safetensors' own writer orders them: all are aligned.

    Args:
        tensors: what the file holds; `Stored.file` is not used.
        make: gives a tensor by its name, in the format that `tensors` says.
        done: called after each.

    Raises:
        StorageError: the disk refuses, by `storage_errors` around this.
        AssertionError: a tensor is not what the header says.
    """
    order = sorted(tensors, key=lambda name: (-_SIZES.get(tensors[name].format, 8), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in order:
        size = tensors[name].bytes
        header[name] = {
            "dtype": tensors[name].format,
            "shape": list(tensors[name].shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for name in order:
            data = _bytes(make(name))
            if data.nbytes != tensors[name].bytes:
                raise AssertionError(f"{name} has {data.nbytes} bytes, {tensors[name].bytes} meant")
            stream.write(data)
            del data
            done(name)
    flush_to_disk(file)


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]


def check_room(place: Path, need: int, name: str) -> None:
    """Refuse a disk that cannot hold the result, before anything is written.

    Raises:
        StorageError: names the bytes that are needed and free.
    """
    import shutil

    there = next(parent for parent in (place, *place.parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < need:
        raise StorageError(
            f"the merge needs {need:,} bytes in {there}, {free:,} are free",
            why=f"the merged {name} is written beside {place.name} first",
            fix="free some space, or name another disk with --out",
        )
