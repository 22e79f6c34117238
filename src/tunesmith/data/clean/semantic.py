"""Questions that mean the same in other words, by a model's token embeddings.

A question is the mean of its telling words' embeddings, rare tokens weighing more (smooth inverse frequency; Arora,
Liang and Ma 2017, "A simple but tough-to-beat baseline for sentence embeddings"), without the rows' mean and first
principal component. On SmolLM2-135M these vectors tell intents apart as well as the best layer's hidden states do, and
need no forward pass; docs/data/cleaning.md has the figures. It works offline, and it errs: look at the side file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.config import ModelConfig
from tunesmith.data.near import Said
from tunesmith.data.sketches import numpy
from tunesmith.data.wording import Wording, folded, wording
from tunesmith.errors import CapacityError, EnvironmentProblem, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy import float32, int64
    from numpy.typing import NDArray

__all__ = ["MOST_ROWS", "same_meaning", "vectors"]

MOST_ROWS = 50_000
"""Rows with one answer, or without any, that are compared each with each: about a minute on two cores."""
_SMOOTHING = 1e-3
"""Arora et al.'s `a`; they find 1e-3 to 1e-4 best."""
_LEAST_ROWS = 100
"""Of fewer rows the first component may be what two of them share."""
_NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")
_BLOCK = 1_024


def same_meaning(rows: Sequence[Said], threshold: float, model: str) -> NDArray[int64]:
    """For each row the first row that asks the same and has an equal answer; itself where there is none.

    Numbers, quoted values, negations and names must agree, as for near-duplicates.

    Args:
        threshold: cosine similarity of two questions from which they mean the same.
        model: `embedded`, a folder, a .gguf file or a Hub id; its tokenizer and input embeddings are used.

    Raises:
        CapacityError: too many rows share one answer, or have none.
        MissingError, ModelError, EnvironmentProblem: the model cannot be read.
    """
    np = numpy()
    first: NDArray[int64] = np.arange(len(rows), dtype=np.int64)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[folded(row.answer)].append(index)
    groups = {answer: places for answer, places in groups.items() if len(places) > 1}
    largest = max(map(len, groups.values()), default=0)
    if largest > MOST_ROWS:
        raise CapacityError(
            f"{largest:,} rows with the same answer, or none, are too many to compare by meaning",
            why=f"each is compared with each; {MOST_ROWS:,} take about a minute",
            fix="set data.clean.semantic to keep, or clean the files in parts",
        )
    if not groups:
        return first
    made = vectors([row.question for row in rows], model)
    for places in groups.values():
        for at, leader in _leaders(made[places], [rows[place] for place in places], threshold):
            first[places[at]] = places[leader]
    return first


def _leaders(
    made: NDArray[float32], rows: Sequence[Said], threshold: float
) -> Iterable[tuple[int, int]]:
    """(row, first row like it) of one group, in order; no row is like a row that is dropped itself."""
    np = numpy()
    dropped: set[int] = set()
    said: dict[int, Wording] = {}

    def read(at: int) -> Wording:
        if at not in said:
            said[at] = wording(rows[at].question)
        return said[at]

    for start in range(0, len(rows), _BLOCK):
        block = made[start : start + _BLOCK]
        alike = block @ made[: start + len(block)].T >= threshold
        for offset, other in zip(*map(np.ndarray.tolist, np.nonzero(alike)), strict=True):
            at = start + offset
            if other >= at or at in dropped or other in dropped:
                continue
            if _may_mean_the_same(read(at), read(other)):
                dropped.add(at)
                yield at, other


def _may_mean_the_same(one: Wording, other: Wording) -> bool:
    if one.guarded != other.guarded:
        return False
    return one.names <= set(other.words) and other.names <= set(one.words)


def vectors(texts: Sequence[str], model: str) -> NDArray[float32]:
    """(texts, width) vectors of length 1 that depend on all texts, by their telling words. 0 for a text without tokens.

    Raises:
        MissingError, ModelError, EnvironmentProblem: the model cannot be read.
    """
    from tunesmith.models.load import load_tokenizer, resolve_base

    np = numpy()
    base = resolve_base(ModelConfig(base=model))
    table = _embeddings(base.dir)
    tokenizer = load_tokenizer(base)
    made: NDArray[float32] = np.zeros((len(texts), table.shape[1]), dtype=np.float32)
    plain = [" " + " ".join(wording(text).words) for text in texts]
    tokens = [
        ids
        for start in range(0, len(plain), _BLOCK)
        for ids in tokenizer(plain[start : start + _BLOCK], add_special_tokens=False)["input_ids"]
    ]
    counts = np.zeros(len(table), dtype=np.int64)
    for ids in tokens:
        np.add.at(counts, ids, 1)
    weights = _SMOOTHING / (_SMOOTHING + counts / max(1, counts.sum()))
    for at, ids in enumerate(tokens):
        if ids:
            made[at] = weights[ids] @ table[ids] / len(ids)
    return _centred(made)


def _centred(made: NDArray[float32]) -> NDArray[float32]:
    """Without the mean and, of many rows, the first principal component, at length 1."""
    np = numpy()
    made = made - made.mean(axis=0)
    if len(made) >= _LEAST_ROWS:
        _, directions = np.linalg.eigh(made.T @ made)
        first = directions[:, -1:]
        made = made - (made @ first) @ first.T
    lengths = np.linalg.norm(made, axis=1, keepdims=True)
    scaled: NDArray[float32] = made / np.maximum(lengths, 1e-9)
    return scaled


def _embeddings(folder: Path) -> Any:
    """(vocabulary, width) input embeddings, centred, from the model's safetensors.

    Raises:
        ModelError: no tensor has a name that is known.
        EnvironmentProblem: safetensors or torch is not installed.
    """
    try:
        from safetensors import safe_open
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "comparing rows by meaning needs the package 'safetensors', which is not installed",
            fix="pip install 'tunesmith[train]'",
        ) from error
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                if name.endswith(_NAMES):
                    table = opened.get_tensor(name).float().numpy()
                    return table - table.mean(axis=0)
    raise ModelError(
        f"{folder} has no input embeddings that are known",
        why=f"no tensor's name ends in {' or '.join(_NAMES)}",
        fix="name another model as data.clean.semantic_model",
    )
