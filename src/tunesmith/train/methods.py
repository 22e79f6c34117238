"""Methods: a loaded model to one whose trainable weights are marked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import FullMethod, LoraMethod, QloraMethod
from tunesmith.errors import ConfigError
from tunesmith.models.load import BaseModel, load_model, quiet_transformers, save_model
from tunesmith.registry import Table, nearest
from tunesmith.train.layers import only_layers, upper_layers

if TYPE_CHECKING:
    import torch

__all__ = [
    "METHODS",
    "Prepare",
    "load_base",
    "prepare_full",
    "prepare_lora",
    "save_trained",
    "trainable",
]

Prepare = Callable[[Any, Any, int], Any]

METHODS = Table(
    "method",
    {
        "lora": "tunesmith.train.methods:prepare_lora",
        "qlora": "tunesmith.train.methods:prepare_lora",
        "full": "tunesmith.train.methods:prepare_full",
    },
    extra="train",
)


def load_base(base: BaseModel, dtype: torch.dtype, config: Any) -> Any:
    """The base model as the method trains on it.

    QLoRA has NF4 linear layers. Other frozen weights are kept as `models.frozen` says.

    Raises:
        ModelError: unknown architecture, or damaged or missing weights.
    """
    if isinstance(config, FullMethod):
        return load_model(base, dtype)
    if not isinstance(config, QloraMethod):
        from tunesmith.models.frozen import load_frozen

        return load_frozen(base, dtype)
    from tunesmith.models.quantised import Nf4Format, load_nf4

    return load_nf4(base, dtype, Nf4Format(config.block_size, config.double_quant))


def prepare_lora(model: Any, config: LoraMethod | QloraMethod, seed: int) -> Any:
    """Freeze the model and add low-rank adapters (Hu et al. 2021) with PEFT.

    A starts as PEFT's Kaiming-uniform draw from `seed`, B as zeros, both in float32.

    Raises:
        ConfigError: a target names no linear layer of this model, or it has fewer layers than asked for.
    """
    import torch

    with quiet_transformers():
        from peft import LoraConfig, get_peft_model

    targets = config.targets
    if targets != "all-linear":
        _check_targets(model, tuple(targets))
    layers = upper_layers(model, config.layers)
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        task_type="CAUSAL_LM",
        **only_layers(model, targets, layers),
    )
    with warnings.catch_warnings():
        # PEFT reads an attribute that transformers has renamed; nothing a user could mend.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, lora, autocast_adapter_dtype=True)


def _check_targets(model: Any, targets: tuple[str, ...]) -> None:
    import torch

    known = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    unknown = [target for target in targets if target not in known]
    if unknown:
        hints = ", ".join(f"{name!r}{nearest(name, known)}" for name in unknown)
        raise ConfigError(
            f"train.method.targets names no linear layer of this model: {hints}",
            fix=f"use all-linear or some of: {', '.join(sorted(known))}",
        )


def prepare_full(model: Any, config: FullMethod, seed: int) -> Any:
    """Every weight is trained. The weights stay in the precision they were loaded in."""
    return model.requires_grad_(True)


def trainable(model: Any) -> Mapping[str, torch.nn.Parameter]:
    """Names and weights that are trained, in the model's order."""
    return dict(_trainable(model))


def _trainable(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def save_trained(model: Any, tokenizer: Any, folder: Path, *, base_name: str) -> None:
    """Write the adapter in PEFT's format, or all weights with the tokenizer.

    Args:
        model: the trained model.
        tokenizer: only saved beside full weights; an adapter uses its base's.
        folder: where to write.
        base_name: what the adapter's config calls its base.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        save_model(model, tokenizer, folder)
        return
    model.peft_config["default"].base_model_name_or_path = base_name
    # Embeddings are not trained; asking PEFT to look would make it ask the Hub for the base.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    # PEFT adds a card full of blanks; the export writes one from the run's facts.
    (folder / "README.md").unlink(missing_ok=True)
