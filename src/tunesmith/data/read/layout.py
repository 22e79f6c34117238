"""The layout of the hub's datasets: which files belong to which split.

Source: the hub's documentation, "Data files configuration" and "File names and splits".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from tunesmith.data.read.told import promised
from tunesmith.errors import DataError, MissingError

__all__ = ["chosen", "fits", "is_about", "is_layout", "split_of"]

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_MOST_CHARACTERS = 2**20
_ABOUT = ("readme", "license", "licence", "citation", "dataset_info", "dataset_infos")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NAMES = {word: split for split, words in _SPLITS.items() for word in words}
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.parquet$")


def is_layout(names: Sequence[str], card: str) -> bool:
    """Whether a folder is a dataset of the hub: its README.md lists files, or shards lie in it.

    Args:
        names: of its files, relative, with `/`.
        card: the text of its README.md.
    """
    return bool(_configs(card, "")) or any(_SHARD.search(name) for name in names)


def split_of(name: str) -> str:
    """The split that a file's or folder's name says; "" for none."""
    for part in reversed(name.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in _NAMES:
                return _NAMES[word]
    return ""


def chosen(names: Sequence[str], card: str, split: str, place: str) -> list[str]:
    """Names of the files of a split (of all splits for ""), in order.

    Args:
        names: of its files; those whose names say no form that is read are left out.
        card: the text of the dataset's README.md.
        place: the dataset, for messages.

    Raises:
        DataError: the README's `configs` cannot be read, or there are several and none is the default.
        MissingError: the split, or any file, is not there.
    """
    names = [name for name in names if promised(name) and not is_about(name)]
    configs = _configs(card, place)
    if configs:
        splits = _by_config(names, _default(configs, place))
    else:
        splits = {}
        for name in names:
            # What names no split is for training, as the hub has it.
            splits.setdefault(split_of(name) or "train", []).append(name)
    found = splits.get(split, []) if split else [n for some in splits.values() for n in some]
    if not found:
        have = ", ".join(name for name, some in splits.items() if some) or "none"
        raise MissingError(
            f"{place} has no files of the split {split!r}"
            if split
            else f"{place} has no data files",
            why=f"its splits are: {have}",
            fix="name files of it by a pattern, such as PLACE/data/train-*.parquet",
        )
    return list(dict.fromkeys(found))


def is_about(name: str) -> bool:
    """Whether a file tells of the data instead of holding it."""
    base = name.lower().rsplit("/", 1)[-1]
    return base == "card.md" or base.split(".")[0] in _ABOUT


def _configs(card: str, place: str) -> list[Mapping[str, Any]]:
    """The entries of `configs` in a README's front matter."""
    matter = _FRONT_MATTER.match(card[:_MOST_CHARACTERS])
    if matter is None:
        return []
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe", pure=True).load(matter[1])
    except YAMLError as error:
        if not place:
            return []
        mark = getattr(error, "problem_mark", None)
        raise DataError(
            f"{place}/README.md:{mark.line + 2 if mark else 1}: its front matter is not valid YAML",
            fix="mend it, or name the files themselves",
        ) from error
    configs = found.get("configs") if isinstance(found, Mapping) else None
    if not isinstance(configs, list):
        return []
    return [entry for entry in configs if isinstance(entry, Mapping) and entry.get("data_files")]


def _default(configs: Sequence[Mapping[str, Any]], place: str) -> Mapping[str, Any]:
    """The only configuration, or the one that is the default."""
    if len(configs) == 1:
        return configs[0]
    for entry in configs:
        if entry.get("default") is True or entry.get("config_name") == "default":
            return entry
    names = ", ".join(str(entry.get("config_name")) for entry in configs)
    raise DataError(
        f"{place} has {len(configs)} configurations and none is the default: {names}",
        why="each is a dataset of its own",
        fix="name the files of one by a pattern, such as PLACE/data/train-*.parquet",
    )


def _by_config(names: Sequence[str], entry: Mapping[str, Any]) -> dict[str, list[str]]:
    """Split -> files; `data_files` is a pattern, patterns, or a list of split and path."""
    listed = entry["data_files"]
    parts = listed if isinstance(listed, list) else [listed]
    splits: dict[str, list[str]] = {}
    for part in parts:
        is_named = isinstance(part, Mapping)
        said = str(part.get("split", "train")) if is_named else "train"
        paths = part.get("path", []) if is_named else part
        for pattern in paths if isinstance(paths, list) else [paths]:
            found = [name for name in names if fits(name, str(pattern))]
            splits.setdefault(_NAMES.get(said.lower(), said), []).extend(found)
    return splits


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern means a file; `*` stops at a folder's end, `**` does not."""
    pattern = pattern.removeprefix("./")
    if "**" in pattern:
        return fnmatchcase(name, pattern) or fnmatchcase(name, pattern.replace("**/", "", 1))
    if not any(sign in pattern for sign in "*?["):
        return name == pattern or name.startswith(f"{pattern.rstrip('/')}/")
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)
