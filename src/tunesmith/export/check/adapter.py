"""A PEFT adapter: its config against its tensors, and both against the base model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.export.check.report import Desk
from tunesmith.export.patterns import doubtful_settings, values_by_pattern
from tunesmith.models.files import (
    Findings,
    StoredTensor,
    look_at_safetensors,
    read_json_object,
)

__all__ = ["check_adapter"]

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)"
    r"(?:\.weight)?"
)
_OTHER = {"lora_A": "lora_B", "lora_B": "lora_A"}
_OTHER |= {"lora_embedding_A": "lora_embedding_B", "lora_embedding_B": "lora_embedding_A"}
_RANDOM = "PEFT leaves what it does not find at its start, without a word: the adapter does less"
_AGAIN = "save the adapter again, or restore the config that it was saved with"

Parts = Mapping[str, StoredTensor]


def check_adapter(desk: Desk, folder: Path) -> None:
    """Config, tensors, ranks, modules, base."""
    found = desk.about(folder / _CONFIG, _AGAIN)
    config = read_json_object(folder / _CONFIG, found)
    tensors: Mapping[str, StoredTensor] = {}
    if (folder / _WEIGHTS).is_file():
        file = look_at_safetensors(folder / _WEIGHTS, desk.name(folder / _WEIGHTS))
        desk.take(folder / _WEIGHTS, file.findings)
        tensors = file.tensors if file.is_sound else {}
    else:
        why = "only safetensors weights are loaded: pickled ones can run code"
        desk.about(folder / _WEIGHTS, _AGAIN).error("weights-missing", "", "it is not there", why)
    if config is None:
        return
    kind = config.get("peft_type")
    desk.tell(folder, kind=kind, tensors=len(tensors), base=config.get("base_model_name_or_path"))
    if not isinstance(kind, str):
        found.error("adapter-config", "key peft_type", "it names no method", "nothing can load it")
        return
    _check_named_base(found, folder, config)
    if config.get("auto_mapping"):
        told = "it names classes of its own"
        found.note("adapter-config", "key auto_mapping", told)
    for key, pattern, why in doubtful_settings(config):
        told, fix = f"PEFT would match every layer with {pattern[:200]!r}", "write a list of names"
        found.warning("adapter-pattern", f"key {key}", told, why, fix)
    if kind != "LORA" or not tensors:
        return
    modules = _modules(tensors)
    if not modules:
        found.error("adapter-modules", "", "the weights hold no LoRA matrices", _RANDOM)
        return
    _check_ranks(desk, folder, config, modules)
    _check_modules(found, config, modules)
    _check_base(desk, folder, modules, config)


def _modules(tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """Layer of the base -> its parts: lora_A, lora_B, ..."""
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        told = _TENSOR.fullmatch(name)
        if told is not None:
            modules.setdefault(told["module"], {})[told["part"]] = tensor
    return modules


def _check_named_base(found: Findings, folder: Path, config: Mapping[str, Any]) -> None:
    base = config.get("base_model_name_or_path")
    where = "key base_model_name_or_path"
    if not isinstance(base, str) or not base:
        why = "the adapter's effect is only known on the model that it was trained on"
        found.warning("adapter-base", where, "it names no base model", why, "write its name there")
    elif Path(base).is_absolute() and not _is_there(Path(base)):
        told = f"it is the path {base!r}, which is not on this disk"
        found.warning("adapter-base", where, told, "", "write the model's name there")


def _is_there(place: Path) -> bool:
    """Whether there is such a folder or file; a name that the system does not take names none."""
    try:
        return place.exists()
    except OSError:
        return False


def _check_ranks(
    desk: Desk, folder: Path, config: Mapping[str, Any], modules: Mapping[str, Parts]
) -> None:
    found = desk.about(folder / _CONFIG, _AGAIN)
    weights = desk.about(folder / _WEIGHTS, _AGAIN)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    for key, value in (("r", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            why = "the adapter's product is scaled by lora_alpha / r"
            found.error("adapter-config", f"key {key}", f"it is {value!r}, no positive number", why)
            return
    asked = _asked_ranks(found, config, modules)
    if asked is None:
        return
    ranks = set()
    for module, parts in modules.items():
        wanted = asked.get(module, rank)
        for part, tensor in parts.items():
            other = _OTHER.get(part)
            if other is None:
                continue
            where = f"tensor {module}.{part}"
            if other not in parts:
                weights.error("adapter-modules", where, f"there is no {other} to it", _RANDOM)
                continue
            real = _rank_of(part, tensor)
            ranks.add(real)
            if real != wanted:
                told = f"its rank is {real}, the config says {wanted}"
                weights.error("adapter-rank", where, told, "loading fails, or scales it wrong")
    _check_magnitudes(found, config, modules)
    desk.tell(folder, ranks=sorted(ranks), alpha=alpha, modules=len(modules))


def _check_magnitudes(
    found: Findings, config: Mapping[str, Any], modules: Mapping[str, Parts]
) -> None:
    has = any("lora_magnitude_vector" in parts for parts in modules.values())
    if config.get("use_dora") and not has:
        told = "it is set; the weights hold no magnitudes"
        found.error("adapter-config", "key use_dora", told, _RANDOM)
    if not config.get("use_dora") and has:
        told = "it is not set; the weights hold magnitudes"
        found.error(
            "adapter-config", "key use_dora", told, "the adapter would compute something else"
        )


def _rank_of(part: str, tensor: StoredTensor) -> int:
    """A is (rank, in), B is (out, rank)."""
    if len(tensor.shape) < 2:
        return 0
    return tensor.shape[0] if part.endswith("A") else tensor.shape[1]


def _asked_ranks(
    found: Findings, config: Mapping[str, Any], modules: Mapping[str, Parts]
) -> dict[str, Any] | None:
    """Layer -> rank, of those that have one by a pattern; None, and told, for patterns that are not run."""
    tables = {}
    for key in ("rank_pattern", "alpha_pattern"):
        try:
            tables[key] = values_by_pattern(config.get(key), modules, "it")
        except ModelError as error:
            found.error("adapter-pattern", f"key {key}", error.what, error.why, error.fix)
    return tables["rank_pattern"] if len(tables) == 2 else None


def _check_modules(
    found: Findings, config: Mapping[str, Any], modules: Mapping[str, Parts]
) -> None:
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(one, str) for one in targets):
        if not isinstance(targets, str) and not config.get("target_parameters"):
            found.error(
                "adapter-config", "key target_modules", f"it is {targets!r}", "nothing is adapted"
            )
        return
    excluded = config.get("exclude_modules") or []
    unmatched = [
        target
        for target in targets
        if not any(_is_target(module, target) for module in modules)
        and not _is_excluded(target, excluded)
    ]
    for target in unmatched:
        told = f"no tensor belongs to {target!r}"
        found.error("adapter-modules", "key target_modules", told, _RANDOM)
    unnamed = [m for m in modules if not any(_is_target(m, target) for target in targets)]
    if unnamed:
        told = f"{len(unnamed)} adapted layers are not among it, such as {unnamed[0]}"
        found.error("adapter-modules", "key target_modules", told, "PEFT would leave them out")


def _is_excluded(target: str, excluded: Any) -> bool:
    """A regular expression is not run here: it may exclude anything."""
    if not isinstance(excluded, list):
        return True
    return any(_is_target(target, str(one)) for one in excluded)


def _is_target(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _check_base(
    desk: Desk, folder: Path, modules: Mapping[str, Parts], config: Mapping[str, Any]
) -> None:
    place = _base_folder(desk, folder, config)
    if place is None:
        told = "its base model is not on this disk: shapes were not compared (--base FOLDER)"
        desk.about(folder / _CONFIG, "").note("adapter-base", "", told)
        return
    found = desk.about(folder / _WEIGHTS, "name the base that it was trained on: --base FOLDER")
    base: dict[str, StoredTensor] = {}
    for path in sorted(place.glob("*.safetensors")):
        base |= look_at_safetensors(path).tensors
    transposed = bool(config.get("fan_in_fan_out"))
    for module, parts in modules.items():
        weight = base.get(f"{module}.weight")
        if weight is None:
            if not (module == "lm_head" and base):
                told = f"{place} has no such layer"
                found.error(
                    "adapter-base", f"layer {module}", told, "it was made for another model"
                )
            continue
        _check_product(found, module, parts, weight.shape, transposed=transposed)


def _check_product(
    found: Findings, module: str, parts: Parts, shape: tuple[int, ...], *, transposed: bool
) -> None:
    """B times A must have the shape of the layer's weight."""
    if not all(len(tensor.shape) == 2 for part, tensor in parts.items() if part in _OTHER):
        return  # Their ranks were refused.
    if "lora_A" in parts and "lora_B" in parts:
        made = (parts["lora_B"].shape[0], parts["lora_A"].shape[-1])
        wanted = tuple(reversed(shape)) if transposed else shape
    elif "lora_embedding_A" in parts and "lora_embedding_B" in parts:
        made = (parts["lora_embedding_A"].shape[-1], parts["lora_embedding_B"].shape[0])
        wanted = shape
    else:
        return
    if made != wanted:
        told = f"its product is {list(made)}, the base's weight {list(wanted)}"
        found.error("adapter-base", f"layer {module}", told, "it was made for another model")


def _base_folder(desk: Desk, folder: Path, config: Mapping[str, Any]) -> Path | None:
    """The base's folder: as asked for, as the adapter names it, or the embedded model."""
    from tunesmith.models import embedded

    if desk.options.base is not None:
        return desk.options.base
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return None
    for place in (Path(name), folder / name):
        if _is_there(place) and any(place.glob("*.safetensors")):
            return place
    if name == embedded.NAME:
        from tunesmith.errors import EnvironmentProblem

        try:
            made = embedded.already_dequantised(embedded.embedded_gguf())
        except EnvironmentProblem:
            return None
        return None if made is None else made.dir / "model"
    return None
