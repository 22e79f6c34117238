"""Ollama's Modelfile in a bundle: what it is made from, and where its answers end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunesmith.export.check.gguf_model import ENDS
from tunesmith.export.check.report import Desk
from tunesmith.export.modelfile import parse

__all__ = ["check_modelfile"]

_FIX = "export again: the Modelfile is written from the model's own renderer"
_MOST_BYTES = 1 << 22


def check_modelfile(desk: Desk, path: Path) -> None:
    """Read it by the rules of Ollama's parser; its model must be a file of the folder."""
    found = desk.about(path, _FIX)
    if path.stat().st_size > _MOST_BYTES:
        found.error("file-size", "", f"it has {path.stat().st_size:,} bytes", "it is a short text")
        return
    try:
        commands = parse(path.read_bytes().decode("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        found.error("modelfile", "", f"Ollama refuses it: {error}", "no model can be made of it")
        return
    for name, value in commands:
        if name in ("model", "adapter"):
            _check_file(desk, path, (name, value))
    _check_stops(desk, path, commands)


def _check_file(desk: Desk, path: Path, command: tuple[str, str]) -> None:
    name, value = command
    found, where = desk.about(path, _FIX), "FROM" if name == "model" else "ADAPTER"
    if not value.startswith((".", "/", "~")) and not value.endswith(".gguf"):
        return  # The name of a model that Ollama has.
    target = (path.parent / value).resolve()
    if not target.is_relative_to(path.parent.resolve()):
        told = f"it names {value!r}, outside of the folder"
        found.error("link-outside", where, told, "another file of this machine would be packed")
    elif not target.exists():
        found.error("modelfile", where, f"there is no {value}", "no model can be made of it")


def _check_stops(desk: Desk, path: Path, commands: Sequence[tuple[str, str]]) -> None:
    """A TEMPLATE that ends turns with a known token wants that token among the stops."""
    stops = {value for name, value in commands if name == "stop"}
    template = "".join(value for name, value in commands if name == "template")
    missing = sorted(end for end in ENDS if end in template)
    if missing and not stops & set(missing):
        told = f"its template writes {missing[0]!r} after a turn, and no PARAMETER stop names it"
        desk.about(path, _FIX).error(
            "stop-token", "PARAMETER stop", told, "answers would never end"
        )
