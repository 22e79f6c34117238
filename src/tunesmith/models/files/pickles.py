"""Files that can run code when they are loaded, told by their content; nothing is unpickled.

A pickle is a program for Python's `pickle` module: to load one from elsewhere is to run it. PyTorch's `.bin`,
`.pt` and `.pth` files are pickles in a ZIP archive, older ones bare, joblib's and NumPy's object arrays too.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

__all__ = ["PICKLE_NAMES", "pickle_in"]

PICKLE_NAMES = frozenset(
    {".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".pt2", ".mar"}
)
"""Ends of names under which pickles are usual."""
_ENTRIES = ("data.pkl", ".pkl", ".pickle")
_TORCH_LEGACY = bytes(
    (0x80, 0x02, 0x8A, 0x0A, 0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50)
)
_HEAD = 4_096
_MOST_ENTRIES = 10_000
_MOST_OPCODES = 200
_ENOUGH_OPCODES = 4
_CUT = re.compile(r"expected (\d+) bytes in a \w+, but only (\d+) remain")
"""What `pickletools` says of a value that is longer than what it was given."""


def pickle_in(path: Path) -> str:
    """What makes a file a pickle, as the end of "it is ..."; empty when it is none.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if head.startswith(b"\x93NUMPY"):
        return "a NumPy array of pickled objects" if _holds_objects(head) else ""
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _in_zip(path)
    if head.startswith(_TORCH_LEGACY):
        return "a PyTorch file of the old form, which is a pickle"
    return _bare(head, path.stat().st_size)


def _holds_objects(head: bytes) -> bool:
    """Whether the element type in a .npy header is one of objects (`'O'`)."""
    text = head[8:512]
    start = text.find(b"'descr'")
    return b"O" in text[start + 7 : text.find(b"'fortran_order'", start)] if start >= 0 else False


def _in_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:_MOST_ENTRIES]
            for name in names:
                if name.endswith(_ENTRIES):
                    return f"a ZIP archive with the pickle {name} in it, as PyTorch writes them"
                if name.endswith(".npy") and _object_array(archive, name):
                    return f"a ZIP archive with the NumPy array {name} of pickled objects in it"
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError) as error:
        return f"a ZIP archive that cannot be looked into ({error})"
    return ""


def _object_array(archive: zipfile.ZipFile, name: str) -> bool:
    with archive.open(name) as stream:
        head = stream.read(512)
    return head.startswith(b"\x93NUMPY") and _holds_objects(head)


def _bare(head: bytes, n_bytes: int) -> str:
    """A pickle without a container; its opcodes are listed by the standard library, not obeyed."""
    names: list[str] = []
    if not head or head[0] not in _FIRST:
        return ""
    calls = goes_on = False
    try:
        for opcode, value, _ in pickletools.genops(head):
            names.append(opcode.name)
            calls = calls or (opcode.name in ("GLOBAL", "INST") and _is_function(str(value)))
            if opcode.name == "STOP" or len(names) >= _MOST_OPCODES:
                break
    except (ValueError, UnicodeError, OverflowError) as error:
        # Cut at the head's end, or never a pickle: what came before tells which.
        names.append("")
        goes_on = _goes_on(str(error), head, n_bytes)
    if len(names) <= _ENOUGH_OPCODES and names[-1] != "STOP" and not goes_on:
        return ""
    if names[0] == "PROTO":
        return f"a pickle of protocol {head[1]}" if head[1] <= _NEWEST else ""
    return "a pickle of protocol 0 or 1 that calls functions" if calls else ""


def _goes_on(told: str, head: bytes, n_bytes: int) -> bool:
    """Whether a value that begins in the head ends in the file: a long first value must hide no pickle."""
    cut = _CUT.search(told)
    return cut is not None and len(head) - int(cut[2]) + int(cut[1]) <= n_bytes


def _is_function(value: str) -> bool:
    """Module and name, as `pickletools` gives what GLOBAL and INST call."""
    parts = value.split(" ")
    return len(parts) == 2 and all(p.replace(".", "_").isidentifier() for p in parts)


_NEWEST = 5
_FIRST = frozenset(b"\x80c(]}l)FGIJKLMNSTUVX")
"""Opcodes that begin a pickle: PROTO, or in the protocols 0 and 1 a call, a mark or a value."""
