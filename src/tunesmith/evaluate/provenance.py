"""On what, with what and by which command a figure was measured."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from tunesmith import __version__

__all__ = ["command", "hardware", "resume_command", "versions"]

_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "numpy")


def hardware(device: str) -> dict[str, str | int | float]:
    """The machine: processor, cores, memory, and the device that the model ran on."""
    found: dict[str, str | int | float] = {
        "device": device,
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device == "cuda":
        import torch

        found["device_name"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Versions of Python, tunesmith, and the packages that an answer depends on."""
    found = {"python": platform.python_version(), "tunesmith": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def command() -> str:
    """The command line of this process as a user would type it."""
    program = Path(sys.argv[0]).name or "python"
    if program == "__main__.py":
        program = f"python -m {Path(sys.argv[0]).parent.name}"
        return " ".join([program, shlex.join(sys.argv[1:])]).strip()
    return shlex.join([program, *sys.argv[1:]])


def resume_command() -> str:
    """The command that goes on with an interrupted evaluation.

    `tunesmith run` and `demo` resume by themselves; a single stage asks for `--resume`.
    """
    again = command()
    words = sys.argv[1:]
    return f"{again} --resume" if words[:1] == ["evaluate"] and "--resume" not in words else again


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
