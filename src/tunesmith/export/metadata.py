"""What a GGUF file says about how it wants to be asked.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian.
Read here because the `gguf` package makes an array of each of 100,000 strings, which takes seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunesmith.errors import ModelError

__all__ = ["GgufFacts", "read_facts", "read_metadata"]

_NUMBERS: Mapping[int, str] = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i"},
    **{6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"},
}
_STRING, _ARRAY = 8, 9
_MOST_BYTES = 1 << 28
"""No text or array of a whole file is longer: a damaged length must not fill the memory."""


@dataclass(frozen=True)
class GgufFacts:
    """The part of a GGUF file's metadata that decides prompts and stops.

    Attributes:
        tokens: the vocabulary's texts, by token id.
        pre: name of the rule that splits text before the merges ("smollm"); empty when not given.
        model: kind of tokenizer ("gpt2" is byte-level BPE).
    """

    architecture: str
    chat_template: str
    eos_id: int | None
    pre: str
    model: str
    tokens: tuple[str, ...]


def read_facts(path: Path) -> GgufFacts:
    """The facts of a GGUF file.

    Raises:
        ModelError: the file is damaged.
    """
    values = read_metadata(path)
    eos = values.get("tokenizer.ggml.eos_token_id")
    return GgufFacts(
        architecture=str(values.get("general.architecture", "")),
        chat_template=str(values.get("tokenizer.chat_template", "")),
        eos_id=None if eos is None else int(eos),
        pre=str(values.get("tokenizer.ggml.pre", "")),
        model=str(values.get("tokenizer.ggml.model", "")),
        tokens=tuple(values.get("tokenizer.ggml.tokens", ())),
    )


def read_metadata(path: Path) -> dict[str, Any]:
    """All key-value pairs of a GGUF file; no tensor is read.

    Raises:
        ModelError: the file is damaged.
    """
    try:
        with path.open("rb") as stream:
            magic, version, _, count = struct.unpack("<4sIQQ", _exactly(stream, 24))
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError(f"it starts with {magic!r}, version {version}")
            values = {}
            for _ in range(count):
                key = _text(stream)
                values[key] = _value(stream, _number(stream, 4))
            return values
    except (ValueError, struct.error, OSError) as error:
        raise ModelError(
            f"{path} is no readable GGUF file", why=str(error), fix="export again"
        ) from error


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(stream)
    if kind in _NUMBERS:
        return _number(stream, kind)
    if kind != _ARRAY:
        raise ValueError(f"it holds a value of the unknown kind {kind}")
    of, length = _number(stream, 4), _number(stream, 10)
    if of in _NUMBERS:
        size = struct.calcsize(_NUMBERS[of])
        return list(struct.unpack(f"<{length}{_NUMBERS[of]}", _exactly(stream, length * size)))
    read: Callable[[], Any] = (
        (lambda: _text(stream)) if of == _STRING else (lambda: _value(stream, of))
    )
    return [read() for _ in range(length)]


def _number(stream: BinaryIO, kind: int) -> Any:
    code = _NUMBERS[kind]
    return struct.unpack(f"<{code}", _exactly(stream, struct.calcsize(code)))[0]


def _text(stream: BinaryIO) -> str:
    return _exactly(stream, _number(stream, 10)).decode("utf-8")


def _exactly(stream: BinaryIO, length: int) -> bytes:
    if length > _MOST_BYTES:
        raise ValueError(f"it names a length of {length} bytes")
    data = stream.read(length)
    if len(data) != length:
        raise ValueError("it ends too early")
    return data
