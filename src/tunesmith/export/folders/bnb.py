"""The forms `bnb-int8` and `bnb-nf4`: matrices in bitsandbytes' formats, in safetensors files.

int8: one scale a row (Dettmers et al. 2022, arXiv 2208.07339); activations are rounded to int8 as the
model runs, but for outlying columns. nf4: blocks of 64 weights on the sixteen quantiles of a normal
distribution, their scales in 8 bits (Dettmers et al. 2023, arXiv 2305.14314). Embedding and head are
not quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import Form
from tunesmith.export.folders.parts import (
    answers,
    open_form,
    require,
    versions,
    write_quantised,
)

if TYPE_CHECKING:
    from tunesmith.export.forms import Sources

__all__ = ["answers", "open_form", "write_bnb_int8", "write_bnb_nf4"]

NF4_BLOCK = 64
"""bitsandbytes' own block size, which transformers does not change."""


def write_bnb_int8(sources: Sources, target: Path) -> Mapping[str, Any]:
    """8 bits a weight.

    Raises:
        ModelError: bitsandbytes refuses the model.
        EnvironmentProblem: the extra `8bit` is not installed.
        StorageError: the disk refuses.
    """
    facts = _write("bnb-int8", sources, target, load_in_8bit=True)
    return {"bits": 8, "group_size": "a row", **facts}


def write_bnb_nf4(sources: Sources, target: Path) -> Mapping[str, Any]:
    """4 bits a weight and 0.13 for scales.

    Raises:
        ModelError: bitsandbytes refuses the model.
        EnvironmentProblem: the extra `8bit` is not installed.
        StorageError: the disk refuses.
    """
    facts = _write(
        "bnb-nf4",
        sources,
        target,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        # Without it bitsandbytes 0.50 does not read back on the CPU what it wrote.
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="float32",
    )
    return {"bits": 4, "group_size": NF4_BLOCK, **facts}


def _write(form: Form, sources: Sources, target: Path, **settings: Any) -> dict[str, Any]:
    require(form, "8bit", "bitsandbytes")
    from transformers import BitsAndBytesConfig

    facts = write_quantised(form, sources, target, BitsAndBytesConfig(**settings))
    return {**facts, "packages": versions("bitsandbytes", "transformers")}
