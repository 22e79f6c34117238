"""The forms `torchao-int8` and `torchao-int4`: weight-only quantisation in safetensors files.

Both compute with dequantised weights. Embedding and head are not quantised.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import Form
from tunesmith.errors import ModelError
from tunesmith.export.folders.parts import (
    answers,
    hushed,
    keep_rest_in,
    open_form,
    put_beside,
    require,
    stored_format,
    versions,
)
from tunesmith.store import storage_errors

if TYPE_CHECKING:
    from tunesmith.export.forms import Sources

__all__ = ["answers", "open_form", "write_torchao_int4", "write_torchao_int8"]

INT4_GROUP = 32


def write_torchao_int8(sources: Sources, target: Path) -> Mapping[str, Any]:
    """8 bits a weight, one scale a row.

    Raises:
        EnvironmentProblem: the extra `torchao` is not installed.
        StorageError: the disk refuses.
    """
    require("torchao-int8", "torchao", "torchao")
    with hushed():
        from torchao.quantization import Int8WeightOnlyConfig

        how = Int8WeightOnlyConfig(version=2)
    return {
        "bits": 8,
        "group_size": "a row",
        "bits_on_disk": 8,
        **_write("torchao-int8", sources, target, how),
    }


def write_torchao_int4(sources: Sources, target: Path) -> Mapping[str, Any]:
    """4 bits a weight in groups of 32, with zero points; a weight takes a byte on the disk.

    torchao's formats that pack two weights into a byte can only be made with an accelerator.

    Raises:
        ModelError: a matrix cannot be cut into groups.
        EnvironmentProblem: the extra `torchao` is not installed.
        StorageError: the disk refuses.
    """
    require("torchao-int4", "torchao", "torchao")
    import torch

    with hushed():
        from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup

        how = IntxWeightOnlyConfig(
            weight_dtype=torch.int4,
            granularity=PerGroup(INT4_GROUP),
            mapping_type=MappingType.ASYMMETRIC,
        )
    return {
        "bits": 4,
        "group_size": INT4_GROUP,
        "bits_on_disk": 8,
        **_write("torchao-int4", sources, target, how),
    }


def _write(form: Form, sources: Sources, target: Path, how: Any) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, TorchAoConfig

    began, rest = time.monotonic(), stored_format(sources)
    try:
        with hushed():
            model = AutoModelForCausalLM.from_pretrained(
                sources.merged,
                quantization_config=TorchAoConfig(how),
                dtype=torch.float32,
                device_map={"": "cpu"},
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"the model in {sources.merged} cannot be quantised by torchao ({form})",
            why=str(error).splitlines()[0],
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
        "packages": versions("torchao", "transformers"),
    }
