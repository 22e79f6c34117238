"""Loads the C++ kernels of the packed step; without a compiler the plain torch operations run.

The files in `cpp` are compiled once for this processor by torch's own extension loader, into the model cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from tunesmith.errors import reason_of
from tunesmith.models.embedded import cache_dir
from tunesmith.telemetry import console

__all__ = ["Kernels", "TreeStruct", "find_kernels", "why_not", "without_kernels"]

SOURCES = tuple(sorted(Path(__file__).with_name("cpp").iterdir()))
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
NAME = "tunesmith_kernels"
SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class TreeStruct(ctypes.Structure):
    """`Tree` of tree.h, field by field."""

    _fields_ = (
        ("positions", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("key_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("used", ctypes.c_int64),
        ("segments", ctypes.c_int64),
        ("start", ctypes.c_void_p),
        ("length", ctypes.c_void_p),
        ("chain_at", ctypes.c_void_p),
        ("chain", ctypes.c_void_p),
        ("shared_at", ctypes.c_void_p),
        ("units", ctypes.c_void_p),
        ("unit_count", ctypes.c_int64),
        ("longest_row", ctypes.c_int64),
        ("shared_rows", ctypes.c_int64),
        ("scale", ctypes.c_float),
    )


class Kernels:
    """The functions of `cpp/` for one storage type. Tensors are contiguous and on the CPU."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self._library, self._suffix, self.dtype = library, SUFFIXES[dtype], dtype

    def __call__(self, name: str, *arguments: Tensor | int | float | TreeStruct) -> None:
        """Run one function; tensors are passed as pointers, floats as C floats.

        Raises:
            ValueError: a tensor is not contiguous or not on the CPU.
        """
        # Passed on at each call: on some systems the library has another OpenMP than torch.
        self._library.set_threads(ctypes.c_int64(torch.get_num_threads()))
        function = getattr(self._library, f"{name}_{self._suffix}")
        function.restype = None
        function(*[_as_c(argument) for argument in arguments])


def _as_c(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        if not argument.is_contiguous() or argument.device.type != "cpu":
            raise ValueError("a kernel takes contiguous tensors on the CPU")
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, TreeStruct):
        return ctypes.byref(argument)
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


_off: list[bool] = []


def find_kernels(like: Tensor) -> Kernels | None:
    """Kernels for the type and place of a tensor, or None when plain torch operations must do."""
    if _off or like.device.type != "cpu" or like.dtype not in SUFFIXES or why_not():
        return None
    library = _load()
    return None if isinstance(library, str) else Kernels(library, like.dtype)


def why_not() -> str:
    """Why the kernels cannot run here; empty when they can. The first call compiles them."""
    found = _load()
    return found if isinstance(found, str) else ""


@contextmanager
def without_kernels() -> Iterator[None]:
    """Inside of the block the plain torch operations run."""
    _off.append(True)
    try:
        yield
    finally:
        _off.pop()


@cache
def _load() -> ctypes.CDLL | str:
    if os.environ.get("TUNESMITH_KERNELS") == "off":
        return "TUNESMITH_KERNELS is off"
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return "no C++ compiler was found"
    key = hashlib.sha256(_text() + _machine(compiler).encode()).hexdigest()[:16]
    folder = cache_dir() / "kernels" / key
    library = folder / f"{NAME}.so"
    try:
        if not library.is_file():
            _compile(library)
        return ctypes.CDLL(str(library))
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        return f"they did not compile: {reason_of(error)}"


def _compile(library: Path) -> None:
    """Build in a folder of its own, so that a library with the final name is always whole.

    A folder that has lost its library (something tidied the cache) is replaced.
    """
    import ninja
    from torch.utils import cpp_extension

    folder = library.parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    console().print("compiling the CPU kernels for this processor, once (a few seconds)")
    with FileLock(f"{folder}.lock"), tempfile.TemporaryDirectory(dir=folder.parent) as place:
        if library.is_file():
            return
        path = os.environ.get("PATH", "")
        os.environ["PATH"] = os.pathsep.join((ninja.BIN_DIR, path))
        try:
            cpp_extension.load(
                name=NAME,
                sources=[str(path) for path in SOURCES if path.suffix == ".cpp"],
                extra_cflags=list(FLAGS),
                extra_ldflags=["-fopenmp"],
                build_directory=place,
                is_python_module=False,
            )
        finally:
            os.environ["PATH"] = path
        # The loader numbers what it builds under one name with other flags in the same process.
        os.replace(next(Path(place).glob(f"{NAME}*.so")), Path(place) / library.name)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(place, folder)
        Path(place).mkdir()  # the context removes it


def _text() -> bytes:
    return b"".join(path.read_bytes() for path in SOURCES)


def _machine(compiler: str) -> str:
    """What the compiled code depends on beside its source: flags, compiler, processor, torch's OpenMP."""
    parts = [*FLAGS, compiler, platform.machine(), torch.__version__]
    if hasattr(torch.backends.cpu, "get_cpu_capability"):
        parts.append(torch.backends.cpu.get_cpu_capability())
    processor = Path("/proc/cpuinfo")
    if processor.is_file():
        lines = processor.read_text().splitlines()
        parts += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return "\n".join(parts)
