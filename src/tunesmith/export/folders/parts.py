"""What the forms of this room share: packages, number formats, the files beside the weights, loading."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import ModelConfig
from tunesmith.errors import EnvironmentProblem, ModelError, reason_of
from tunesmith.export.reference import answer_logits
from tunesmith.export.weights import most_common_format
from tunesmith.models.load import load_model, quiet_transformers
from tunesmith.store import storage_errors

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from tunesmith.engine.backends.transformers import TransformersBackend
    from tunesmith.export.forms import Sources
    from tunesmith.models.chat import ChatRenderer

__all__ = [
    "BESIDE",
    "answers",
    "decoder_layers",
    "hushed",
    "keep_rest_in",
    "open_form",
    "put_beside",
    "require",
    "stored_format",
    "versions",
    "write_config",
    "write_quantised",
]

BESIDE = (
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
)
"""Files of the merged model that every folder holds as they are."""


def require(form: str, extra: str, *packages: str) -> None:
    """Refuse to go on without the packages that a form is made with.

    Raises:
        EnvironmentProblem: names the missing ones and the extra that brings them.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise EnvironmentProblem(
            f"the form {form!r} cannot be made: {', '.join(missing)} not installed",
            fix=f"pip install 'tunesmith[{extra}]', or leave {form} out of export.forms",
        )


def versions(*packages: str) -> dict[str, str]:
    """Name -> installed version, for the certificate."""
    return {package: version(package) for package in packages}


@contextmanager
def hushed() -> Iterator[None]:
    """No advice, bars or deprecation notes of the libraries that quantise; errors still come."""
    with quiet_transformers(), warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def stored_format(sources: Sources) -> torch.dtype:
    """The base's most common number format: what is not quantised is kept in it."""
    import torch

    dtype: torch.dtype = getattr(torch, most_common_format(sources.base.dir))
    return dtype


def keep_rest_in(model: Any, dtype: torch.dtype) -> None:
    """Put what no quantiser changed (embedding, norms, head) into the number format for the disk."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings():
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dtype == torch.float32 and type(parameter) is torch.nn.Parameter:
                module.register_parameter(
                    name, torch.nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                )
    # An embedding and a head that were one matrix must stay one.
    if model.config.get_text_config().tie_word_embeddings:
        model.tie_weights()
    model.config.dtype = dtype


def put_beside(sources: Sources, target: Path) -> None:
    """Tokenizer, chat template and stop tokens, as the merged model has them."""
    for pattern in BESIDE:
        for file in sorted(sources.merged.glob(pattern)):
            shutil.copyfile(file, target / file.name)


def write_config(target: Path, config: dict[str, Any]) -> None:
    """`config.json` as transformers writes it."""
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")


def write_quantised(form: str, sources: Sources, target: Path, how: Any) -> dict[str, Any]:
    """Let transformers quantise the merged model while it loads it, and save it with safetensors.

    Args:
        how: transformers' configuration of the quantiser.

    Raises:
        ModelError: the quantiser refuses this model.
        StorageError: the disk refuses.
    """
    import torch
    from transformers import AutoModelForCausalLM

    began, rest = time.monotonic(), stored_format(sources)
    try:
        with hushed():
            model = AutoModelForCausalLM.from_pretrained(
                sources.merged,
                quantization_config=how,
                dtype=torch.float32,
                device_map={"": "cpu"},
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"the model in {sources.merged} cannot be quantised as {form}",
            why=reason_of(error),
            fix=f"leave {form} out of export.forms; the GGUF forms take every width",
        ) from error
    with hushed(), storage_errors(target):
        keep_rest_in(model, rest)
        model.save_pretrained(target)
        put_beside(sources, target)
    return {
        "rest": str(rest).removeprefix("torch."),
        "calibration_rows": 0,
        "seconds": round(time.monotonic() - began, 1),
    }


def decoder_layers(model: Any) -> Any:
    """The model's layers (a `torch.nn.ModuleList`): the longest list of equal blocks in it."""
    import torch

    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 0]
    return max(lists, key=len) if lists else torch.nn.ModuleList()


def answers(
    place: Path, _sources: Sources, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """See `forms.Answers`: the written folder through transformers' own loader, in float32."""
    import torch

    with hushed():
        model = load_model(place, torch.float32)
    # One row at a time: all of them are (tokens, vocabulary) numbers each, which fills the memory.
    found = answer_logits(model, rows, starts)
    for _ in rows:
        with hushed():
            logits = next(found)
        yield logits


def open_form(
    place: Path, _base: ModelConfig, renderer: ChatRenderer, _context: int
) -> TransformersBackend:
    """See `forms.Opener`: transformers, in float32."""
    import logging

    import torch

    from tunesmith.engine.backends.transformers import TransformersBackend

    # bitsandbytes says at each pass that it casts to float16: for what it computes in, see the docs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with hushed(), torch.inference_mode():
        model = load_model(place, torch.float32)
        # compressed-tensors unpacks at the first pass, with a bar: that is part of loading.
        model(input_ids=torch.tensor([[renderer.stop_ids[0]]]), use_cache=False)
    return TransformersBackend(model, renderer.tokenizer, stop_ids=renderer.stop_ids)
