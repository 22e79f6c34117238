"""Safetensors files: what their header says, held against the file's length.

Format: https://github.com/huggingface/safetensors#format, and the checks of its Rust reader (`tensor.rs`): one JSON
object after eight bytes of length; the tensors fill the rest of the file without overlap or hole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.models.files.finding import Finding, Findings, refuse

__all__ = [
    "SafetensorsFile",
    "StoredTensor",
    "look_at_safetensors",
    "refuse_damaged_safetensors",
    "stored_tensors",
]

MOST_HEADER_BYTES = 1 << 25
"""Room for 250,000 tensors; the Rust reader takes up to 100 MB, which as JSON may be gigabytes in memory."""
MOST_DIMENSIONS = 64
_CONTAINERS = 8
"""A header has one `{` or `[` in 17 bytes or more: one that has many more is made to fill the memory."""
_METADATA = "__metadata__"
_FIX = "copy or download the file again, from a source that you trust"
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BITS: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Number format -> bits a number."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a safetensors file declares it.

    Attributes:
        dtype: "float32", "float16", "bfloat16" or "float64"; other formats keep safetensors' name.
        numel: number of elements.
        bytes: size in the file.
        shape: as it is loaded.
        file: name of its file.
        start: first byte in the file.
    """

    dtype: str
    numel: int
    bytes: int
    shape: tuple[int, ...] = ()
    file: str = ""
    start: int = 0


@dataclass
class SafetensorsFile:
    """A header, as far as it could be read.

    Attributes:
        tensors: by name.
        size_bytes: the file's length.
        metadata: texts that the writer added, such as {"format": "pt"}.
        findings: what is wrong with it.
    """

    path: Path
    size_bytes: int = 0
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Nothing is wrong for which it must not be loaded."""
        return not any(one.severity == "error" for one in self.findings)


def look_at_safetensors(path: Path, name: str = "") -> SafetensorsFile:
    """Read a file's header and hold every number in it against the file's length; no weight is read.

    Args:
        name: what findings call the file; the path when empty.

    Raises:
        OSError: the file cannot be opened.
    """
    found = Findings(name or str(path), _FIX)
    file = SafetensorsFile(path, findings=found.found)
    with path.open("rb") as stream:
        file.size_bytes = stream.seek(0, 2)
        stream.seek(0)
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        told = _length_problem(start, length, file.size_bytes)
        if told:
            found.error("safetensors-header", "byte 0", told, _WHY_LENGTH)
            return file
        raw = stream.read(length)
    header = _parsed(raw, found)
    if header is not None:
        _fill(file, found, header, 8 + length)
    return file


_WHY_LENGTH = "the file is cut off, or is no safetensors file whatever its name says"


def _length_problem(start: bytes, length: int, n_bytes: int) -> str:
    if len(start) < 8:
        return f"it has {n_bytes} bytes: not even the length of a header"
    if length > n_bytes - 8:
        return f"its header is said to take {length:,} bytes, {n_bytes - 8:,} follow"
    if length > MOST_HEADER_BYTES:
        return f"its header takes {length:,} bytes; {MOST_HEADER_BYTES:,} is the most"
    return ""


class _Twice(Exception):
    """A name that is there twice."""


def _parsed(raw: bytes, found: Findings) -> dict[str, Any] | None:
    """The header's JSON object, or None when it is none."""
    if not raw.startswith(b"{"):
        found.error(
            "safetensors-header", "byte 8", f"its header starts with {raw[:8]!r}, not with '{{'"
        )
        return None
    if raw.count(b"{") + raw.count(b"[") > len(raw) // _CONTAINERS + 100:
        found.error(
            "safetensors-header", "byte 8", "its header holds thousands of empty lists or objects"
        )
        return None
    twice: list[str] = []
    try:
        header = json.loads(raw, object_pairs_hook=lambda pairs: _object(pairs, twice))
    except (ValueError, RecursionError) as error:
        told = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        found.error("safetensors-header", "byte 8", f"its header is no JSON: {told[:200]}")
        return None
    for name in twice:
        where = f"tensor {name[:200]}"
        found.error(
            "safetensors-duplicate",
            where,
            "the name is there twice",
            "two readers may take two weights",
        )
    return header if isinstance(header, dict) else None


def _object(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                twice.append(name)
            seen.add(name)
    return made


def _fill(file: SafetensorsFile, found: Findings, header: dict[str, Any], data: int) -> None:
    metadata = header.pop(_METADATA, {})
    if isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values()):
        file.metadata = metadata
    else:
        found.error("safetensors-header", f"key {_METADATA}", "it is no table of texts")
    room = file.size_bytes - data
    for name, entry in header.items():
        told = _entry_problem(entry)
        if told:
            found.error("safetensors-entry", f"tensor {name[:200]}", told)
            continue
        tensor = file.tensors[name] = _stored(entry, file.path.name, data)
        wrong = _size_problem(tensor, entry, room)
        if wrong is not None:
            found.error("safetensors-bounds", f"tensor {name[:200]}", *wrong)
    if found.is_sound:
        _check_filled(file, found, data)


def _entry_problem(entry: Any) -> str:
    """Why a tensor's entry cannot be understood."""
    if not isinstance(entry, dict):
        return f"its entry is {str(entry)[:50]!r} and no object"
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(entry.get("dtype"), str) or entry["dtype"] not in BITS:
        return f"its number format is {str(entry.get('dtype'))[:50]!r}, which is not known"
    if not _is_counts(shape, MOST_DIMENSIONS):
        return f"its shape is {str(shape)[:100]}"
    if not _is_counts(offsets, 2) or len(offsets) != 2:
        return f"its data_offsets are {str(offsets)[:100]}"
    if prod(shape) >= 1 << 63:
        return f"its shape {str(shape)[:100]} overflows"
    return ""


def _is_counts(value: Any, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(one) is int and 0 <= one < 1 << 63 for one in value)
    )


def _stored(entry: Mapping[str, Any], file: str, data: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    dtype = _NAMES.get(entry["dtype"], entry["dtype"])
    return StoredTensor(dtype, prod(shape), end - start, shape, file, data + start)


def _size_problem(
    tensor: StoredTensor, entry: Mapping[str, Any], room: int
) -> tuple[str, str] | None:
    start, end = entry["data_offsets"]
    bits = tensor.numel * BITS[entry["dtype"]]
    if end > room:
        return (
            f"it ends at byte {end:,} of the weights, of which the file holds {max(room, 0):,}",
            "the file was cut off, or its header is not that of its weights",
        )
    if bits % 8 or bits // 8 != end - start:
        return (
            f"{list(tensor.shape)} in {entry['dtype']} takes {bits / 8:,.15g} bytes, it has {end - start:,}",
            "its header is not that of its weights",
        )
    return None


def _check_filled(file: SafetensorsFile, found: Findings, data: int) -> None:
    """One tensor after the other, from the header's end to the file's."""
    position, before = data, "the header"
    for name, tensor in sorted(file.tensors.items(), key=lambda one: (one[1].start, one[1].bytes)):
        if tensor.start < position:
            told = f"it starts {position - tensor.start:,} bytes inside {before}"
            found.error("safetensors-overlap", f"tensor {name[:200]}", told, _WHY_PLACES)
        elif tensor.start > position:
            told = f"{tensor.start - position:,} bytes between {before} and it belong to no tensor"
            found.error("safetensors-hole", f"tensor {name[:200]}", told, _WHY_PLACES)
        position, before = max(position, tensor.start + tensor.bytes), f"tensor {name[:200]}"
    if position < file.size_bytes:
        told = f"{file.size_bytes - position:,} bytes follow the last tensor"
        found.error("safetensors-trailing", f"byte {position:,}", told, _WHY_PLACES)


_WHY_PLACES = "safetensors' own reader refuses it: another file may be hidden in there"


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor in a folder's safetensors files, read from their headers alone.

    Raises:
        ModelError: a file's header is damaged.
    """
    return {name: tensor for file in _sound(folder, "") for name, tensor in file.tensors.items()}


def refuse_damaged_safetensors(folder: Path, what: str) -> None:
    """Nothing, when each safetensors file of a folder is what its header says.

    Args:
        what: what cannot be done then, for the error.

    Raises:
        ModelError: names everything that is wrong with the first that is not.
    """
    for _ in _sound(folder, what):
        continue


def _sound(folder: Path, what: str) -> Iterator[SafetensorsFile]:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            file = look_at_safetensors(path)
        except OSError as error:
            raise ModelError(
                f"{path} cannot be read", why=str(error), fix="mend the link or its permissions"
            ) from error
        told = f"{path} is damaged: its header cannot be read, or is not that of its weights"
        refuse(
            file.findings,
            f"{what}: {told}" if what else told,
            "restore the file: copy or download it again, or make it again",
        )
        yield file
