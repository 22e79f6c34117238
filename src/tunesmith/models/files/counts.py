"""The numbers of a config.json by which a model is built: layers, widths, tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.models.files.finding import Findings, refuse
from tunesmith.models.files.json_text import read_json_object
from tunesmith.models.files.safetensors import look_at_safetensors

__all__ = ["check_counts", "refuse_odd_counts"]

_MOST = 1 << 31
_MOST_EXPERTS = 4_096
_COUNTS = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


def check_counts(
    found: Findings, config: Mapping[str, Any], n_tensors: int, *, lenient: bool = False
) -> None:
    """Numbers that decide how much is built and allocated, before anything is.

    Args:
        n_tensors: of the weights; 0 when it is not known.
        lenient: leave out what is odd and builds nothing without end; some families have -1 or null for "none".
    """
    text = config.get("text_config")
    for owner in (config, text if isinstance(text, dict) else {}):
        for key, value in owner.items():
            counted = key.startswith(("num_", "n_")) or key in _COUNTS or key.endswith("_size")
            if not counted or isinstance(value, bool) or not isinstance(value, int):
                continue
            if value > _MOST or (value < 0 and not lenient):
                found.error(
                    "config-number", f"key {key}", f"it is {value}", "no model is like that"
                )
            elif n_tensors and "layer" in key and value > n_tensors:
                told = f"it is {value:,}; the weights are {n_tensors:,} tensors"
                found.error("config-number", f"key {key}", told, "the layers would be random")
            elif "experts" in key and value > _MOST_EXPERTS:
                found.error("config-number", f"key {key}", f"it is {value:,}")
        for key in _COUNTS:
            if key not in owner or (lenient and type(owner[key]) is not int):
                continue
            if type(owner[key]) is not int or owner[key] < 1:
                found.error("config-number", f"key {key}", f"it is {owner[key]!r}, no count")


def refuse_odd_counts(folder: Path) -> None:
    """Refuse a model whose config.json would let a library build without end.

    Raises:
        ModelError: names the keys and their values.
        OSError: a file of weights cannot be opened.
    """
    path = folder / "config.json"
    found = Findings(str(path), "")
    config = read_json_object(path, found)
    if config is not None:
        files = sorted(folder.glob("*.safetensors"))
        n_tensors = sum(len(look_at_safetensors(file).tensors) for file in files)
        check_counts(found, config, n_tensors, lenient=True)
    fix = "restore the model's own config.json"
    refuse(found.found, f"no model can be built by {path}", fix)
