"""Datasets of the Hugging Face hub: the files of a reference, fetched into the hub's own cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.read.layout import chosen, fits
from tunesmith.errors import ConfigError, EnvironmentProblem, MissingError, listed, reason_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Reference", "fetch", "is_reference", "parsed"]

# A path of Python's has no empty parts: "hf://" may come as "hf:/".
_BEGIN = re.compile(r"hf:/{1,2}")
_REFERENCE = re.compile(
    r"hf:/{1,2}datasets/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)"
    r"(?:@(?P<revision>[^/@]+))?(?:/(?P<pattern>.+))?"
)
"""A branch with a slash in its name is written with %2F, as the hub's own references have it."""
README = "README.md"


@dataclass(frozen=True)
class Reference:
    """Files of a dataset; `pattern` is empty for all files of its default configuration."""

    repository: str
    revision: str | None
    pattern: str


def is_reference(text: str) -> bool:
    """Whether a place is on the hub."""
    return _BEGIN.match(text) is not None


def parsed(text: str) -> Reference:
    """The parts of `hf://datasets/OWNER/NAME[@REVISION][/PATTERN]`.

    Raises:
        ConfigError: the text has another form.
    """
    found = _REFERENCE.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{text!r} names no dataset of the hub",
            fix="write hf://datasets/OWNER/NAME, with @REVISION or a pattern of files behind it if need be",
        )
    revision = found["revision"]
    return Reference(
        f"{found['owner']}/{found['name']}",
        revision.replace("%2F", "/") if revision else None,
        found["pattern"] or "",
    )


def fetch(text: str, split: str) -> list[Path]:
    """Local paths of the files that a reference means, in order; what is cached is not fetched again.

    The hub is asked at `HF_ENDPOINT`; `HF_TOKEN` and the cache are those of `huggingface_hub`.

    Raises:
        ConfigError: the reference has another form.
        MissingError: the hub cannot be reached, or has no such dataset, revision, file or split.
        EnvironmentProblem: `huggingface_hub` is not installed.
    """
    wanted = parsed(text)
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"{text} needs the package 'huggingface_hub', which is not installed",
            fix="pip install 'tunesmith[data]'",
        ) from error
    # The base is the HTTP client's own: a refused connection is one of those.
    refusals = (*HfHubHTTPError.__mro__[:2], EntryNotFoundError, OSError, ValueError)
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        return _fetched(HfApi(endpoint=endpoint), wanted, split, text)
    except refusals as error:
        raise MissingError(
            f"{text} cannot be fetched: {reason_of(error)}",
            why=f"asked was {endpoint or 'the hub'}",
            fix="check the name, the revision and the network; private data needs HF_TOKEN",
        ) from error


def _fetched(api: HfApi, wanted: Reference, split: str, text: str) -> list[Path]:
    """All files at one commit, so that a push in between mixes nothing."""
    found = api.dataset_info(wanted.repository, revision=wanted.revision)
    names = sorted(file.rfilename for file in found.siblings or [])

    def local(name: str) -> Path:
        return Path(
            api.hf_hub_download(wanted.repository, name, repo_type="dataset", revision=found.sha)
        )

    if wanted.pattern:
        files = [name for name in names if fits(name, wanted.pattern)]
        if not files:
            raise MissingError(
                f"{text}: no file of the dataset matches {wanted.pattern!r}",
                why=f"it has {listed(names)}",
                fix="correct the pattern",
            )
    else:
        card = ""
        if README in names:
            card = local(README).read_text(encoding="utf-8", errors="replace")
        files = chosen(names, card, split, text)
    return [local(name) for name in files]
