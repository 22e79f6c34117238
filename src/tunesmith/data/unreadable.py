"""Rows that cannot be read: all of them refuse what is made from the files, or each is left out with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tunesmith.data.problems import Problems
from tunesmith.data.rows import BadRow

__all__ = ["RULE", "Unread", "fix_for"]

RULE = "unreadable"
"""What side files and reports call it."""
_SHOWN = 20
_LEAVE_OUT = (
    "or leave such rows out, each with its reason in dropped.jsonl: data.clean.unreadable=drop "
    "(`--unreadable drop` of data clean and data split)"
)
_MOST = (
    "most rows of a file are wrong, so look at how it is read (`tunesmith data inspect FILE`) and correct that by "
    "data.fields, data.rows or data.form"
)


@dataclass
class Unread:
    """Rows that cannot be read, of a piece of a file or of a whole one.

    Attributes:
        n_all: all rows that were looked at.
        n_rows: those of them that cannot be read, and were or could be left out.
        left_out: what is wrong with those that were.
    """

    n_all: int = 0
    n_rows: int = 0
    left_out: Problems = field(default_factory=Problems)

    def take(self, bad: BadRow, problems: Problems, *, drop: bool) -> str:
        """Count a row. The reason to leave it out; empty where it is refused, and `problems` gets what is wrong."""
        self.n_rows += bool(bad.text)
        is_left_out = drop and bool(bad.text)
        for what in bad.what:
            (self.left_out if is_left_out else problems).add(bad.where, what)
        if not is_left_out:
            return ""
        more = len(bad.what) - _SHOWN
        return "; ".join([*bad.what[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])

    def merge(self, other: Unread) -> None:
        """Add the rows that come after."""
        self.n_all += other.n_all
        self.n_rows += other.n_rows
        self.left_out.merge(other.left_out)

    @property
    def is_most(self) -> bool:
        """Whether more than half of all rows cannot be read: then the file is read wrongly, more likely than not."""
        return 2 * self.n_rows > self.n_all

    def refuse_most(self, file: str, problems: Problems) -> None:
        """Refuse a file of which most rows would be left out."""
        if self.is_most and self.left_out.n_problems:
            what = f"{self.n_rows:,} of {self.n_all:,} rows cannot be read; over half are never left out"
            problems.add(file, what)
            problems.merge(self.left_out)


def fix_for(files: Iterable[Unread], fix: str) -> str:
    """What to do about the problems of some files, beside `fix`."""
    found = list(files)
    if any(one.is_most for one in found):
        return f"{fix}; {_MOST}"
    # Where rows are left out already, what is refused is something else.
    if any(one.n_rows and not one.left_out.n_problems for one in found):
        return f"{fix}; {_LEAVE_OUT}"
    return fix
