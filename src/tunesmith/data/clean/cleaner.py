"""One row cleaned: what is changed in it, then whether it stays."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from tunesmith.data.clean.edit import edited
from tunesmith.data.clean.normalise import normalised, without_html
from tunesmith.data.clean.plan import CleanPlan, Decision
from tunesmith.data.clean.rules import why_dropped
from tunesmith.data.rows import Row

__all__ = ["Cleaned", "Cleaner"]


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What became of a row.

    Attributes:
        row: as it goes on; None when it is dropped.
        decisions: each change in order, then the drop if there is one. The text of the last change is the row's.
    """

    row: Row | None
    decisions: tuple[Decision, ...] = ()


class Cleaner:
    """Applies the rules that need one row alone. It keeps nothing between rows, so chunks may be cleaned anywhere."""

    def __init__(self, plan: CleanPlan) -> None:
        self._plan = plan

    def row(self, row: Row, index: int = 0) -> Cleaned:
        """Clean one row.

        Args:
            index: the row's place among all rows, for its decisions.

        Raises:
            EnvironmentProblem: a rule needs a package that is not installed.
        """
        steps: list[Decision] = []
        row = self._mended(row, index, steps)
        masked = self._plan.privacy.row(row) if self._plan.privacy else None
        if masked is not None and masked.spans:
            if masked.drop:
                steps.append(Decision(index, row.where, "drop", "private", masked.reason))
                return Cleaned(None, tuple(steps))
            if masked.row is not row:
                row = masked.row
                steps.append(_change(index, row, "private", masked.reason))
        found = why_dropped(row, self._plan)
        if found is not None:
            steps.append(Decision(index, row.where, "drop", *found))
            return Cleaned(None, tuple(steps))
        return Cleaned(row, tuple(steps))

    def changed(self, row: Row) -> Row:
        """The row with everything mended and masked, whatever becomes of it."""
        mended = self._mended(row, 0, [])
        return self._plan.privacy.row(mended).row if self._plan.privacy else mended

    def shown(self, row: Row) -> str:
        """The text of a row that came in, as a file may show it that is passed on: nothing private is in it.

        What is private may only be seen in the mended text (`ann&#64;mail.test`, a character of no width in an
        address). Then the mended row is shown.
        """
        privacy = self._plan.privacy
        if privacy is None:
            return row.text
        masked, mended = privacy.row(row), self._mended(row, 0, [])
        if mended is not row:
            again = privacy.row(mended)
            if Counter(s.text for s in again.spans) != Counter(s.text for s in masked.spans):
                return again.row.text
        return masked.row.text

    def _mended(self, row: Row, index: int, steps: list[Decision]) -> Row:
        if self._plan.strip_html:
            stripped = edited(row, without_html)
            if stripped is not row:
                row = stripped
                steps.append(_change(index, row, "html", "tags and entities taken out"))
        if self._plan.normalize:
            done: list[str] = []

            def mend(text: str) -> str:
                mended, names = normalised(text)
                done.extend(names)
                return mended

            mended = edited(row, mend)
            if mended is not row:
                row = mended
                reason = ", ".join(dict.fromkeys(done))
                steps.append(_change(index, row, "normalize", reason))
        return row


def _change(index: int, row: Row, rule: str, reason: str) -> Decision:
    return replace(Decision(index, row.where, "change", rule, reason), text=row.text)
