"""Run directories, sealed artifacts and their lineage."""

from tunesmith.store.artifact import MANIFEST, Artifact, FileEntry, Parent
from tunesmith.store.files import (
    canonical_json,
    sha256_of_file,
    sha256_of_json,
    storage_errors,
    write_atomically,
    writing,
)
from tunesmith.store.lineage import Ancestor, lineage
from tunesmith.store.run import Run

__all__ = [
    "MANIFEST",
    "Ancestor",
    "Artifact",
    "FileEntry",
    "Parent",
    "Run",
    "canonical_json",
    "lineage",
    "sha256_of_file",
    "sha256_of_json",
    "storage_errors",
    "write_atomically",
    "writing",
]
