"""The numbers of a GGUF file by which llama.cpp allocates and indexes, held against what the file holds.

Not every one of them is looked at there before it is used: `block_count` of 2^31 - 1 ends the process, and `scores` or
`token_type` of another kind or length than the vocabulary are read beyond their end (`src/llama-vocab.cpp`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunesmith.models.files.finding import Findings

if TYPE_CHECKING:
    from tunesmith.models.files.gguf import GgufFile

__all__ = ["check_numbers"]

_MOST = 1 << 31
_MOST_LAYERS = 4_096
_POSITIVE = ("block_count", "embedding_length", "context_length")
_COUNTS = (
    *_POSITIVE,
    *("attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_count"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size"),
)
_TEXTS, _INT32, _FLOAT32 = 8, 5, 6
_ARRAYS: Mapping[str, tuple[int, str]] = {
    "tokens": (_TEXTS, "texts"),
    "merges": (_TEXTS, "texts"),
    "token_type": (_INT32, "32-bit integers"),
    "scores": (_FLOAT32, "32-bit floats"),
}


def check_numbers(file: GgufFile, found: Findings) -> None:
    """Counts, layers and the arrays of the vocabulary; to be called when the structure is sound."""
    architecture = file.get("general.architecture")
    for count in _COUNTS:
        key = f"{architecture}.{count}"
        value = file.get(key)
        if value is None or isinstance(value, list):
            continue  # Some families have one number a layer.
        least = 1 if count in _POSITIVE else 0
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _MOST:
            why = "llama.cpp allocates by it"
            found.error("gguf-number", f"key {key}", f"it is {str(value)[:50]}, no such count", why)
    _check_layers(file, found, f"{architecture}.block_count")
    tokens = file.length("tokenizer.ggml.tokens")
    for name, (kind, told) in _ARRAYS.items():
        key = f"tokenizer.ggml.{name}"
        if key not in file.keys:
            continue
        where, why = f"key {key}", "llama.cpp would read beyond it"
        if file.kind(key) != kind:
            found.error("gguf-kind", where, f"it is no array of {told}", why)
        elif name in ("token_type", "scores") and file.length(key) != tokens:
            entries = f"it has {file.length(key):,} entries for {tokens:,} tokens"
            found.error("tokenizer-vocabulary", where, entries, why)


def _check_layers(file: GgufFile, found: Findings, key: str) -> None:
    """No more layers than tensors, where all tensors are in this file."""
    count = file.get(key)
    if not isinstance(count, int) or not file.tensors:
        return
    most = _MOST_LAYERS if "split.count" in file.keys else min(_MOST_LAYERS, len(file.tensors))
    if count > most:
        told = f"it is {count:,}; the file holds {len(file.tensors):,} tensors"
        found.error("gguf-number", f"key {key}", told, "llama.cpp allocates by it")
