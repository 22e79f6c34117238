"""GGUF files of fewer bits, byte for byte as llama.cpp quantises them, without a compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.export.quantise.file import Options, Quantised
    from tunesmith.export.quantise.importance import Importance, read_importance
    from tunesmith.export.quantise.whole import quantise_gguf

__all__ = ["Importance", "Options", "Quantised", "quantise_gguf", "read_importance"]

_HOMES = {
    "Importance": "importance",
    "Options": "file",
    "Quantised": "file",
    "quantise_gguf": "whole",
    "read_importance": "importance",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: numpy comes with the kernels."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
