"""What training made, put back on its base: adapters in PEFT's format, or full weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError
from tunesmith.models.files import refuse_damaged_safetensors
from tunesmith.models.load import BaseModel, load_model, quiet_transformers
from tunesmith.models.refusals import refusing
from tunesmith.store import Artifact

if TYPE_CHECKING:
    import torch

__all__ = ["check_base", "has_adapter", "load_trained", "put_adapter"]

ADAPTER = "adapter"
FULL = "model"


def has_adapter(trained: Artifact) -> bool:
    """Whether the run holds an adapter; otherwise it holds all weights."""
    return f"{ADAPTER}/adapter_config.json" in trained.files


def check_base(trained: Artifact, base: BaseModel) -> None:
    """Refuse a base model that is not the one the run was trained on.

    Raises:
        ModelError: the content differs.
    """
    sealed = trained.facts["base"]
    if sealed["sha256"] != base.sha256:
        raise ModelError(
            f"{trained.dir} was trained on another base model than {base.name}",
            why=f"it was {sealed['name']} with hash {sealed['sha256'][:12]}, this is {base.sha256[:12]}",
            fix="set model.base to the base that the run was trained on",
        )


def load_trained(trained: Artifact, base: BaseModel, dtype: torch.dtype) -> Any:
    """The model that a run made, on the CPU, in evaluation mode.

    For an adapter run it is a `peft.PeftModel`: `with model.disable_adapter():` gives the base.
    Adapter weights stay in float32 beside base weights of `dtype`.

    Raises:
        ModelError: another base, or damaged weights.
        ArtifactError: a file is not what was sealed.
    """
    check_base(trained, base)
    if not has_adapter(trained):
        return load_model(trained.folder(FULL), dtype)
    return put_adapter(load_model(base, dtype), trained.folder(ADAPTER))


def put_adapter(model: Any, folder: Path) -> Any:
    """A base model with the adapter of a folder in PEFT's format on it, in evaluation mode.

    Raises:
        ModelError: the adapter is damaged, or made for another base.
    """
    refuse_damaged_safetensors(folder, f"the adapter in {folder} cannot be put on its base")
    if not (folder / "adapter_model.safetensors").is_file():
        # PEFT would unpickle an adapter_model.bin instead.
        raise ModelError(
            f"the adapter in {folder} cannot be put on its base: it has no adapter_model.safetensors",
            why="only safetensors weights are read: pickled ones can run code when loaded",
            fix="restore the file, or save the adapter again with safe_serialization=True",
        )
    with quiet_transformers():
        from peft import PeftModel

    what = f"the adapter in {folder} cannot be put on its base"
    with refusing(what, "restore its files, or train again"), warnings.catch_warnings():
        # PEFT reads an attribute that transformers has renamed: no concern of the user's.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # A merge gives head and embedding a matrix each when an adapter changes one of them.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        put = PeftModel.from_pretrained(
            model, folder, autocast_adapter_dtype=True, local_files_only=True
        )
    return put.eval()
