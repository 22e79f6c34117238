"""What builders have in common: made rows with their origin, what was dropped and why, seeded draws."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.errors import ConfigError, DataError, MissingError, counted
from tunesmith.store import storage_errors, write_atomically, writing_folder

__all__ = [
    "SPLITS",
    "Dropped",
    "Made",
    "Order",
    "chat",
    "divided",
    "existing",
    "lines_of",
    "read_text",
    "write",
]

Item = TypeVar("Item")
SPLITS = ("train", "validation", "test")
MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Dropped:
    """What did not become a row: its place, what it was, and the reason."""

    where: str
    what: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        """A line of the side file."""
        return {"where": self.where, "what": self.what, "reason": self.reason}


@dataclass
class Made:
    """What a builder made.

    Attributes:
        kind: the builder's name.
        rows: values of canonical rows; each `meta` holds `source` and `where`.
        dropped: everything that did not become a row.
        notes: what the user should know or do, one sentence each.
        facts: figures for the report.
    """

    kind: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def drop(self, where: str, what: str, reason: str) -> None:
        """Account for something that makes no row."""
        self.dropped.append(Dropped(where, what, reason))

    def refuse_empty(self, what: str, *, why: str = "", fix: str) -> None:
        """Stop when nothing was made.

        Raises:
            DataError: with the reasons for which all was dropped, when nothing else is known.
        """
        if self.rows:
            return
        examples: dict[str, list[str]] = {}
        for gone in self.dropped:
            examples.setdefault(gone.reason.partition(": ")[0], []).append(gone.reason)
        most = sorted(examples.values(), key=len, reverse=True)[:3]
        said = "; ".join(f"{same[0]} ({len(same)} such)" for same in most)
        raise DataError(what, why=why or said, fix=fix)

    def summary(self) -> dict[str, Any]:
        """Counts for people and for `--json`."""
        reasons = Counter(gone.reason.partition(": ")[0] for gone in self.dropped)
        splits = Counter(row["meta"].get("split") for row in self.rows)
        return {
            "kind": self.kind,
            "rows": len(self.rows),
            "splits": {split: splits[split] for split in SPLITS if split in splits},
            "dropped": dict(reasons.most_common()),
            **self.facts,
            "notes": self.notes,
        }


class Order:
    """Random choices that depend on nothing but a seed and what is chosen from (SHA-256)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def number(self, *key: object) -> int:
        """64 bits for a key."""
        text = "\0".join(str(part) for part in (self.seed, *key))
        return int.from_bytes(hashlib.sha256(text.encode(errors="replace")).digest()[:8], "big")

    def shuffled(self, items: Iterable[Item], *key: object) -> list[Item]:
        """The items in a random order."""
        placed = enumerate(items)
        return [item for _, item in sorted(placed, key=lambda at: self.number(*key, at[0]))]

    def pick(self, items: Sequence[Item], *key: object) -> Item:
        """One of the items."""
        return items[self.number(*key) % len(items)]


def chat(
    question: str, answer: str, meta: Mapping[str, Any], system: str | None = None
) -> dict[str, Any]:
    """A conversation of one question and one answer."""
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "meta": dict(meta)}


def divided(names: Iterable[str], ratios: Mapping[str, float], order: Order) -> dict[str, str]:
    """A split for every name: at least one name for each split that is asked for.

    Raises:
        DataError: there are fewer names than splits.
    """
    found = order.shuffled(sorted(set(names)), "divided")
    wanted = {split: ratio for split, ratio in ratios.items() if ratio > 0}
    if len(found) <= len(wanted):
        raise DataError(
            f"{counted(len(found), 'different group')} cannot be divided into {len(wanted) + 1} splits",
            fix="give more material, or do not hold anything out",
        )
    splits = dict.fromkeys(found, "train")
    at = 0
    for split, ratio in wanted.items():
        n_names = max(1, min(round(ratio * len(found)), len(found) - at - len(wanted)))
        splits.update(dict.fromkeys(found[at : at + n_names], split))
        at += n_names
    return splits


def existing(path: Path, *, folder: bool | None = None) -> Path:
    """The path itself.

    Raises:
        MissingError: nothing is there.
        DataError: it is a folder where a file is needed, or the other way round.
    """
    if not path.exists():
        raise MissingError(f"{path}: no such file or folder", fix="correct the path")
    if folder is True and not path.is_dir():
        raise DataError(f"{path}: a file, not a folder", fix="name the folder that holds it")
    if folder is False and path.is_dir():
        raise DataError(f"{path}: a folder, not a file", fix="name a file in it")
    return path


def read_text(path: Path) -> str:
    """A text file's content, without a byte order mark.

    Raises:
        DataError: it is not UTF-8 text, too large, or may not be read.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(
                f"{path}: larger than {MAX_FILE_BYTES // 2**20} MiB", fix="split the file"
            )
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", fix="make it readable") from error
    if b"\0" in data:
        at = data.index(b"\0")
        raise DataError(
            f"{path}: not a text file (a NUL byte at byte {at})", fix="name a text file"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"{path}: not UTF-8 (byte 0x{data[error.start]:02x} at byte {error.start})"
        raise DataError(what, fix="save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(made: Made, out: Path | None, *, dropped: Path | None = None) -> list[Path]:
    """Write the rows: to one file, or, where `out` has no suffix, to a new folder with a file a split.

    Args:
        out: None writes only what was dropped.

    Raises:
        ConfigError: the folder holds something already.
        StorageError: the disk refuses; then nothing is left behind.
    """
    if dropped is not None:
        write_atomically(dropped, lines_of(gone.as_dict() for gone in made.dropped))
    if out is None:
        return []
    with storage_errors(out):
        is_file = bool(out.suffix) and not out.is_dir()
    if is_file:
        write_atomically(out, lines_of(made.rows))
        return [out]
    with storage_errors(out):
        is_used = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_used:
        raise ConfigError(f"{out} holds files already", fix="name a new folder, or a FILE.jsonl")
    by_split: dict[str, list[dict[str, Any]]] = {}
    for row in made.rows:
        by_split.setdefault(row["meta"].get("split", "train"), []).append(row)
    names = [split for split in SPLITS if split in by_split]
    with writing_folder(out) as folder:
        for split in names:
            write_atomically(folder / f"{split}.jsonl", lines_of(by_split[split]))
    return [out / f"{split}.jsonl" for split in names]
