"""A run directory: claimed, written into, and sealed last. Only this room writes artifacts."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunesmith import __version__
from tunesmith.errors import BusyError, UsedDirectoryError
from tunesmith.store.artifact import FORMAT, MANIFEST, Artifact, Parent
from tunesmith.store.failpoints import reach
from tunesmith.store.files import (
    flush_to_disk,
    sha256_of_file,
    sha256_of_json,
    storage_errors,
    write_atomically,
    writing,
)

__all__ = ["Run"]

CLAIM = "run.json"
LOCK = ".lock"
SCRATCH = "scratch"
_ANOTHER = "choose another place (--out, or `name` in a recipe)"


class Run:
    """A directory that one process writes and then seals. Get one by `Run.open`.

    Files below `scratch/` (checkpoints) are not sealed, and removed after the seal.

    Attributes:
        dir: the directory.
        kind: the stage.
        key: hash of kind and inputs.
        parents: what the run is made from, as it was when it was opened.
        resumed: the directory held an unfinished run of the same inputs.
    """

    def __init__(
        self,
        directory: Path,
        claim: Mapping[str, Any],
        parents: Sequence[Parent],
        *,
        resumed: bool,
    ) -> None:
        self.dir = directory
        self.kind: str = claim["kind"]
        self.key: str = claim["key"]
        self.parents = tuple(parents)
        self.resumed = resumed
        self._claim = claim

    @classmethod
    @contextmanager
    def open(
        cls,
        directory: str | Path,
        kind: str,
        *,
        inputs: Mapping[str, Any],
        parents: Sequence[Parent] = (),
        resume: bool = False,
    ) -> Iterator[Run]:
        """Claim a directory for one run; it stays locked until the block ends.

        Args:
            directory: made when it is not there.
            kind: the stage, "data" or "train" and so on.
            inputs: everything that the result depends on, as JSON values.
            parents: what the result is made from.
            resume: go on with an unfinished run of the same inputs.

        Raises:
            UsedDirectoryError: it holds something already; the message names the ways out.
            BusyError: another process is writing it.
            StorageError: it cannot be written.
        """
        place = Path(directory)
        key = cls.key_of(kind, inputs, parents)
        claim = {
            "format": FORMAT,
            "kind": kind,
            "key": key,
            "inputs": dict(inputs),
            "parents": [parent.as_told(place) for parent in parents],
            "version": __version__,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with storage_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        _refuse_used(place, _claim_in(place), key, resume=resume)
        lock = FileLock(place / LOCK)
        try:
            with storage_errors(place):
                lock.acquire(timeout=0)
        except Timeout as error:
            raise BusyError(
                f"{place} is being written by another process",
                why="its lock is held",
                fix=f"wait for it to end, or {_ANOTHER}",
            ) from error
        try:
            # Once more under the lock: another process may have sealed it in between.
            found = _claim_in(place)
            _refuse_used(place, found, key, resume=resume)
            _remove_parts(place)
            if found is None:
                write_atomically(place / CLAIM, json.dumps(claim, indent=2, ensure_ascii=False))
            run = cls(place, claim, parents, resumed=found is not None)
            yield run
        finally:
            lock.release()

    @staticmethod
    def key_of(kind: str, inputs: Mapping[str, Any], parents: Sequence[Parent]) -> str:
        """Hash of all that a result depends on; a parent counts by its content, not its place."""
        made_from = [(parent.kind, parent.sha256) for parent in parents]
        return sha256_of_json([FORMAT, kind, dict(inputs), made_from])

    @staticmethod
    def tidy(sealed: Path) -> None:
        """Remove the checkpoints that a kill between the seal and its clean-up left in a sealed run."""
        if (sealed / MANIFEST).is_file() and (sealed / SCRATCH).is_dir():
            for place in (sealed / SCRATCH).iterdir():
                if place.is_dir():
                    shutil.rmtree(place, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where to write a file of this run; folders in `name` are made.

        Raises:
            StorageError: the folder cannot be made.
        """
        path = self.dir / name
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary path that becomes file `name` when the block ends well."""
        with writing(self.path(name)) as temporary:
            yield temporary

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole text file or nothing; returns its path."""
        write_atomically(self.path(name), text)
        return self.dir / name

    def write_json(self, name: str, value: Any) -> Path:
        """Write a value as indented JSON; returns its path."""
        return self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def finish(self, facts: Mapping[str, Any]) -> Artifact:
        """Seal the run: hash every file, write the manifest last and atomically.

        Args:
            facts: the stage's results, as JSON values; they are part of the manifest.

        Raises:
            StorageError: the disk refuses; the directory stays unsealed and can be resumed.
        """
        with storage_errors(self.dir):
            reach("seal-begin")
            mode = (self.dir / CLAIM).stat().st_mode & 0o666
            files = {
                file.relative_to(self.dir).as_posix(): _sealed_file(file, mode)
                for file in sorted(self.dir.rglob("*"))
                if file.is_file() and not _is_private(file.relative_to(self.dir))
            }
            reach("seal-manifest")
        manifest = {
            **{
                k: self._claim[k] for k in ("format", "kind", "key", "inputs", "parents", "version")
            },
            "created": _now().isoformat(timespec="seconds"),
            "facts": dict(facts),
            "files": files,
        }
        write_atomically(
            self.dir / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        )
        reach("seal-end")
        shutil.rmtree(self.dir / SCRATCH, ignore_errors=True)
        return Artifact.open(self.dir)


def _now() -> datetime:
    """The time that a manifest names.

    SOURCE_DATE_EPOCH (specification of the Reproducible Builds project) where it is set, so that equal input makes an
    equal manifest.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)


def _sealed_file(path: Path, mode: int) -> dict[str, Any]:
    """A file's size and hash, once its bytes are on the disk: the manifest must not outlive them.

    Whoever may read by `mode`, which follows the umask, may read it: safetensors writes for the owner alone.
    """
    reach("seal-file")
    found = path.stat().st_mode
    if found | mode != found:
        path.chmod(stat.S_IMODE(found | mode))
    flush_to_disk(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def _is_private(relative: Path) -> bool:
    """The claim, the lock, scratch files and half-written parts are not part of an artifact."""
    first = relative.parts[0]
    return first in (CLAIM, LOCK, SCRATCH, MANIFEST) or relative.name.endswith(".part")


def _is_half_claim(name: str) -> bool:
    """A claim that a crash cut off: nothing was done under it."""
    return name.startswith(f".{CLAIM}.") and name.endswith(".part")


def _remove_parts(place: Path) -> None:
    """Half-written files of a killed process. The lock is held: nobody writes them now."""
    for part in list(place.rglob(".*.part")):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def _claim_in(place: Path) -> Mapping[str, Any] | None:
    claim = place / CLAIM
    if not claim.is_file():
        return None
    try:
        found = json.loads(claim.read_text(encoding="utf-8"))
    except ValueError:
        return {"kind": "unknown", "key": ""}
    return found if isinstance(found, dict) else {"kind": "unknown", "key": ""}


def _refuse_used(place: Path, found: Mapping[str, Any] | None, key: str, *, resume: bool) -> None:
    if (place / MANIFEST).is_file():
        raise UsedDirectoryError(
            f"{place} holds a finished run",
            why="a sealed artifact is never overwritten",
            fix=f"use it as it is, {_ANOTHER}, or delete the folder",
        )
    if found is None:
        with os.scandir(place) as entries:
            is_used = any(
                entry.name != LOCK and not _is_half_claim(entry.name) for entry in entries
            )
        if is_used:
            raise UsedDirectoryError(
                f"{place} is not empty",
                why="it holds files that no tunesmith run made",
                fix=f"{_ANOTHER}, or empty the folder",
            )
    elif found.get("key") != key:
        raise UsedDirectoryError(
            f"{place} holds an unfinished run with other inputs",
            why="going on with other data or settings would mix two runs",
            fix=f"restore its settings and resume it, {_ANOTHER}, or delete the folder",
        )
    elif not resume:
        raise UsedDirectoryError(
            f"{place} holds an unfinished run",
            why="it was interrupted before it was sealed",
            fix=f"go on with `--resume`, {_ANOTHER}, or delete the folder",
        )
