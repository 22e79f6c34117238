"""The numbers themselves: not finite, all zero, all the same. Read in pieces, as integers of their bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.export.check.report import Desk
from tunesmith.models.files import Findings, GgufFile, GgufTensor, SafetensorsFile, StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SCANNED_BYTES", "scan_gguf", "scan_safetensors"]

SCANNED_BYTES = 1 << 30
"""Up to so many bytes of weights are read unasked: a second or two."""
_CHUNK = 1 << 24

_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "float16": ("<u2", 0x7C00),
    "bfloat16": ("<u2", 0x7F80),
    "float32": ("<u4", 0x7F80_0000),
    "float64": ("<u8", 0x7FF0_0000_0000_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}
"""Format -> integer of its bits, and the bits of an exponent that means infinite or no number."""

_SCALES: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "Q1_0"), (0,)),
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "Q2_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q8_1", "Q4_K", "Q5_K"), (0, 2)),
    **{"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,)},
}
"""Quantised format -> where in a block its float16 scales stand (`ggml/src/ggml-common.h`)."""

_NAN = "one such weight makes every logit no number"
_FIX = "restore the file, or train, merge or convert again"


def scan_safetensors(desk: Desk, path: Path, file: SafetensorsFile) -> None:
    """Every weight of a file whose header is sound."""
    found = desk.about(path, _FIX)
    for name, tensor in file.tensors.items():
        _scan(desk, found, name, path, tensor)


def _scan(desk: Desk, found: Findings, name: str, path: Path, tensor: StoredTensor) -> None:
    kind = _EXPONENTS.get(tensor.dtype)
    if kind is None:
        desk.options.advance(tensor.bytes)
        return
    bits, exponent = kind
    summary = _Summary(bits, exponent)
    for piece in _pieces(path, tensor.start, tensor.bytes, bits):
        summary.add(piece)
        desk.options.advance(piece.nbytes)
    _tell(found, f"tensor {name}", summary, is_matrix=len(tensor.shape) > 1)


class _Summary:
    """What is known of a tensor's numbers after some of its pieces."""

    def __init__(self, bits: str, exponent: int) -> None:
        self.exponent = exponent
        self.magnitude = (1 << (8 * int(bits[2:]) - 1)) - 1
        self.seen = self.first_bad = 0
        self.bad = 0
        self.first: Any = None
        self.is_zero = self.is_constant = True

    def add(self, piece: NDArray[Any]) -> None:
        import numpy as np

        if not piece.size:
            return
        exponent = piece.dtype.type(self.exponent)
        is_bad = (piece & exponent) == exponent
        if is_bad.any():
            if not self.bad:
                self.first_bad = self.seen + int(np.argmax(is_bad))
            self.bad += int(np.count_nonzero(is_bad))
        if self.first is None:
            self.first = piece[0]
        self.is_zero = self.is_zero and not (piece & piece.dtype.type(self.magnitude)).any()
        self.is_constant = self.is_constant and bool((piece == self.first).all())
        self.seen += piece.size


def _tell(found: Findings, where: str, summary: _Summary, *, is_matrix: bool) -> None:
    if summary.bad:
        told = f"{summary.bad:,} of {summary.seen:,} numbers are not finite, the first at {summary.first_bad:,}"
        found.error("values-finite", where, told, _NAN)
    elif is_matrix and summary.seen > 1 and summary.is_zero:
        why = "it adds nothing: it was never trained, or never written"
        found.warning("values-zero", where, "all its numbers are zero", why)
    elif is_matrix and summary.seen > 1 and summary.is_constant:
        why = "it was never trained, or never written"
        found.warning("values-constant", where, "all its numbers are the same", why)


def _pieces(path: Path, start: int, n_bytes: int, bits: str) -> Iterator[NDArray[Any]]:
    """Read, not mapped: a file that shrinks meanwhile must not end the process."""
    import numpy as np

    with path.open("rb") as stream:
        stream.seek(start)
        while n_bytes > 0 and (data := stream.read(min(_CHUNK, n_bytes))):
            n_bytes -= len(data)
            width = np.dtype(bits).itemsize
            yield np.frombuffer(data[: len(data) // width * width], bits)


def scan_gguf(desk: Desk, file: GgufFile) -> None:
    """Every number of plain tensors, every scale of quantised ones; the header must be sound."""
    found = desk.about(file.path, _FIX)
    for name, tensor in file.tensors.items():
        kind = _EXPONENTS.get(tensor.type.name)
        if kind is None:
            _scan_scales(desk, found, file.path, tensor)
            continue
        summary = _Summary(*kind)
        for piece in _pieces(file.path, tensor.offset, tensor.bytes, kind[0]):
            summary.add(piece)
            desk.options.advance(piece.nbytes)
        matrix = sum(size > 1 for size in tensor.shape) > 1
        _tell(found, f"tensor {name}", summary, is_matrix=matrix)


def _scan_scales(desk: Desk, found: Findings, path: Path, tensor: GgufTensor) -> None:
    import numpy as np

    places = _SCALES.get(tensor.type.name)
    if places is None:
        desk.options.advance(tensor.bytes)
        return
    bad, zero, first, block = 0, True, -1, 0
    for scales in _scales(path, tensor, places):
        is_bad = ((scales & np.uint16(0x7C00)) == 0x7C00).any(axis=1)
        if is_bad.any():
            first = block + int(np.argmax(is_bad)) if first < 0 else first
            bad += int(np.count_nonzero(is_bad))
        zero = zero and not (scales & np.uint16(0x7FFF)).any()
        block += len(scales)
        desk.options.advance(len(scales) * tensor.type.bytes)
    where = f"tensor {tensor.name}"
    if bad:
        told = f"{bad:,} of {block:,} blocks ({tensor.type.name}) have a scale that is not finite, the first {first:,}"
        found.error("values-finite", where, told, _NAN)
    elif zero and block:
        why = "it adds nothing: it was never trained, or never written"
        found.warning("values-zero", where, "all its scales are zero", why)


def _scales(
    path: Path, tensor: GgufTensor, places: tuple[int, ...]
) -> Iterator[NDArray[np.uint16]]:
    """The scales of some blocks, (blocks, scales a block)."""
    import numpy as np

    size = tensor.type.bytes
    left = tensor.bytes
    with path.open("rb") as stream:
        stream.seek(tensor.offset)
        while left > 0 and (data := stream.read(min(_CHUNK // size * size, left))):
            left -= len(data)
            blocks = np.frombuffer(data[: len(data) // size * size], np.uint8).reshape(-1, size)
            columns = [np.ascontiguousarray(blocks[:, at : at + 2]).view("<u2") for at in places]
            yield np.concatenate(columns, axis=1)
