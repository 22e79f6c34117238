"""Run directories, sealed artifacts and their lineage."""

from tunesmith.store.artifact import MANIFEST, Artifact, FileEntry, Parent, by_content
from tunesmith.store.failpoints import reach
from tunesmith.store.files import (
    canonical_json,
    flush_to_disk,
    put_back,
    sha256_of_file,
    sha256_of_json,
    storage_errors,
    write_atomically,
    writing,
    writing_folder,
)
from tunesmith.store.lineage import Ancestor, lineage, open_parent
from tunesmith.store.run import Run

__all__ = [
    "MANIFEST",
    "Ancestor",
    "Artifact",
    "FileEntry",
    "Parent",
    "Run",
    "by_content",
    "canonical_json",
    "flush_to_disk",
    "lineage",
    "open_parent",
    "put_back",
    "reach",
    "sha256_of_file",
    "sha256_of_json",
    "storage_errors",
    "write_atomically",
    "writing",
    "writing_folder",
]
