"""Loads a base model with its linear weights in NF4, never holding more than one of them dense."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ModelError
from tunesmith.models.load import BaseModel, load_model, quiet_transformers

if TYPE_CHECKING:
    import torch

__all__ = ["Nf4Format", "load_nf4", "original_weights", "quantise_linears"]

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


@dataclass(frozen=True)
class Nf4Format:
    """How weights are quantised.

    Attributes:
        block_size: neighbouring weights that share one absmax.
        double_quant: keep the absmax in 8 bits too.
    """

    block_size: int = 64
    double_quant: bool = True


def load_nf4(base: BaseModel, dtype: torch.dtype, form: Nf4Format) -> Any:
    """The causal language model with NF4 linear layers, on the CPU, in evaluation mode.

    Quantised are all linear layers but the output head, from the precision they are stored in; a
    layer that is no whole number of blocks stays dense, as do embeddings, norms and the head, in
    `dtype`. The file is read tensor by tensor. A model whose files name its weights otherwise than
    it does itself is loaded whole first.

    Raises:
        ModelError: unknown architecture, damaged or missing weights, or nothing to quantise.
    """
    files = _tensor_files(base.dir)
    model = _skeleton(base.dir, dtype)
    if files is None or not set(_own_names(model)).issubset(files):
        model = load_model(base, dtype)
        quantise_linears(model, dtype, form)
    else:
        for name, linear in _linears(model, form).items():
            _put(model, name, _replacement(linear, dtype, form))
        _fill(model, files, dtype)
    from tunesmith.models.nf4 import Nf4Linear

    if not any(isinstance(module, Nf4Linear) for module in model.modules()):
        raise ModelError(
            f"no linear layer of {base.name} can be quantised",
            why=f"none is a whole number of {form.block_size} weights",
            fix="use train.method.kind: lora",
        )
    return model.eval()


def quantise_linears(model: Any, dtype: torch.dtype, form: Nf4Format) -> None:
    """Replace the linear layers of a loaded model by NF4 ones, one after the other."""
    for name, linear in _linears(model, form).items():
        replacement = _replacement(linear, dtype, form)
        replacement.quantise(linear.weight)
        _put(model, name, replacement)


@contextmanager
def original_weights(model: Any) -> Iterator[bool]:
    """While the block runs, NF4 layers read their weights as stored, from the file, at each use.

    Gives False, and changes nothing, when not every one of them came straight from a file.
    """
    from tunesmith.models.nf4 import Nf4Linear

    layers = [module for module in model.modules() if isinstance(module, Nf4Linear)]
    can = all(layer.original is not None for layer in layers)
    for layer in layers:
        layer.reads_original = can
    try:
        yield can
    finally:
        for layer in layers:
            layer.reads_original = False


def _skeleton(folder: Path, dtype: torch.dtype) -> Any:
    """The model without weights; its computed buffers are real."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            with init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype)
            model.tie_weights()
            if (folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"the model in {folder} cannot be loaded",
            why=str(error).splitlines()[0],
            fix="check that config.json and the safetensors files belong together",
        ) from error
    return model


def _tensor_files(folder: Path) -> dict[str, str] | None:
    """Tensor name -> file, as transformers would look them up; None when it would look elsewhere."""
    from safetensors import SafetensorError, safe_open

    index, whole = folder / INDEX, folder / WHOLE
    try:
        if whole.is_file():
            with safe_open(str(whole), framework="pt") as opened:
                return {name: str(whole) for name in opened.keys()}  # noqa: SIM118
        if index.is_file():
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: str(folder / file) for name, file in places.items()}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"the weights in {folder} cannot be read",
            why=str(error).splitlines()[0],
            fix="copy or download the model again",
        ) from error
    return None


def _own_names(model: Any) -> list[str]:
    """Names that the files must hold: all weights, of tied ones the first."""
    return [name for name, _ in model.named_parameters()]


def _linears(model: Any, form: Nf4Format) -> dict[str, torch.nn.Linear]:
    """The layers that are quantised, by name."""
    from torch import nn

    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module is not head
        and module.weight.numel() % form.block_size == 0
    }


def _replacement(linear: torch.nn.Linear, dtype: torch.dtype, form: Nf4Format) -> Any:
    from tunesmith.models.nf4 import Nf4Linear

    return Nf4Linear(
        linear.in_features,
        linear.out_features,
        linear.bias,
        block_size=form.block_size,
        double_quant=form.double_quant,
        compute_dtype=dtype,
    )


def _put(model: Any, name: str, module: Any) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _fill(model: Any, files: Mapping[str, str], dtype: torch.dtype) -> None:
    """Read every weight, one at a time; NF4 layers quantise theirs at once."""
    import torch
    from safetensors import SafetensorError

    from tunesmith.models.nf4 import Nf4Linear, read_tensor

    names = [*_own_names(model), *(n for n in model.state_dict() if n in files)]
    for name in dict.fromkeys(names):
        place, _, leaf = name.rpartition(".")
        owner = model.get_submodule(place)
        try:
            tensor = read_tensor(files[name], name)
            if isinstance(owner, Nf4Linear) and leaf == "weight":
                _check_shape(name, tensor, (owner.out_features, owner.in_features))
                owner.quantise(tensor)
                owner.original = (files[name], name)
                continue
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"the weight {name} in {files[name]} cannot be read",
                why=str(error).splitlines()[0],
                fix="copy or download the model again",
            ) from error
        held = getattr(owner, leaf)
        _check_shape(name, tensor, tuple(held.shape))
        if isinstance(held, torch.nn.Parameter):
            setattr(owner, leaf, torch.nn.Parameter(tensor.to(dtype), requires_grad=False))
        else:
            setattr(owner, leaf, tensor.to(held.dtype))
    model.tie_weights()


def _check_shape(name: str, tensor: torch.Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        raise ModelError(
            f"the weight {name} is {tuple(tensor.shape)}; config.json makes it {wanted}",
            fix="check that config.json and the safetensors files belong together",
        )
