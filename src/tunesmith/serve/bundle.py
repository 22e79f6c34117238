"""A sealed bundle, checked and read for serving."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.errors import ArtifactError, ConfigError, MissingError
from tunesmith.serve.service import Limits, ServedModel
from tunesmith.store import Artifact

__all__ = ["gguf_of", "served_model"]

FINGERPRINT_DIGITS = 12
GENERIC_TOKENIZER = "TokenizersBackend"


def gguf_of(bundle: Artifact, form: str) -> Path:
    """The bundle's file in this form, its hash checked.

    Raises:
        MissingError: the bundle was exported without that form.
        ArtifactError: it is no bundle, or the file is not the one that was sealed.
    """
    if bundle.kind != "export":
        raise ArtifactError(
            f"{bundle.dir} is an artifact of the stage {bundle.kind!r}, not 'export'",
            fix="name the folder of an export",
        )
    forms = dict(bundle.facts.get("forms", {}))
    if form not in forms:
        raise MissingError(
            f"the bundle {bundle.dir} has no {form!r}",
            why=f"it was exported as: {', '.join(forms) or '(nothing)'}",
            fix=f"add {form!r} to export.forms and export again, or set serve.form to one it has",
        )
    return bundle.path(str(forms[form]))


def served_model(bundle: Artifact, name: str, limits: Limits) -> ServedModel:
    """The bundle's renderer and identity, under the name that requests will use.

    Raises:
        ArtifactError: files were changed.
        ConfigError: the model was made for a shorter context.
        ModelError: the tokenizer cannot be used, or renders other prompts than the model was
            trained with.
    """
    from tunesmith.models.chat import ChatRenderer

    renderer = ChatRenderer(_tokenizer(bundle.folder("tokenizer")))
    renderer.check_same(bundle)
    longest = int(renderer.tokenizer.model_max_length)
    if limits.context_tokens > longest:
        raise ConfigError(
            f"serve.context_tokens is {limits.context_tokens}; the model was made for {longest}",
            why="answers to longer prompts would be gibberish",
            fix=f"set serve.context_tokens to {longest} or less",
        )
    return ServedModel(
        name=name,
        fingerprint=bundle.key[:FINGERPRINT_DIGITS],
        created=int(datetime.fromisoformat(bundle.created).timestamp()),
        renderer=renderer,
        limits=limits,
    )


def _tokenizer(folder: Path) -> Any:
    """The bundle's tokenizer, without importing torch where that can be avoided.

    The generic class saves most of the start-up time and 290 MiB of memory. Wherever the bundle
    names it, `load_tokenizer` would come to the same class, and the fingerprint proves it.
    """
    from tunesmith.models.load import load_tokenizer, quiet_transformers
    from tunesmith.models.refusals import refusing

    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if config.get("tokenizer_class") != GENERIC_TOKENIZER:
        return load_tokenizer(folder)
    from transformers import PreTrainedTokenizerFast

    what, fix = f"the tokenizer in {folder} cannot be loaded", "export again"
    with refusing(what, fix), quiet_transformers():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
