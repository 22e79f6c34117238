"""Everything that is wrong with the data, so that one error can name it all."""

from __future__ import annotations

from collections import Counter

from tunesmith.errors import DataError, counted, listed

__all__ = ["OfRow", "Problems"]


class Problems:
    """Collects what makes rows unreadable. What more than ten rows share is told once, with their number."""

    SHOWN = 50
    ALIKE = 10
    """So many rows with the same problem get a line each; of more, one line names the first 50."""

    def __init__(self) -> None:
        self.n_problems = 0
        self._named: list[tuple[str, str]] = []
        self._counts: Counter[str] = Counter()

    @property
    def lines(self) -> list[str]:
        """The first 50 problems with their places; those of many rows stand where their first row does."""
        return [line for line, _ in self._told()]

    def add(self, where: str, what: str) -> None:
        """Note a problem; `where` is "file" or "file:line"."""
        self.n_problems += 1
        self._name(where, what)

    def merge(self, other: Problems) -> None:
        """Take over what another one noted, after what is here."""
        self.n_problems += other.n_problems
        more = other._counts.copy()
        for where, what in other._named:
            self._name(where, what)
            more[what] -= 1
        for what, count in more.items():
            if what in self._counts:
                self._counts[what] += count

    def _name(self, where: str, what: str) -> None:
        count = self._counts.get(what, 0)
        is_new = count < self.SHOWN and len(self._named) < self.SHOWN**2
        if is_new:
            self._named.append((where, what))
        if is_new or count:
            self._counts[what] += 1

    def _told(self) -> list[tuple[str, int]]:
        """Lines, and of how many problems each speaks."""
        places: dict[str, list[str]] = {}
        for where, what in self._named:
            places.setdefault(what, []).append(where)
        found: list[tuple[str, int]] = []
        told: set[str] = set()
        for where, what in self._named:
            count = self._counts[what]
            if count <= self.ALIKE:
                found.append((f"{where}: {what}", 1))
            elif what not in told:
                told.add(what)
                found.append((_folded(places[what], what, count), count))
        return found[: self.SHOWN]

    def raise_any(self, fix: str) -> None:
        """Raise what was noted.

        Raises:
            DataError: there is at least one problem. The first 50 different ones are named, all are counted.
        """
        if not self.n_problems:
            return
        told = self._told()
        more = self.n_problems - sum(count for _, count in told)
        text = listed([line for line, _ in told], limit=self.SHOWN) + (
            f"\n  ... and {more} more" if more else ""
        )
        raise DataError(f"{counted(self.n_problems, 'problem')} in the data:\n{text}", fix=fix)


class OfRow(Problems):
    """What is wrong with one row; all of it is kept, without the row's place."""

    def __init__(self) -> None:
        super().__init__()
        self._all: list[str] = []

    @property
    def lines(self) -> list[str]:
        """All problems."""
        return self._all

    def add(self, where: str, what: str) -> None:
        """Note a problem."""
        self.n_problems += 1
        self._all.append(what)


def _folded(places: list[str], what: str, count: int) -> str:
    """One line for a problem of many rows, with the places that are known."""
    file = places[0].rpartition(":")[0]
    others = ", ".join(place.removeprefix(file) for place in places[1:])
    unnamed = count - len(places)
    more = f" and {unnamed:,} more" if unnamed else ""
    return f"{places[0]}: {what} (the same in {counted(count - 1, 'other row')}: {others}{more})"
