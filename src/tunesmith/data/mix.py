"""How many rows of each part a weighted mix has, and which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data.split import largest_remainder, rank
from tunesmith.data.spool import numpy
from tunesmith.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Mix", "Share", "mixed", "shares"]


@dataclass(frozen=True)
class Mix:
    """What is asked for.

    Attributes:
        weights: part -> its weight, all positive.
        n_rows: training rows; None for as many as need no row twice.
        max_repeats: most often that a row may stand in the training rows.
    """

    weights: Mapping[str, float]
    n_rows: int | None
    max_repeats: int


@dataclass(frozen=True)
class Share:
    """One part of a mix: its training rows, and how many lines of the result they are.

    `repeats` is how often a row stands there, on average: 0.25 is down-sampling by four, 2 is up-sampling by two.
    """

    rows: int
    wanted: int

    @property
    def repeats(self) -> float:
        """Lines for each row."""
        return self.wanted / self.rows

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        return {"rows": self.rows, "in_mix": self.wanted, "repeats": round(self.repeats, 3)}


def shares(mix: Mix, n_rows: Mapping[str, int]) -> dict[str, Share]:
    """Lines for each part, by largest remainder.

    Args:
        n_rows: part -> training rows that it has.

    Raises:
        DataError: a part has no rows, or too few for its weight.
    """
    if empty := [name for name in mix.weights if not n_rows.get(name)]:
        raise DataError(
            f"the mix has no training rows of {' and '.join(empty)}",
            why="all of them were held out, dropped or are not there",
            fix="name files with more rows in data.source.parts, or leave the part out",
        )
    names, weights = list(mix.weights), list(mix.weights.values())
    total = mix.n_rows
    if total is None:
        # The part with the fewest rows for its weight says how many there are in all.
        whole = sum(weights)
        total = int(min(n_rows[name] * whole / mix.weights[name] for name in names) + 1e-9)
    counts = largest_remainder(total, weights)
    if mix.n_rows is None:
        counts = [min(count, n_rows[name]) for count, name in zip(counts, names, strict=True)]
    found = {name: Share(n_rows[name], count) for name, count in zip(names, counts, strict=True)}
    over = [name for name, share in found.items() if share.repeats > mix.max_repeats]
    if over:
        told = "; ".join(
            f"{name}: {found[name].wanted} wanted, {found[name].rows} there" for name in over
        )
        raise DataError(
            f"the mix needs rows more than data.source.max_repeats={mix.max_repeats} times: {told}",
            why="rows that are seen too often are learned by heart",
            fix="lower data.source.train_rows or the part's weight, add rows, or raise max_repeats",
        )
    return found


def mixed(
    parts: NDArray[Any], places: NDArray[np.int64], found: Mapping[str, Share], seed: int
) -> NDArray[np.int64]:
    """How often each training row stands in the mix.

    A part's rows stand there equally often; those that do so once more than the others are drawn by the seed.

    Args:
        parts: (rows,) number of each row's part, in the order of `found`.
        places: the training rows.

    Returns:
        (rows,) counts; 0 for rows that are in no training row or are not drawn.
    """
    np = numpy()
    counts: NDArray[Any] = np.zeros(len(parts), dtype=np.int64)
    for number, (name, share) in enumerate(found.items()):
        rows = places[parts[places] == number]
        whole, more = divmod(share.wanted, share.rows)
        counts[rows] = whole
        ranked = sorted(range(len(rows)), key=lambda place: rank(seed, f"mix/{name}", str(place)))
        counts[rows[ranked[:more]]] += 1
    return counts


def refuse_unknown(parts: Mapping[str, Any], weights: Mapping[str, float]) -> None:
    """Stop when a weight is given for a part that is not there.

    Raises:
        ConfigError: names them.
    """
    unknown = [name for name in weights if name not in parts]
    if unknown:
        raise ConfigError(
            f"data.source.weights names {', '.join(map(repr, unknown))}, which is no part of the mix",
            why=f"the parts are {', '.join(parts)}",
            fix="name the weights as the parts are named",
        )
