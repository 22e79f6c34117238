"""What a quantised GGUF file is made of, and what stands before its weights."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, BinaryIO

from tunesmith.export.quantise import kernels
from tunesmith.export.quantise.policy import Choice, dimensions, row_of

if TYPE_CHECKING:
    from tunesmith.export.quantise.importance import Importance
    from tunesmith.models.files.gguf import GgufFile, GgufTensor

__all__ = ["Target", "header_of", "pad"]

_VERSION_KEY, _TYPE_KEY = "general.quantization_version", "general.file_type"
_QUANTISATION_VERSION = 2
"""GGML_QNT_VERSION of `ggml.h`."""
_REWRITTEN = (_VERSION_KEY, _TYPE_KEY, "split.no", "split.count", "split.tensors.count")
_OF_IMPORTANCE = (
    *("quantize.imatrix.file", "quantize.imatrix.dataset"),
    *("quantize.imatrix.entries_count", "quantize.imatrix.chunks_count"),
)
_UINT32, _TEXT = 4, 8


@dataclass(frozen=True)
class Target:
    """A tensor of the new file."""

    tensor: GgufTensor
    choice: Choice

    @property
    def row(self) -> int:
        """Weights a row."""
        return row_of(self.tensor)

    @property
    def rows(self) -> int:
        """Rows of all experts."""
        return prod(self.tensor.shape[1:])

    @property
    def bytes(self) -> int:
        """Without padding."""
        form = kernels.TYPES[self.choice.type][1]
        return prod(self.tensor.shape) // form.block * form.bytes


def header_of(
    file: GgufFile,
    targets: list[Target],
    number: int,
    importance: Importance | None,
    alignment: int,
) -> bytes:
    """All before the weights, as llama.cpp orders it.

    Args:
        number: the file type's.
    """
    rewritten = _REWRITTEN if importance is None else (*_REWRITTEN, *_OF_IMPORTANCE)
    pairs = [file.pair(key) for key in file.keys if key not in rewritten]
    pairs += [_number(_VERSION_KEY, _QUANTISATION_VERSION), _number(_TYPE_KEY, number)]
    if importance is not None:
        texts = (importance.file[:127], importance.dataset[:127])
        counts = (len(importance.values), importance.chunks)
        pairs += [_text(k, v) for k, v in zip(_OF_IMPORTANCE[:2], texts, strict=True)]
        pairs += [_number(k, v) for k, v in zip(_OF_IMPORTANCE[2:], counts, strict=True)]
    entries, offset = [], 0
    for one in targets:
        shape = one.tensor.shape[: dimensions(one.tensor.shape)]
        kind = kernels.TYPES[one.choice.type][0]
        entries.append(_packed(one.tensor.name) + struct.pack("<I", len(shape)))
        entries.append(struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset))
        offset += -(-one.bytes // alignment) * alignment
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(targets), len(pairs))
    return b"".join([head, *pairs, *entries])


def _packed(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _number(key: str, value: int) -> bytes:
    return _packed(key) + struct.pack("<II", _UINT32, value)


def _text(key: str, value: str) -> bytes:
    return _packed(key) + struct.pack("<I", _TEXT) + _packed(value)


def pad(out: BinaryIO, alignment: int) -> None:
    """Zeros up to the next multiple."""
    out.write(b"\0" * (-out.tell() % alignment))
