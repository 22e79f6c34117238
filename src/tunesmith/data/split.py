"""Rows to train, validation and test: what may not be parted stays on one side.

All of it works on numbers of rows (`spool.FACTS`), not on the rows. Which rows are held out depends on the seed and on
what the rows hold, not on their order; which are drawn for a limit or a mix depends on the seed and on their order.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.data.rows import Row
from tunesmith.data.spool import numpy
from tunesmith.errors import DataError, counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "LEFT_OUT",
    "SPLITS",
    "Units",
    "counts_of",
    "drawn",
    "drawn_order",
    "hash64",
    "hold_out",
    "largest_remainder",
    "overlapping",
    "prompt_key",
    "prompt_text",
    "rank",
    "template_of",
    "together",
]

SPLITS = ("train", "validation", "test")
LEFT_OUT = 255
"""Number of the split of rows that are in none; the others are places in `SPLITS`."""

_QUOTED = re.compile(
    r"""(["'`])(?:(?!\1).)*\1|“[^“”]*”|‘[^‘’]*’|«[^«»]*»|„[^„“”]*[“”]""", re.DOTALL
)
_NUMBER = re.compile(r"[+-]?\d+(?:[.,:/-]\d+)*\s*%?")
_NAME = re.compile(r"(?<![.!?:#\n]\s)(?<!^)\b[A-Z][\w'-]*(?:[ \t]+[A-Z][\w'-]*)*", re.MULTILINE)


def prompt_text(row: Row) -> str:
    """What is compared between prompts: the row's database and the role and text of all turns before the answer.

    Case, Unicode forms, runs of white space and closing punctuation do not count.
    """
    if row.kind == "text":
        return _plain(row.answer)
    turns = row.messages if row.kind == "problem" else row.messages[:-1]
    texts = [f"{turn['role']}\0{_plain(str(turn.get('content') or ''))}" for turn in turns]
    return "\0\0".join([str(row.meta.get("database", "")), *texts])


def prompt_key(row: Row) -> str:
    """Equal for rows that ask the same: hex SHA-256 of `prompt_text`."""
    return hashlib.sha256(prompt_text(row).encode("utf-8", "surrogatepass")).hexdigest()


def _plain(text: str) -> str:
    if text.isascii():
        return " ".join(text.lower().split()).rstrip(" ?!.")
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words).rstrip(" ?!.。？！")


def template_of(text: str) -> str:
    """A text with its quoted values, numbers and names taken out: equal for rows made from one template.

    Names are words with a capital first letter that do not begin a sentence; a language without capitals, or a text in
    small letters, has none that can be told.
    """
    masked = _NUMBER.sub("<number>", _NAME.sub("<name>", _QUOTED.sub("<value>", text)))
    return _plain(masked)


def hash64(text: str) -> int:
    """64-bit hash of a text: 1,000,000 texts share one with a chance of 3 in 100,000,000."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def together(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """For each row the first row of its unit: rows that share any key are in one, through other rows too.

    Args:
        keys: (rows,) each, of one length.
    """
    np = numpy()
    groups = [np.unique(key, return_inverse=True)[1] for key in keys]
    first: NDArray[Any] = np.arange(len(keys[0]), dtype=np.int64)
    while True:
        before = first
        for group in groups:
            lowest = np.full(len(first), len(first), dtype=np.int64)
            np.minimum.at(lowest, group, first)
            first = lowest[group]
        first = first[first]
        if np.array_equal(first, before):
            return first


@dataclass(frozen=True)
class Units:
    """Rows that may not be parted, as one thing each.

    Attributes:
        of_row: (rows,) number of each row's unit, from 0.
        sizes: (units,) rows of each.
        strata: (units,) number of the stratum that most of its rows have; all 0 without strata.
        made_by: what keeps rows together, for messages.
    """

    of_row: NDArray[np.int64]
    sizes: NDArray[np.int64]
    strata: NDArray[np.int64]
    made_by: str

    @classmethod
    def of(cls, first: NDArray[Any], strata: NDArray[Any] | None, made_by: str) -> Units:
        """Units from any number that is equal in a unit and differs between units, and each row's stratum."""
        np = numpy()
        count, of_row = np.unique(first, return_inverse=True)
        sizes = np.bincount(of_row, minlength=len(count))
        most = np.zeros(len(count), dtype=np.int64)
        if strata is not None:
            pairs, n_rows = np.unique(np.stack([of_row, strata]), axis=1, return_counts=True)
            # The last of equal units in this order is the one with most rows, and the lowest stratum.
            order = np.lexsort((-pairs[1], n_rows, pairs[0]))
            most[pairs[0][order]] = pairs[1][order]
        return cls(of_row, sizes, most, made_by)

    def keys(self, prompts: NDArray[np.uint8]) -> list[str]:
        """Each unit's lowest prompt key, hexadecimal: what its rank is drawn from. `prompts` is (rows, 32)."""
        np = numpy()
        start = prompts[:, :8].copy().view(">u8")[:, 0]
        order = np.lexsort((start, self.of_row))
        _, places = np.unique(self.of_row[order], return_index=True)
        return [prompts[row].tobytes().hex() for row in order[places]]


def drawn_order(keys: Sequence[str], seed: int, split: str) -> NDArray[np.int64]:
    """Units in the order in which they are held out for a split."""
    ranks = [rank(seed, split, key) for key in keys]
    order: NDArray[np.int64] = numpy().array(
        sorted(range(len(keys)), key=ranks.__getitem__), dtype="i8"
    )
    return order


def hold_out(
    units: Units, order: NDArray[np.int64], n_wanted: int, split: str, *, in_order: bool = False
) -> NDArray[np.bool_]:
    """Which units to hold out for a split.

    Units are taken in `order` until `n_wanted` rows are held out, of each stratum its share; a few rows more when
    the last unit has several. Units with more rows than are wanted stay, unless all have. At least one unit is
    held out and one stays.

    Args:
        order: the units that may be taken, first one first.
        n_wanted: rows to hold out.
        split: what they are held out for.
        in_order: take no unit before the ones that stand before it in `order`, whatever its size.

    Returns:
        (units,) whether each is held out.

    Raises:
        DataError: units are too few or too large for it.
    """
    np = numpy()
    sizes = units.sizes
    n_rows = int(sizes[order].sum())
    held: NDArray[Any] = np.zeros(len(sizes), dtype=np.bool_)
    if len(order) < 2 or n_wanted >= n_rows:
        raise _cannot_split(units, order, n_wanted, split)
    by_stratum = _strata(units, order)
    quotas = largest_remainder(max(1, n_wanted), [int(sizes[free].sum()) for free in by_stratum])
    n_left = 0
    for free, quota in zip(by_stratum, quotas, strict=True):
        # What one stratum's last unit has too many of, the next ones have less.
        n_left += quota
        if not in_order:
            free = free[sizes[free] <= max(n_left, int(sizes[free].min()))]
        before = np.cumsum(sizes[free]) - sizes[free]
        chosen = free[before < n_left]
        held[chosen] = True
        n_left -= int(sizes[chosen].sum())
    if held[order].all():
        held[order[-1]] = False
    n_held = int(sizes[held].sum())
    if not n_held or 2 * n_held < n_wanted or 2 * n_held > n_rows:
        raise _cannot_split(units, order, n_wanted, split)
    return held


def _strata(units: Units, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The units of each stratum, in their order."""
    np = numpy()
    strata = units.strata[order]
    sorted_order = order[np.argsort(strata, kind="stable")]
    _, starts = np.unique(units.strata[sorted_order], return_index=True)
    return list(np.split(sorted_order, starts[1:]))


def largest_remainder(total: int, shares: Sequence[float]) -> list[int]:
    """`total` divided in whole numbers by shares: each gets its quota rounded down, the largest remainders one more.

    Of equal remainders the first one gets it (Hamilton's method).
    """
    whole = sum(shares)
    quotas = [total * share / whole for share in shares]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - quotas[i], i))
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    return counts


def _cannot_split(units: Units, order: NDArray[np.int64], n_wanted: int, split: str) -> DataError:
    sizes = units.sizes[order]
    n_rows, largest = int(sizes.sum()), int(sizes.max(initial=0))
    wanted = max(1, n_wanted)
    if n_wanted >= n_rows:
        why = "some rows must stay for training"
    elif len(order) < 2:
        why = f"rows with {units.made_by} stay on one side: trained on, they say nothing when they are also tested"
    else:
        why = (
            f"rows with {units.made_by} stay on one side, and the largest of {len(order)} such groups "
            f"has {largest:,} of the {counted(n_rows, 'row')}"
        )
    return DataError(
        f"{counted(n_rows, 'row')} in {counted(len(order), 'group')} cannot be split: "
        f"{counted(wanted, 'row')} {'is' if wanted == 1 else 'are'} wanted for {split}",
        why=why,
        fix=f"add rows, name a file as data.source.{split}, or change data.split (see docs/data/splitting.md)",
    )


def drawn(n_rows: int, limit: int | None, seed: int, split: str) -> NDArray[np.bool_]:
    """Which of a split's rows a limit keeps, drawn by the seed: (rows,)."""
    np = numpy()
    if limit is None or n_rows <= limit:
        whole: NDArray[Any] = np.ones(n_rows, dtype=np.bool_)
        return whole
    places = sorted(range(n_rows), key=lambda place: rank(seed, split, str(place)))
    kept: NDArray[Any] = np.zeros(n_rows, dtype=np.bool_)
    kept[places[:limit]] = True
    return kept


def rank(seed: int, split: str, key: str) -> str:
    """By what a choice of the seed is ordered."""
    return hashlib.sha256(f"{seed}/{split}/{key}".encode()).hexdigest()


def overlapping(
    keys: NDArray[np.uint64], splits: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of train and validation whose key stands in the test, and of train in validation.

    Returns:
        The rows, each once and in order, and for each the first held-out row with its key; a row of the test before
        one of the validation rows.
    """
    np = numpy()
    order = np.flatnonzero(splits != LEFT_OUT)
    # Held-out rows first: test, validation, train; rows of one split in their order.
    order = order[np.argsort(-splits[order].astype(np.int64), kind="stable")]
    _, first, group = np.unique(keys[order], return_index=True, return_inverse=True)
    rows, held = order, order[first[group]]
    found = splits[held] > splits[rows]
    rows, held = rows[found], held[found]
    by_row = np.argsort(rows, kind="stable")
    return rows[by_row], held[by_row]


def counts_of(splits: NDArray[np.uint8]) -> Mapping[str, int]:
    """Split -> number of its rows."""
    np = numpy()
    found = np.bincount(splits, minlength=256)
    return {name: int(found[place]) for place, name in enumerate(SPLITS)}
