"""Names and shapes of weights against config.json, as the loader itself would compare them: nothing is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.export.check.report import Desk

__all__ = ["check_shapes"]


def check_shapes(desk: Desk, folder: Path, place: Path, config: Mapping[str, Any]) -> None:
    """Load the model onto the meta device, where tensors have a shape and no numbers.

    To be called only when the headers are sound and the config's numbers are plausible.

    Args:
        folder: what findings name.
        place: holds its sound files and no others.
    """
    from transformers import AutoModelForCausalLM

    from tunesmith.models.load import TOGETHER, quiet_transformers
    from tunesmith.models.refusals import refusing

    found = desk.about(folder, "use config.json and weights of one model, saved together")
    if isinstance(config.get("quantization_config"), dict):
        kind = config["quantization_config"].get("quant_method", "unknown")
        told = (
            f"the weights are quantised ({kind}): packed shapes are not compared with config.json"
        )
        found.note("weights-shape", "", told)
        return
    try:
        with refusing("transformers cannot build it", TOGETHER), quiet_transformers():
            _, report = AutoModelForCausalLM.from_pretrained(
                place,
                device_map="meta",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except ModelError as error:
        found.error(
            "weights-load",
            "",
            f"{error.what}: {error.why.replace(str(place), desk.name(folder))}",
            "it cannot be used as a causal language model",
        )
        return
    _tell(found, report)


def _tell(found: Any, report: Mapping[str, Any]) -> None:
    for name in sorted(report["missing_keys"]):
        found.error(
            "weights-missing", f"tensor {name}", "it is not in the files", "it would be random"
        )
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        told = f"it is {tuple(stored)}; config.json makes it {tuple(wanted)}"
        found.error("weights-shape", f"tensor {name}", told, "loading fails, or leaves it random")
    for name in sorted(report["unexpected_keys"]):
        told = "config.json has no place for it: nothing loads it"
        found.warning("weights-extra", f"tensor {name}", told, "", "delete it, or mend config.json")
