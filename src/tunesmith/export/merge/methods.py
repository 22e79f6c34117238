"""The arithmetic of merging: one tensor of each model in, one out. Everything is float32.

Definitions, order of operations and defaults are those of mergekit 0.1.5, so that equal inputs give
equal bits where no rounding depends on how a sum is grouped; `benchmarks/export/mergekit_parity.py`
holds them against it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = ["METHODS", "Method", "Settings", "merge_tensor", "seed_of"]

Keep = Literal["all", "largest", "random"]

_STRAIGHT = 0.9995
"""Cosine of two tensors from which on slerp goes straight: the arc is too flat to be divided by its sine."""
_SMALLEST_NORM = 1e-8
_SMALLEST_SUM = 1e-7
_SMALLEST_WEIGHTS = 1e-8
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Method:
    """What a method needs and does.

    Attributes:
        base: the models' differences from a base are merged, not the models.
        keep: which entries of a difference stay: all, the largest ones, or random ones.
        elects: entries whose sign is not the majority's are left out.
        normalise: whether the weights are divided by their sum unless the user says otherwise.
        weight: each model's weight when none is named; None is one over their number.
        models: fewest and most models; None is any number.
        source: the paper.
        about: one line of help.
    """

    about: str
    source: str
    base: bool = True
    keep: Keep = "all"
    elects: bool = False
    normalise: bool = False
    weight: float | None = 1.0
    models: tuple[int, int | None] = (1, None)


METHODS: Mapping[str, Method] = {
    "linear": Method(
        "the weighted mean of the models",
        "Wortsman et al. 2022, arXiv 2203.05482",
        base=False,
        normalise=True,
        weight=None,
    ),
    "slerp": Method(
        "from the first model to the second along the arc between them",
        "Shoemake 1985",
        base=False,
        models=(2, 2),
    ),
    "task_arithmetic": Method(
        "the base and the weighted sum of the models' differences from it",
        "Ilharco et al. 2022, arXiv 2212.04089",
    ),
    "ties": Method(
        "the largest differences, those of the majority's sign, averaged",
        "Yadav et al. 2023, arXiv 2306.01708",
        keep="largest",
        elects=True,
        normalise=True,
    ),
    "dare_linear": Method(
        "random differences, made up for in size, and summed",
        "Yu et al. 2023, arXiv 2311.03099",
        keep="random",
    ),
    "dare_ties": Method(
        "random differences, those of the majority's sign, summed",
        "Yu et al. 2023, arXiv 2311.03099",
        keep="random",
        elects=True,
    ),
    "concat": Method(
        "several LoRA adapters as one of the summed rank: exactly their weighted sum",
        "ranks stacked, as PEFT's add_weighted_adapter(combination_type='cat')",
        base=False,
        weight=None,
        models=(2, None),
    ),
}
"""Name -> what it is."""


@dataclass(frozen=True)
class Settings:
    """How to merge.

    Attributes:
        weights: one a model; not used by slerp.
        normalise: divide by the sum of the weights.
        densities: share of each model's differences that stays, one a model.
        scale: all merged differences are multiplied by this (lambda).
        t: where on the arc, 0 the first model, 1 the second.
        seed: of the random choices.
    """

    method: str
    weights: tuple[float, ...]
    normalise: bool
    densities: tuple[float, ...] = ()
    scale: float = 1.0
    t: float = 0.5
    seed: int = 0

    @property
    def kind(self) -> Method:
        """What the method needs and does."""
        return METHODS[self.method]


def seed_of(seed: int, name: str) -> int:
    """Seed of a tensor's random choices: it depends on its name, not on what was merged before it."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def merge_tensor(
    name: str,
    settings: Settings,
    models: Iterable[torch.Tensor],
    base: torch.Tensor | None = None,
) -> torch.Tensor:
    """One tensor of the merged model.

    Args:
        name: the tensor's.
        settings: as checked by the plan.
        models: the tensor in each model; its difference from the base where the method merges
            differences. Taken one after the other; may be changed in place.
        base: the tensor in the base, for these methods.

    All are float32 and of one shape; so is the result.
    """
    if settings.method == "slerp":
        first, second = models
        return slerp(first, second, settings.t)
    if base is None:
        return _mean(models, settings)
    return _difference(name, settings, models).add_(base)


def _mean(models: Iterable[torch.Tensor], settings: Settings) -> torch.Tensor:
    import torch

    weights = torch.tensor(settings.weights, dtype=torch.float32)
    total = torch.zeros(())
    for number, (tensor, weight) in enumerate(zip(models, weights, strict=True)):
        total = torch.zeros_like(tensor) if number == 0 else total
        total.addcmul_(tensor, weight)
    return total.div_(weights.sum()) if settings.normalise else total


def _difference(name: str, settings: Settings, deltas: Iterable[torch.Tensor]) -> torch.Tensor:
    """What is added to the base."""
    import torch

    kind = settings.kind
    random = torch.Generator().manual_seed(seed_of(settings.seed, name))
    weights = torch.tensor(settings.weights, dtype=torch.float32)
    parts = [
        _thinned(delta, density, kind.keep, random).mul_(weight)
        for delta, density, weight in zip(deltas, settings.densities, weights, strict=True)
    ]
    if kind.elects:
        total = _elected(parts, weights, normalise=settings.normalise)
    else:
        total = parts[0]
        for part in parts[1:]:
            total = total.add_(part)
        if settings.normalise:
            divisor = weights.sum()
            total.div_(torch.where(divisor.abs() < _SMALLEST_WEIGHTS, 1.0, divisor))
    return total.mul_(settings.scale) if settings.scale != 1 else total


def _elected(
    parts: Sequence[torch.Tensor], weights: torch.Tensor, *, normalise: bool
) -> torch.Tensor:
    """Sum of the entries that have the sign of all parts' sum, divided by their weights where that is asked.

    A sum of nothing counts as positive; entries that are 0 have no sign and no weight. Done stretch by
    stretch: what is needed on the way is small.
    """
    import torch

    total = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
    flat = total.view(1, -1)
    for start in range(0, flat.shape[1], _CHUNK):
        pieces = [part.reshape(1, -1)[:, start : start + _CHUNK] for part in parts]
        majority = torch.zeros_like(pieces[0])
        for piece in pieces:
            majority += piece
        positive = majority >= 0
        sums, divisor = torch.zeros_like(majority), torch.zeros_like(majority)
        for piece, weight in zip(pieces, weights, strict=True):
            agrees = torch.where(positive, piece > 0, piece < 0)
            sums += torch.where(agrees, piece, 0.0)
            divisor += agrees * weight
        if normalise:
            divisor[divisor == 0] = 1
            sums /= divisor
        flat[:, start : start + _CHUNK] = sums
    return total


def _thinned(
    delta: torch.Tensor, density: float, keep: Keep, random: torch.Generator
) -> torch.Tensor:
    """A difference with some of its entries set to 0."""
    if keep == "all" or density >= 1:
        return delta
    return _largest(delta, density) if keep == "largest" else _random(delta, density, random)


def _largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """The share `density` of the entries, at least one, that is largest in magnitude.

    Of equal magnitudes the first ones stay, as a stable sort has it: after 16-bit storage many are equal.
    """
    import numpy as np
    import torch

    size = delta.numel()
    if size == 0:
        return delta
    count = max(1, int(density * size))
    magnitudes = delta.abs().reshape(-1).numpy()
    bound = np.partition(magnitudes, size - count)[size - count]
    stays = magnitudes > bound
    ties = np.flatnonzero(magnitudes == bound)
    stays[ties[: count - int(np.count_nonzero(stays))]] = True
    return delta * torch.from_numpy(stays).reshape(delta.shape)


def _random(delta: torch.Tensor, density: float, random: torch.Generator) -> torch.Tensor:
    """Entries that a throw of a coin keeps, scaled up so that the sum of magnitudes stays.

    The paper divides by the density instead: the same but for the luck of the throw. This is mergekit's.
    """
    import torch

    kept = torch.bernoulli(torch.full_like(delta, density), generator=random).mul_(delta)
    before, after = delta.abs().sum(), kept.abs().sum()
    if before < _SMALLEST_SUM or after < _SMALLEST_SUM:
        return kept
    return kept.mul_(before / after)


def slerp(first: torch.Tensor, second: torch.Tensor, t: float) -> torch.Tensor:
    """Along the great circle through two tensors taken as vectors; straight where they are almost parallel.

    The angle's cosine is summed in stretches of a fixed size, as mergekit sums it: where the angle is
    small, the last bit of the cosine is many bits of the angle.
    """
    import torch

    a, b = first.reshape(1, -1), second.reshape(1, -1)
    norms = [_norm(a), _norm(b)]
    parts = [
        ((x / norms[0]) * (y / norms[1])).sum(dim=1)
        for x, y in zip(_stretches(a), _stretches(b), strict=True)
    ]
    cosine = torch.stack(parts).sum(dim=0).clamp(-1, 1)
    share = torch.tensor([t], dtype=torch.float32)
    if float(cosine.abs()) > _STRAIGHT:
        of_first, of_second = 1 - share, share
    else:
        angle = torch.acos(cosine)
        sine = torch.sin(angle)
        of_first = torch.sin((1 - share) * angle) / sine
        of_second = torch.sin(share * angle) / sine
    return of_first * first + of_second * second


def _norm(vector: torch.Tensor) -> torch.Tensor:
    """Euclidean length of (1, n), as (1,); 1 for a vector of zeros."""
    import torch

    parts = [torch.linalg.vector_norm(part, dim=1) for part in _stretches(vector)]
    length = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return torch.where(length > _SMALLEST_NORM, length, 1)


def _stretches(vector: torch.Tensor) -> Iterator[torch.Tensor]:
    """(1, n) in pieces."""
    for start in range(0, vector.shape[1], _CHUNK):
        yield vector[:, start : start + _CHUNK]
