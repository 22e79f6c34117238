"""A quantised GGUF file under its name when it is whole; refused before anything is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.errors import ConfigError
from tunesmith.export.quantise.file import Options, Quantised, prepare
from tunesmith.store import storage_errors, writing

if TYPE_CHECKING:
    from tunesmith.export.quantise.policy import Kind

__all__ = ["quantise_gguf"]


def quantise_gguf(
    source: Path, target: Path, kind: Kind, options: Options | None = None
) -> Quantised:
    """A whole file under a new name, or none, and no folder that was not there.

    Raises:
        ConfigError: there is a file of that name already.
        ModelError: the source is damaged, in parts or quantised already; a weight is no finite number
            or too large for its format; the importance matrix belongs to another model.
        EnvironmentProblem: the kernels are not installed.
        StorageError: too little room, or the disk refuses.
    """
    with storage_errors(target):
        if target.exists():
            raise ConfigError(
                f"{target} is there already",
                why="it is a folder" if target.is_dir() else "a model's file is never overwritten",
                fix="name another file by --out, or delete that one",
            )
    made = prepare(source, kind, options or Options())
    made.check_space(target)
    with _no_new_folder(target), writing(target) as temporary:
        return made.write(temporary)


@contextmanager
def _no_new_folder(target: Path) -> Iterator[None]:
    """Folders on the way to `target` that were made in the block go again when it fails."""
    missing = [folder for folder in target.absolute().parents if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in missing:
            # One that was never made, or that somebody else uses by now, stays as it is.
            with suppress(OSError):
                folder.rmdir()
        raise
