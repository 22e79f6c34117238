"""The base as a GGUF file, for the adapter that llama.cpp puts on it: no bundle holds one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.config import ModelConfig
from tunesmith.export.convert import to_gguf
from tunesmith.export.forms import KINDS
from tunesmith.models.adapters import check_base
from tunesmith.models.load import BaseModel, resolve_base
from tunesmith.store import Artifact, writing

if TYPE_CHECKING:
    from tunesmith.engine.backends.llama_cpp import LlamaBackend
    from tunesmith.export.certify import Asked
    from tunesmith.export.forms import Sources
    from tunesmith.export.reference import Reference
    from tunesmith.models.chat import ChatRenderer

__all__ = ["ask", "open_lora", "write_base"]


def ask(place: Path, sources: Sources, reference: Reference) -> Asked:
    """Teacher forcing and a few free answers through the base in float32 with the adapter on it.

    The base is written below `scratch` at the first call.

    Raises:
        ParityError: an answer goes on beyond the stop token, or numbers are not finite.
        ModelError: llama.cpp refuses the file, or the converter cannot write the base.
        StorageError: the disk refuses.
    """
    from tunesmith.export.certify import ask_llama

    path = sources.scratch / KINDS["gguf-lora"].on
    if not path.is_file():
        _write(sources.base, path)
    return ask_llama(path, reference, adapter=place)


def write_base(bundle: Artifact, model: ModelConfig, path: Path) -> None:
    """The base of a bundle in float32, as its adapter was certified on it.

    Args:
        model: where the base is.

    Raises:
        ModelError: it is another base than the bundle's, or the converter cannot write it.
        StorageError: the disk refuses.
    """
    base = resolve_base(model)
    check_base(bundle, base)
    _write(base, path)


def _write(base: BaseModel, path: Path) -> None:
    with writing(path) as temporary:
        to_gguf(base.dir, temporary, "f32", base.name)


def open_lora(
    place: Path, base: ModelConfig, _renderer: ChatRenderer, context: int
) -> LlamaBackend:
    """See `forms.Opener`; `base` names the GGUF file that the adapter is put on."""
    from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings

    return LlamaBackend(Path(base.base), LlamaSettings(context_tokens=context, lora_path=place))
