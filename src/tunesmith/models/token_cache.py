"""Rows that were cut into tokens before, kept in the user's cache folder under all that decides them.

An entry is a folder with `tokens.safetensors` and `entry.json`: the parts of its key by name, and the
hash of the tokens. It is used when every part is equal and the hash is right; a damaged one is
removed. When the entries outgrow their bound, those that were used longest ago go.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tunesmith.errors import StorageError
from tunesmith.models.embedded import cache_dir
from tunesmith.store import flush_to_disk, put_back, sha256_of_json, storage_errors, writing_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.models.chat import ChatRenderer

    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["Entry", "Found", "TokenCache", "code_hash", "renderer_parts"]

ENTRY, TOKENS, LOCK = "entry.json", "tokens.safetensors", ".lock"
GIB = 2**30
PACKAGES = ("tokenizers", "transformers", "jinja2")
"""Packages whose version may change what a row's tokens are."""

Parts = Mapping[str, Any]
"""Name -> JSON value of everything that tokens depend on."""


@dataclass(frozen=True)
class Entry:
    """What was kept, and under which key."""

    place: Path
    parts: Parts
    sha256: str
    n_bytes: int
    used: float

    def differs_in(self, parts: Parts) -> tuple[str, ...]:
        """Names of the parts that are not equal."""
        names = dict.fromkeys([*parts, *self.parts])
        return tuple(name for name in names if self.parts.get(name) != parts.get(name))


@dataclass(frozen=True)
class Found:
    """What was looked for.

    Attributes:
        arrays: the tokens; None when they have to be made.
        why: where they come from, or why they have to be made, in a few words.
    """

    arrays: Arrays | None
    why: str


class TokenCache:
    """The entries of one folder. Several processes may use it at once.

    Args:
        limit_bytes: most bytes of all entries together.
        place: the folder; when not given `$TUNESMITH_TOKENS`, or `tokens` in the user's cache folder.
    """

    def __init__(self, limit_bytes: int, place: Path | None = None) -> None:
        chosen = os.environ.get("TUNESMITH_TOKENS")
        self.place = place or (Path(chosen) if chosen else cache_dir() / "tokens")
        self.limit_bytes = limit_bytes

    @classmethod
    def of(cls, limit_gib: float) -> TokenCache | None:
        """The user's cache; None when no space is given to it."""
        return cls(int(limit_gib * GIB)) if limit_gib > 0 else None

    def entries(self) -> list[Entry]:
        """All entries whose key can be read, those that were used last first."""
        if not self.place.is_dir():
            return []
        places = [p for p in self.place.iterdir() if p.is_dir() and not p.name.startswith(".")]
        found = map(_entry, places)
        return sorted((e for e in found if e is not None), key=lambda e: e.used, reverse=True)

    def nearest(self, parts: Parts) -> Entry | None:
        """The entry that differs in the fewest parts, the one used last among equals."""
        return min(self.entries(), key=lambda entry: len(entry.differs_in(parts)), default=None)

    def holds(self, parts: Parts) -> bool:
        """Whether there is an entry of this key; it is not read."""
        entry = _entry(self._place_of(parts))
        return entry is not None and not entry.differs_in(parts)

    def find(self, parts: Parts) -> Found:
        """The tokens of this key, verified; a damaged entry is removed."""
        place = self._place_of(parts)
        if not place.is_dir():
            return Found(None, self._why_not(parts))
        entry = _entry(place)
        try:
            data = (place / TOKENS).read_bytes()
        except OSError:
            data = b""
        is_whole = entry is not None and not entry.differs_in(parts)
        if entry is None or not is_whole or hashlib.sha256(data).hexdigest() != entry.sha256:
            shutil.rmtree(place, ignore_errors=True)
            return Found(None, f"the cached ones are damaged: {place.name} was removed")
        from safetensors.numpy import load

        _touch(place / ENTRY)
        return Found(load(data), "from cache")

    def keep(self, parts: Parts, arrays: Arrays) -> str:
        """Keep tokens; returns why they were not kept, or "".

        Work goes on without a cache: a disk that refuses is no reason to stop, only to say so.
        """
        from safetensors.numpy import save

        data = save(dict(arrays))
        if len(data) > self.limit_bytes:
            return f"{len(data) / GIB:.2f} GiB are more than the cache may hold"
        facts = {"parts": dict(parts), "sha256": hashlib.sha256(data).hexdigest()}
        place = self._place_of(parts)
        try:
            with self._locked(), writing_folder(place) as half:
                (half / TOKENS).write_bytes(data)
                flush_to_disk(half / TOKENS)
                text = json.dumps({**facts, "bytes": len(data)}, indent=2, ensure_ascii=False)
                (half / ENTRY).write_text(text, encoding="utf-8")
                flush_to_disk(half / ENTRY)
            self._shrink(place)
        except StorageError as error:
            return f"{error.what}: {error.why}"
        return ""

    def _place_of(self, parts: Parts) -> Path:
        return self.place / sha256_of_json(dict(parts))[:24]

    def _why_not(self, parts: Parts) -> str:
        near = self.nearest(parts)
        if near is None:
            return "none cached yet"
        return f"the nearest cached ones differ in {', '.join(near.differs_in(parts))}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.place / LOCK)
        with storage_errors(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            with storage_errors(self.place):
                put_back(self.place, "")
            yield
        finally:
            lock.release()

    def _shrink(self, newest: Path) -> None:
        """Remove what was used longest ago until the rest fits; what was just written stays."""
        left = self.limit_bytes
        for entry in sorted(self.entries(), key=lambda e: e.place != newest):
            left -= entry.n_bytes
            if left < 0 and entry.place != newest:
                shutil.rmtree(entry.place, ignore_errors=True)


def _entry(place: Path) -> Entry | None:
    """The entry of a folder; None when its key cannot be read."""
    path = place / ENTRY
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        used = path.stat().st_mtime
        n_bytes = int(facts["bytes"])
        return Entry(place, dict(facts["parts"]), str(facts["sha256"]), n_bytes, used)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _touch(path: Path) -> None:
    """Note that an entry was used; one that may only be read, or was just removed by another process, keeps its
    time."""
    with suppress(OSError):
        os.utime(path)


def renderer_parts(renderer: ChatRenderer) -> dict[str, str]:
    """What tokens depend on that lies in a model's tokenizer, its template and the code around them."""
    spelled = json.loads(renderer.tokenizer.backend_tokenizer.to_str())
    # What a call set last is no part of the tokenizer.
    core = {name: value for name, value in spelled.items() if name not in ("truncation", "padding")}
    return {
        "tokenizer": sha256_of_json(core),
        "control tokens": sha256_of_json(renderer.control_tokens),
        "template": hashlib.sha256(renderer.template.encode()).hexdigest(),
        "rendered probes": renderer.fingerprint,
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def code_hash(files: Iterable[str | None]) -> str:
    """Hash of the modules that make tokens: a change of one line makes them anew."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes() if file else b"")
    return digest.hexdigest()
