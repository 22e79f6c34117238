"""Everything that is wrong with the data, so that one error can name it all."""

from __future__ import annotations

from tunesmith.errors import DataError, counted, listed

__all__ = ["OfRow", "Problems"]


class Problems:
    """Collects what makes rows unreadable."""

    SHOWN = 50

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.n_problems = 0

    def add(self, where: str, what: str) -> None:
        """Note a problem; `where` is "file" or "file:line"."""
        self.n_problems += 1
        if len(self.lines) < self.SHOWN:
            self.lines.append(f"{where}: {what}")

    def merge(self, other: Problems) -> None:
        """Take over what another one noted, after what is here."""
        self.n_problems += other.n_problems
        self.lines += other.lines[: self.SHOWN - len(self.lines)]

    def raise_any(self, fix: str) -> None:
        """Raise what was noted.

        Raises:
            DataError: there is at least one problem. The first 50 are named, all are counted.
        """
        if not self.n_problems:
            return
        more = self.n_problems - len(self.lines)
        text = listed(self.lines, limit=self.SHOWN) + (f"\n  ... and {more} more" if more else "")
        raise DataError(f"{counted(self.n_problems, 'problem')} in the data:\n{text}", fix=fix)


class OfRow(Problems):
    """What is wrong with one row; all of it is kept, without the row's place."""

    def add(self, where: str, what: str) -> None:
        """Note a problem."""
        self.n_problems += 1
        self.lines.append(what)
