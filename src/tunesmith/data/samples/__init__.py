"""Datasets that ship with tunesmith; each is a folder with a builder, a card and its files.

A dataset's module has `KIND` (the kind of its rows), `ABOUT` (one sentence), `CARD` (a Markdown file),
`row_files()` (split -> file) and `scripts()` (database name -> SQL script; empty for most).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.data.samples import arithmetic, code_docs, preferences, support, text_to_sql
from tunesmith.errors import ConfigError
from tunesmith.registry import nearest
from tunesmith.store import storage_errors, writing_folder

__all__ = ["SAMPLES", "describe", "load_sample", "write_sample"]

SAMPLES: Mapping[str, ModuleType] = {
    "text-to-sql": text_to_sql,
    "support": support,
    "code-docs": code_docs,
    "preferences": preferences,
    "arithmetic": arithmetic,
}
"""Name, as in `data.source.name` -> module."""


def load_sample(name: str) -> ModuleType:
    """The dataset's module.

    Raises:
        ConfigError: no such dataset; the nearest name is given.
    """
    if name not in SAMPLES:
        raise ConfigError(
            f"no sample dataset is called {name!r}{nearest(name, SAMPLES)}",
            fix=f"use one of: {', '.join(SAMPLES)}",
        )
    return SAMPLES[name]


def describe() -> list[dict[str, Any]]:
    """Each dataset's name, kind, rows (in all and by split), bytes and one sentence about it."""
    found = []
    for name, module in SAMPLES.items():
        texts = {split: path.read_bytes() for split, path in module.row_files().items()}
        rows = {split: text.count(b"\n") for split, text in texts.items()}
        found.append(
            {
                "name": name,
                "kind": module.KIND,
                "rows": sum(rows.values()),
                "splits": rows,
                "bytes": sum(map(len, texts.values())),
                "about": module.ABOUT,
            }
        )
    return found


def write_sample(name: str, out: Path) -> list[Path]:
    """Copy a dataset's rows, card and database scripts to a new folder.

    Raises:
        ConfigError: no such dataset, or the folder holds something already.
        StorageError: the disk refuses; then nothing is left behind.
    """
    module = load_sample(name)
    with storage_errors(out):
        is_used = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_used:
        raise ConfigError(f"{out} holds files already", fix="name a new folder")
    scripts = {f"databases/{base}.sql": path for base, path in module.scripts().items()}
    rows = {f"{split}.jsonl": path for split, path in module.row_files().items()}
    files = {"CARD.md": module.CARD, **rows, **scripts}
    with writing_folder(out) as folder:
        for target, source in files.items():
            (folder / target).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / target)
    return [out / target for target in files]
