"""How far annotators agree beyond chance, and what they say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

__all__ = ["Agreement", "agreement_of", "cohens_kappa", "krippendorffs_alpha", "majority"]

Votes = Mapping[str, Hashable]
"""Annotator -> label, of one item."""


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree.

    Attributes:
        n_items: items with at least two labels; the others say nothing about agreement.
        n_annotators: who labelled at least one of them.
        observed: share of items on which all that labelled it say the same.
        kappa: Cohen's kappa, for exactly two annotators.
        alpha: Krippendorff's alpha, for any number of them, gaps allowed.
        pairs: kappa of each pair of annotators, on the items that both labelled.
        why: why a figure is None.
    """

    n_items: int
    n_annotators: int
    observed: float | None
    kappa: float | None
    alpha: float | None
    pairs: Mapping[str, float | None]
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**vars(self), "pairs": dict(self.pairs)}


def cohens_kappa(left: Sequence[Hashable], right: Sequence[Hashable]) -> float | None:
    """Cohen's kappa of two annotators (Cohen 1960): (p_o - p_e) / (1 - p_e).

    p_o is the share of equal labels; p_e is the share that chance would give, the sum over labels of
    the product of both annotators' shares.

    Args:
        left: labels of one annotator.
        right: those of the other, in the same order.

    Returns:
        At most 1; 0 is what chance gives. None without items, and when both used one and the same
        label only, since chance alone would then agree always.

    Raises:
        ValueError: not as many labels on both sides.
    """
    if len(left) != len(right):
        raise ValueError(f"{len(left)} labels beside {len(right)}")
    n = len(left)
    if not n:
        return None
    observed = sum(a == b for a, b in zip(left, right, strict=True)) / n
    counts_left, counts_right = Counter(left), Counter(right)
    expected = sum(counts_left[label] * counts_right[label] for label in counts_left) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def nominal(left: Any, right: Any) -> float:
    """Distance of two labels that have no order."""
    return float(left != right)


def interval(left: Any, right: Any) -> float:
    """Distance of two numbers, such as ratings."""
    return float(left - right) ** 2


def krippendorffs_alpha(
    items: Sequence[Sequence[Any]], distance: Callable[[Any, Any], float] = nominal
) -> float | None:
    """Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    1 - D_o / D_e: the observed disagreement, over all pairs of labels within an item, each item
    weighted by 1 / (m_u - 1) for its m_u labels; and the disagreement expected when labels are
    paired by chance, over all pairs of labels of all items.

    Args:
        items: the labels that each item was given; missing ones are left out. Items with fewer than
            two labels cannot be paired and do not count.
        distance: `nominal` for labels, `interval` for ratings.

    Returns:
        At most 1. None when there is nothing to pair, or all labels are the same.
    """
    paired = [labels for labels in items if len(labels) > 1]
    totals: Counter[Any] = Counter(label for labels in paired for label in labels)
    n = sum(totals.values())
    if not n:
        return None
    observed = sum(
        2 * sum(distance(a, b) for a, b in combinations(labels, 2)) / (len(labels) - 1)
        for labels in paired
    )
    expected = sum(2 * totals[a] * totals[b] * distance(a, b) for a, b in combinations(totals, 2))
    return None if expected == 0 else 1 - (n - 1) * observed / expected


def agreement_of(
    items: Sequence[Votes], distance: Callable[[Any, Any], float] = nominal
) -> Agreement:
    """All figures of a set of labelled items."""
    paired = [votes for votes in items if len(votes) > 1]
    annotators = sorted({name for votes in paired for name in votes})
    if not paired:
        return Agreement(0, 0, None, None, None, {}, "no item has labels of two annotators")
    pairs = {
        f"{a} and {b}": _kappa_of(paired, a, b) for a, b in list(combinations(annotators, 2))[:45]
    }
    observed = sum(len(set(votes.values())) == 1 for votes in paired) / len(paired)
    alpha = krippendorffs_alpha([list(votes.values()) for votes in paired], distance)
    kappa = next(iter(pairs.values())) if len(annotators) == 2 else None
    why = "" if alpha is not None else "all labels are the same: chance alone would agree always"
    return Agreement(len(paired), len(annotators), observed, kappa, alpha, pairs, why)


def _kappa_of(items: Sequence[Votes], a: str, b: str) -> float | None:
    both = [votes for votes in items if a in votes and b in votes]
    return cohens_kappa([votes[a] for votes in both], [votes[b] for votes in both])


def majority(votes: Votes) -> Hashable | None:
    """The label that more annotators gave than any other; None when several share the first place."""
    first, *others = Counter(votes.values()).most_common(2) or [(None, 0)]
    return None if others and others[0][1] == first[1] else first[0]
