"""The forms `torchao-int8` and `torchao-int4`: weight-only quantisation in safetensors files.

Both compute with dequantised weights. Embedding and head are not quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import Form
from tunesmith.export.folders.parts import (
    answers,
    hushed,
    open_form,
    require,
    versions,
    write_quantised,
)

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
            weight_dtype=getattr(torch, "int4"),  # noqa: B009 torch's stubs do not name it
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
    from transformers import TorchAoConfig

    facts = write_quantised(form, sources, target, TorchAoConfig(how))
    return {**facts, "packages": versions("torchao", "transformers")}
