"""What this machine is: cores, instruction sets, memory, disk and accelerators."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tunesmith.models.devices import memory_left, memory_limit

__all__ = ["Accelerator", "Machine", "memory_limit", "read_machine"]

_X86 = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512-VNNI": "avx512_vnni",
    "AVX-512-BF16": "avx512_bf16",
    "AMX-BF16": "amx_bf16",
    "AMX-INT8": "amx_int8",
}
_ARM = {"NEON": "asimd", "SVE": "sve", "SVE2": "sve2", "BF16": "bf16", "I8MM": "i8mm", "SME": "sme"}
_SYSCTL = {"AVX2": "hw.optional.avx2_0", "AVX-512": "hw.optional.avx512f"}


@dataclass(frozen=True)
class Accelerator:
    """A GPU.

    Attributes:
        kind: "cuda", "rocm" or "mps".
        capability: compute capability such as "9.0"; "" where there is none.
        usable: the installed torch can use it.
    """

    kind: str
    name: str
    memory_bytes: int
    free_bytes: int
    capability: str
    usable: bool


@dataclass(frozen=True)
class Machine:
    """What was found. Memory is that of this process: a container's limit counts."""

    system: str
    processor: str
    python: str
    physical_cores: int
    logical_cores: int
    usable_cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    available_bytes: int
    memory_limit_bytes: int | None
    disk_free_bytes: int
    accelerators: tuple[Accelerator, ...]


def read_machine(workspace: Path) -> Machine:
    """Look at this machine; `workspace` says which disk counts. Takes well under a second."""
    memory, (limit, _) = psutil.virtual_memory(), memory_limit()
    affinity = getattr(os, "sched_getaffinity", None)
    logical = psutil.cpu_count() or 1
    return Machine(
        system=f"{platform.system()} {platform.release()} ({platform.machine()})",
        processor=_processor(),
        python=platform.python_version(),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        usable_cores=len(affinity(0)) if affinity else logical,
        instruction_sets=_instruction_sets(),
        memory_bytes=min(memory.total, limit) if limit else memory.total,
        available_bytes=memory_left(),
        memory_limit_bytes=limit,
        disk_free_bytes=shutil.disk_usage(_existing(workspace)).free,
        accelerators=tuple(_accelerators()),
    )


def _existing(path: Path) -> Path:
    path = path.expanduser().absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _processor() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _instruction_sets() -> tuple[str, ...]:
    if sys.platform == "darwin":
        named = ("NEON",) if platform.machine() == "arm64" else ()
        return named + tuple(n for n, key in _SYSCTL.items() if _output("sysctl", "-n", key) == "1")
    info = _cpuinfo()
    flags = set(f"{info.get('flags', '')} {info.get('Features', '')}".split())
    known = _ARM if "Features" in info else _X86
    return tuple(name for name, flag in known.items() if flag in flags)


def _accelerators() -> Iterator[Accelerator]:
    """GPUs as torch sees them; those that only the driver sees are not usable."""
    seen = list(_through_torch())
    yield from seen
    if not any(found.kind == "cuda" for found in seen):
        yield from _through_nvidia_smi()


def _through_torch() -> Iterator[Accelerator]:
    try:
        import torch
    except ModuleNotFoundError:
        return
    kind = "rocm" if torch.version.hip else "cuda"
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"{properties.major}.{properties.minor}"
        yield Accelerator(kind, properties.name, total, free, capability, usable=True)
    if torch.backends.mps.is_available():
        memory = psutil.virtual_memory()
        yield Accelerator("mps", "Apple GPU", memory.total, memory.available, "", usable=True)


def _through_nvidia_smi() -> Iterator[Accelerator]:
    fields = "name,memory.total,memory.free,compute_cap"
    text = _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[1].isdigit() and parts[2].isdigit():
            name, total, free, capability = parts
            mib = 2**20
            yield Accelerator("cuda", name, int(total) * mib, int(free) * mib, capability, False)


def _output(*command: str) -> str:
    """A command's output; "" when it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""
