"""What a GGUF file says about how it wants to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.models.files import read_metadata

__all__ = ["FLOAT32", "GgufFacts", "read_facts", "read_metadata"]

FLOAT32 = "model-f32.gguf"
"""The merged model as GGUF in float32, below an export's scratch: what every GGUF form is quantised from."""


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
        ModelError: the file is damaged, or one of them is no text or number as it should be.
    """
    values = read_metadata(path)
    wrong = [key for key, kind in _KINDS.items() if not isinstance(values.get(key, kind()), kind)]
    if wrong:
        raise ModelError(
            f"{path} is no readable GGUF file",
            why=f"{wrong[0]} is {str(values[wrong[0]])[:50]!r}, a {type(values[wrong[0]]).__name__}",
            fix="export again",
        )
    return GgufFacts(
        architecture=values.get("general.architecture", ""),
        chat_template=values.get("tokenizer.chat_template", ""),
        eos_id=values.get("tokenizer.ggml.eos_token_id"),
        pre=values.get("tokenizer.ggml.pre", ""),
        model=values.get("tokenizer.ggml.model", ""),
        tokens=tuple(values.get("tokenizer.ggml.tokens", ())),
    )


_KINDS: Mapping[str, type] = {
    "general.architecture": str,
    "tokenizer.chat_template": str,
    "tokenizer.ggml.eos_token_id": int,
    "tokenizer.ggml.pre": str,
    "tokenizer.ggml.model": str,
    "tokenizer.ggml.tokens": list,
}
