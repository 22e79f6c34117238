"""The GGUF forms of a bundle: converted once in float32, each form derived from that file."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.export.convert import open_converter, to_gguf
from tunesmith.export.forms import Sources
from tunesmith.export.metadata import FLOAT32
from tunesmith.export.quantise import kernels
from tunesmith.export.quantise.file import Options, Quantised, quantise
from tunesmith.export.quantise.importance import (
    Importance,
    measure_importance,
    read_importance,
    write_importance,
)
from tunesmith.export.quantise.policy import (
    FILE_TYPES,
    LLAMA_CPP,
    Kind,
    Model,
    choose_types,
)
from tunesmith.models.files.gguf import GgufFile, look_at_gguf
from tunesmith.models.load import load_model
from tunesmith.store import writing

__all__ = [
    "float32_gguf",
    "importance_of",
    "useful",
    "write",
    "write_bf16",
    "write_f16",
    "write_q4_0",
    "write_q4_k_m",
    "write_q5_k_m",
    "write_q6_k",
    "write_q8_0",
]

IMPORTANCE = "importance.gguf"
_NOT_WEIGHED = ("Q5_1",)


def write(sources: Sources, target: Path, kind: Kind) -> dict[str, Any]:
    """One GGUF form; see `forms.Writer`.

    Raises:
        ModelError: llama.cpp's converter does not know the model, or a weight does not fit.
        EnvironmentProblem: converter or kernels are not installed.
        StorageError: the disk refuses.
    """
    kernels.library()
    source = float32_gguf(sources)
    importance = None
    if FILE_TYPES[kind].weighs and sources.config.importance and sources.calibration:
        importance = useful(importance_of(sources), look_at_gguf(source), kind)
    made = quantise(source, target, kind, Options(importance))
    return _facts(made, importance)


write_f16: Callable[[Sources, Path], dict[str, Any]] = partial(write, kind="f16")
write_bf16: Callable[[Sources, Path], dict[str, Any]] = partial(write, kind="bf16")
write_q8_0: Callable[[Sources, Path], dict[str, Any]] = partial(write, kind="q8_0")
write_q6_k: Callable[[Sources, Path], dict[str, Any]] = partial(write, kind="q6_k")
write_q5_k_m: Callable[[Sources, Path], dict[str, Any]] = partial(write, kind="q5_k_m")
write_q4_k_m: Callable[[Sources, Path], dict[str, Any]] = partial(write, kind="q4_k_m")
write_q4_0: Callable[[Sources, Path], dict[str, Any]] = partial(write, kind="q4_0")


def float32_gguf(sources: Sources) -> Path:
    """The merged model as a GGUF file in float32, made once and kept below `sources.scratch`.

    Raises:
        ModelError: the converter cannot write this model.
        EnvironmentProblem: the converter is not installed.
        StorageError: the disk refuses.
    """
    path = sources.scratch / FLOAT32
    if not path.is_file():
        with writing(path) as temporary:
            to_gguf(sources.merged, temporary, "f32", sources.name)
    return path


def importance_of(sources: Sources) -> Importance:
    """The importance matrix of the calibration rows, measured once and kept below `sources.scratch`.

    Raises:
        ModelError: the merged weights are damaged, or the converter does not know the model.
        StorageError: the disk refuses.
    """
    import torch

    path = sources.scratch / IMPORTANCE
    if not path.is_file():
        rows = sources.calibration
        model = load_model(sources.merged, torch.float32)
        sums = measure_importance(model, _names(sources.merged), rows)
        del model
        gc.collect()
        if not sums:
            raise ModelError(
                "no importance matrix can be measured of this model",
                why="none of its linear layers has a name that llama.cpp's converter knows",
                fix="--set export.importance=false",
            )
        longest = max(map(len, rows))
        write_importance(path, sums, "training rows", len(rows), longest)
    return read_importance(path)


def useful(importance: Importance, file: GgufFile, kind: Kind) -> Importance | None:
    """The matrix without tensors that rows which are no multiple of 256 make Q5_1; None when nothing is left.

    Weighed, Q5_1 finds the grid of a base that came out of a file with four bits and a minimum, as the embedded one
    does, and rounds away what training added to it (`docs/export/quantising.md` has the figures).
    """
    chosen = choose_types(kind, file.tensors, Model.of(file), importance=True)
    values = {
        name: each
        for name, each in importance.values.items()
        if name not in chosen or chosen[name].type not in _NOT_WEIGHED
    }
    return replace(importance, values=values) if values else None


def _names(folder: Path) -> Callable[[str], str | None]:
    """Name of a weight -> its tensor in a GGUF file, of layers alone, as `llama-imatrix` has it."""
    converter = open_converter(folder)

    def name(weight: str) -> str | None:
        try:
            tensor = str(converter.map_tensor_name(weight))
        except ValueError:
            return None
        return tensor if tensor.startswith("blk.") else None

    return name


def _facts(made: Quantised, importance: Importance | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "file_type": made.kind.upper(),
        "bits_per_weight": made.bits_per_weight,
        "tensors": dict(made.types),
        "fallbacks": list(made.fallbacks),
        "quantiser": f"{kernels.engine()}, tensor types as llama.cpp {LLAMA_CPP}",
        "importance": None,
    }
    if importance is not None:
        facts["importance"] = {
            "rows": importance.chunks,
            "tokens": importance.tokens,
            "tensors": len(importance.values),
            "tensors_without": made.unweighted,
        }
    return facts
