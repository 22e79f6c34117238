"""What SQL statements that a limit ended may cost together, so that rows full of them end soon."""

from __future__ import annotations

from tunesmith.store.sqlite import QueryFailed

__all__ = ["SqlBudget"]


class SqlBudget:
    """Counts the statements that a limit ended, not a clock: the same rows come to the same end everywhere.

    Args:
        total: what they may cost together.
        seconds: what one costs that the clock ended or that broke its process: about the seconds it took. One that
            took too many steps of SQLite costs 1.

    Attributes:
        n_ended: statements that a limit ended.
    """

    def __init__(self, total: int, *, seconds: int) -> None:
        self._total, self._spent = total, 0
        self._costs = {"time": seconds, "process": seconds, "steps": 1}
        self.n_ended = 0

    @property
    def is_spent(self) -> bool:
        """Whether no more statements are to be run."""
        return self._spent >= self._total

    def charge(self, failed: QueryFailed) -> None:
        """Count a statement that failed, if it was a limit that ended it."""
        cost = self._costs.get(failed.kind, 0)
        self._spent += cost
        self.n_ended += bool(cost)
