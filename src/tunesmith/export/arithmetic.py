"""In which numbers a form is computed when it is proved and timed here, and what that means for its speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tunesmith.config import Form
from tunesmith.export.forms import KINDS

__all__ = ["COMPUTED_IN", "comparison_notes"]

_AS_STORED, _FLOAT32 = "as stored", "float32"
_AT_LOAD, _IN_PRODUCTS = "float32, unpacked at load", "float32, unpacked in each product"

COMPUTED_IN: Mapping[Form, str] = {
    "adapter": _FLOAT32,
    "merged": _FLOAT32,
    "gguf-f16": _AS_STORED,
    "gguf-bf16": _AS_STORED,
    "gguf-q8_0": _AS_STORED,
    "gguf-q6_k": _AS_STORED,
    "gguf-q5_k_m": _AS_STORED,
    "gguf-q4_k_m": _AS_STORED,
    "gguf-q4_0": _AS_STORED,
    "gguf-lora": "as stored, base in F32",
    "onnx": "float32, as stored",
    "torchao-int8": _IN_PRODUCTS,
    "torchao-int4": _IN_PRODUCTS,
    "bnb-int8": "8 bits, the rest float32",
    "bnb-nf4": "float32; bfloat16 where the processor has it",
    "awq": _AT_LOAD,
    "gptq": _AT_LOAD,
    "pruned": _FLOAT32,
}
"""Form -> the numbers of its products, as its `open` and `answers` load it. "as stored": llama.cpp multiplies
the file's own blocks, with keys and values in float16."""
_OPENED_OTHERWISE: tuple[Form, ...] = (
    *("adapter", "merged", "pruned", "awq", "gptq"),
    *("bnb-int8", "bnb-nf4", "torchao-int8", "torchao-int4"),
)
"""What transformers opens in the number format of its config (the base's, for an adapter), unless told another."""


def comparison_notes(forms: Sequence[Form]) -> Iterator[str]:
    """In what the timed forms were computed, and what does not compare between them; each as one sentence."""
    by_numbers: dict[str, list[Form]] = {}
    for form in forms:
        by_numbers.setdefault(COMPUTED_IN[form], []).append(form)
    if by_numbers:
        yield "computed in " + "; ".join(
            f"{numbers}: {', '.join(same)}" for numbers, same in by_numbers.items()
        )
    llama = [form for form in forms if "xllamacpp" in KINDS[form].packages]
    if llama:
        yield (
            f"first token: llama.cpp ({', '.join(llama)}) does not read again what a prompt shares with the one "
            "before; other engines read every prompt whole"
        )
    opened = [form for form in forms if form in _OPENED_OTHERWISE]
    if opened:
        yield (
            f"speed and memory of {', '.join(opened)} are those of these numbers; transformers opens them in the "
            "number format that they are stored in, unless told otherwise, and vLLM was not run: theirs are others"
        )
