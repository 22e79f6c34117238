"""Loads a base model whose weights are frozen, tensor by tensor, each in the form that it is kept in.

Beside the model one weight is held at a time (two while a tied one that a file holds twice is compared),
and no page of its files stays in memory. What cannot be read so is loaded whole first (`load_frozen`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError, reason_of
from tunesmith.models.files import refuse_damaged_safetensors
from tunesmith.models.load import TOGETHER, BaseModel, load_model, quiet_transformers
from tunesmith.models.refusals import refusing

if TYPE_CHECKING:
    import torch

__all__ = ["load_frozen"]

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
OWN_PRECISION = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
"""What a family says of weights whose type is not the model's."""

Prepare = Callable[[Any], None]


def load_frozen(base: BaseModel, dtype: torch.dtype, prepare: Prepare | None = None) -> Any:
    """The causal language model with frozen weights, on the CPU, in evaluation mode.

    For products in fp32 the weights of linear layers and embeddings are kept in 16 bits wherever
    that is exact (`models.half`), else in fp32; for other types in `dtype`. A model whose files
    name its weights otherwise than it does itself, or that were quantised before, is loaded whole
    first.

    Args:
        base: a resolved base.
        dtype: of the products.
        prepare: replaces layers by ones that keep their weights in another form; called with the
            model before it has weights (they are on the meta device), or with all of them.

    Raises:
        ModelError: unknown architecture, or damaged or missing weights.
    """
    refuse_damaged_safetensors(base.dir, f"the model in {base.dir} cannot be loaded")
    files = _tensor_files(base.dir)
    model = _skeleton(base.dir, dtype)
    if files is None or not _is_streamable(model, files, dtype):
        return _loaded_whole(base, dtype, prepare)
    if prepare is not None:
        prepare(model)
    _fill(model, files, dtype)
    return model.eval()


def _loaded_whole(base: BaseModel, dtype: torch.dtype, prepare: Prepare | None) -> Any:
    """The model by transformers, its weights changed afterwards, one by one."""
    import torch

    from tunesmith.models.half import halve

    model = load_model(base, dtype).requires_grad_(False)
    if prepare is not None:
        prepare(model)
    if dtype == torch.float32:
        halve(model)
    for parameter in model.parameters():
        # Memory of its own: else all pages of the mapped file would stay.
        parameter.data = parameter.data.clone()
    return model


def _is_streamable(model: Any, files: Mapping[str, str], dtype: torch.dtype) -> bool:
    import torch

    if getattr(model.config, "quantization_config", None) is not None:
        return False
    if dtype != torch.float32 and any(getattr(model, name, None) for name in OWN_PRECISION):
        return False
    return set(_own_names(model)).issubset(files) and _ties_hold(model, files)


def _skeleton(folder: Path, dtype: torch.dtype) -> Any:
    """The model without weights; its computed buffers are real."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with refusing(f"the model in {folder} cannot be loaded", TOGETHER), quiet_transformers():
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # In fp32 whatever is asked for: transformers computes positions' buffers so too when it loads.
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        model.config.dtype = dtype
        model.tie_weights()
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _tensor_files(folder: Path) -> dict[str, str] | None:
    """Tensor name -> file, as transformers would look them up; None when it would look elsewhere."""
    from safetensors import safe_open

    index, whole = folder / INDEX, folder / WHOLE
    with refusing(f"the weights in {folder} cannot be read", "copy or download the model again"):
        if whole.is_file():
            with safe_open(str(whole), framework="pt") as opened:
                return {name: str(whole) for name in opened.keys()}  # noqa: SIM118
        if index.is_file():
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: str(folder / file) for name, file in places.items()}
    return None


def _own_names(model: Any) -> list[str]:
    """Names that the files must hold: all weights, of tied ones the first."""
    return [name for name, _ in model.named_parameters()]


def _buffer_names(model: Any) -> list[str]:
    """Buffers that a file may hold."""
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name in model.state_dict() if name not in weights]


def _ties_hold(model: Any, files: Mapping[str, str]) -> bool:
    """Whether each tied weight that the files hold twice is the same both times."""
    import torch

    first = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first[id(parameter)]
        both = name != other and name in files and other in files
        if both and not torch.equal(_read(files, name), _read(files, other)):
            return False
    return True


def _fill(model: Any, files: Mapping[str, str], dtype: torch.dtype) -> None:
    """Read every weight, one at a time, and keep it in the form of its layer."""
    import torch

    from tunesmith.models.half import exact_half, halvable, put_half
    from tunesmith.models.nf4 import Nf4Linear

    places = halvable(model) if dtype == torch.float32 else {}
    for name in (*_own_names(model), *(n for n in _buffer_names(model) if n in files)):
        place, _, leaf = name.rpartition(".")
        owner = model.get_submodule(place)
        held, tensor = getattr(owner, leaf), _read(files, name)
        if isinstance(owner, Nf4Linear) and leaf == "weight":
            _check_shape(name, tensor, (owner.out_features, owner.in_features))
            owner.quantise(tensor)
            owner.original = (files[name], name)
            continue
        _check_shape(name, tensor, tuple(held.shape))
        half = exact_half(tensor) if id(held) in places else None
        if half is not None:
            put_half(model, places[id(held)], half)
        elif isinstance(held, torch.nn.Parameter):
            setattr(owner, leaf, torch.nn.Parameter(tensor.to(dtype), requires_grad=False))
        else:
            setattr(owner, leaf, tensor.to(held.dtype))
    model.tie_weights()


def _read(files: Mapping[str, str], name: str) -> torch.Tensor:
    from safetensors import SafetensorError

    from tunesmith.models.nf4 import read_tensor

    try:
        return read_tensor(files[name], name)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"the weight {name} in {files[name]} cannot be read",
            why=reason_of(error),
            fix="copy or download the model again",
        ) from error


def _check_shape(name: str, tensor: torch.Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        raise ModelError(
            f"the weight {name} is {tuple(tensor.shape)}; config.json makes it {wanted}",
            fix=TOGETHER,
        )
